"""A model is of use where its training set is not: its card travels in the checkpoint."""

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultPredictor
from helpers import load

from amwc_d2 import Predictor, model_zoo
from amwc_d2.data.model_card import check_classes, config_of_card, read_card
from amwc_d2.engine.trainer import Trainer

SIZE = 32
CATEGORIES = [
    {"id": 7, "name": "background", "isthing": 0},
    {"id": 3, "name": "cell", "isthing": 1, "color": [1, 2, 3]},
]


@pytest.fixture
def trained(register_scenes, repository, tmp_path):
    """A checkpoint of a model whose images are enlarged twice; its dataset is gone."""
    ids = np.full((SIZE, SIZE), 1)
    ids[4:20, 4:20] = 2
    info = [{"id": 1, "category_id": 7, "area": SIZE**2 - 256, "iscrowd": 0},
            {"id": 2, "category_id": 3, "area": 256, "iscrowd": 0}]  # fmt: skip
    name = register_scenes([(ids, info)] * 2, CATEGORIES)
    cfg = load(
        repository, "Base-AMWC-R18.yaml", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 2,
        "MODEL.INS_EMBED_HEAD.DISTANCES", [1, 4], "DATASETS.TRAIN", (name,), "DATASETS.TEST", (),
        "SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 1, "OUTPUT_DIR", str(tmp_path),
        "INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MIN_SIZE_TEST", 64, "INPUT.CROP.SIZE", (64, 64),
        "MODEL.AMWC.THING_AREA", 3, "INPUT.SCALING", "percentile",
    )  # fmt: skip
    Trainer(cfg).train()
    entry, metadata = DatasetCatalog[name], MetadataCatalog[name]
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)
    yield tmp_path / "model_final.pth"
    for catalog, content in ((DatasetCatalog, entry), (MetadataCatalog, metadata)):
        if name in catalog:
            catalog.remove(name)
        catalog[name] = content


def test_a_checkpoint_is_enough(trained, caplog):
    card = read_card(trained)
    assert card["scale"] == [2, 2, 2]
    assert [c["name"] for c in card["categories"]] == ["background", "cell"]
    predict = Predictor(trained)
    assert predict.metadata.stuff_classes == ["background", "cell"]
    assert predict.metadata.stuff_colors[1] == [1, 2, 3]
    assert predict.metadata.thing_dataset_id_to_contiguous_id == {3: 1}
    assert predict.model.thing_area == 3 and predict.read.scaling == "percentile"
    image = np.random.default_rng(0).integers(0, 4000, (50, 70)).astype(np.uint16)
    panoptic_seg, _ = predict(image)["panoptic_seg"]
    assert panoptic_seg.shape == image.shape
    assert "factor" not in caplog.text


def test_images_are_resized_as_in_training(trained, caplog):
    predict = Predictor(trained)
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    assert predict.prepare(image)["image"].shape == (3, 64, 64)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    large = np.zeros((4 * SIZE, 3 * SIZE, 3), np.uint8)
    assert predict.prepare(large)["image"].shape == (3, 256, 192)
    assert "is enlarged 2.00 times" in caplog.text
    half = Predictor(trained, scale=2)
    assert half.prepare(large)["image"].shape == (3, 128, 96)
    caplog.clear()
    half(large)
    assert "is resized by a factor" not in caplog.text
    told = Predictor(trained, ["INPUT.MIN_SIZE_TEST", 96])  # the user's own word counts
    assert told.prepare(large)["image"].shape == (3, 128, 96)
    with pytest.raises(ValueError, match="scale must be above 0"):
        Predictor(trained, scale=0)


def test_detectron2s_predictor_works_and_warns(trained, caplog):
    cfg = config_of_card(read_card(trained))
    cfg.MODEL.WEIGHTS = str(trained)
    cfg.DATASETS.TEST = cfg.DATASETS.TRAIN
    predictor = DefaultPredictor(cfg)
    assert predictor.metadata.stuff_classes == ["background", "cell"]
    predictor(np.zeros((SIZE, SIZE, 3), np.uint8))
    assert "is resized by a factor" not in caplog.text
    predictor(np.zeros((4 * SIZE, 4 * SIZE, 3), np.uint8))
    assert "resized by a factor of 0.50, the images of the training by 2.00 to 2.00" in caplog.text
    with pytest.raises(ValueError, match="expected 3 channels"):
        predictor(np.zeros((SIZE, SIZE, 4), np.uint8))


def test_other_classes_are_refused(trained, toy_root, tmp_path):
    card = read_card(trained)
    cfg = config_of_card(card)
    cfg.DATASETS.TRAIN = ("toy_panoptic_train",)
    with pytest.raises(ValueError, match=r"was trained on the classes \['background', 'cell'\]"):
        check_classes(cfg, card)
    with pytest.raises(ValueError, match="of another version of amwc_d2"):
        config_of_card({**card, "config": "MODEL: {NEW_KEY: 1}"})
    torch.save({"model": {}}, tmp_path / "old.pth")
    with pytest.raises(ValueError, match="carries no card"):
        Predictor(tmp_path / "old.pth")
    (tmp_path / "noise.pth").write_bytes(b"noise")
    assert read_card(tmp_path / "noise.pth") is None and read_card("https://a/b.pth") is None
    with pytest.raises(FileNotFoundError, match="expected a checkpoint or a config"):
        Predictor(tmp_path / "gone.pth")


def test_a_released_model(repository):
    path = model_zoo.get_checkpoint_path("dsb2018_amwc_r18")
    predict = Predictor(path)
    assert predict.factor == 2 and len(predict.metadata.stuff_classes) == 4
    image = np.zeros((64, 64, 3), np.uint8)
    cv2.circle(image, (30, 30), 10, (200, 200, 200), -1)
    assert predict(image)["panoptic_seg"][0].shape == (64, 64)
