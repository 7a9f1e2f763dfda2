"""Files for the test servers: the official tools must read the predictions back from them."""

import contextlib
import io
import json
import shutil

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Instances
from panopticapi.utils import rgb2id
from PIL import Image
from pycocotools import mask as mask_util

from amwc_d2 import Trainer, add_amwc_config
from amwc_d2.config import load_config
from amwc_d2.data import test_sets
from amwc_d2.data.test_sets import register_builtin_test_sets, register_test_images
from amwc_d2.evaluation import AMWCPanopticEvaluator, build_evaluator

VAL = "cityscapes_fine_panoptic_val"


def shifted_truth(record):
    """A model's output for a val image: the ground truth, moved by two pixels, without crowds."""
    with Image.open(record["pan_seg_file_name"]) as image:
        ids = np.roll(rgb2id(np.array(image, dtype=np.int32)), 2, axis=1)
    infos = [s for s in record["segments_info"] if not s["iscrowd"]]
    ids[~np.isin(ids, [s["id"] for s in infos])] = 0
    classes = np.full(ids.shape, 255)
    for s in infos:
        classes[ids == s["id"]] = s["category_id"]
    sem_seg = torch.from_numpy((np.arange(19)[:, None, None] == classes).astype(np.float32))
    things = [s for s in infos if s["category_id"] >= 11]
    instances = Instances(
        ids.shape,
        pred_masks=torch.from_numpy(np.stack([ids == s["id"] for s in things])),
        pred_classes=torch.tensor([s["category_id"] for s in things]),
        scores=torch.linspace(0.9, 0.1, len(things)),
    )
    return {"panoptic_seg": (torch.from_numpy(ids), infos), "sem_seg": sem_seg,
            "instances": instances}  # fmt: skip


@pytest.fixture
def test_images(fake_cityscapes):
    """The two val images once more, as Cityscapes' test images."""
    folder = fake_cityscapes / "leftImg8bit/test"
    shutil.copytree(fake_cityscapes / "leftImg8bit/val", folder)
    yield DatasetCatalog.get("cityscapes_fine_panoptic_test")
    shutil.rmtree(folder)


def write_submission(name, records, outputs, folder):
    cfg = get_cfg()
    add_amwc_config(cfg)
    cfg.OUTPUT_DIR = str(folder)
    writer = build_evaluator(cfg, name)
    writer.reset()
    for record, output in zip(records, outputs):
        writer.process([record], [output])
    assert writer.evaluate() == {}
    return folder / "inference"


def test_cityscapes_files_score_as_their_predictions(test_images, tmp_path):
    from cityscapesscripts.evaluation import evalPanopticSemanticLabeling as panoptic_eval

    outputs = [shifted_truth(record) for record in DatasetCatalog.get(VAL)]
    folder = write_submission("cityscapes_fine_panoptic_test", test_images, outputs, tmp_path)
    meta = MetadataCatalog.get(VAL)
    with contextlib.redirect_stdout(io.StringIO()):
        official = panoptic_eval.evaluatePanoptic(
            meta.panoptic_json, meta.panoptic_root, folder / "panoptic.json", folder / "panoptic",
            tmp_path / "result.json",
        )  # fmt: skip
    evaluator = AMWCPanopticEvaluator(VAL, instance_ap=False)
    evaluator.reset()
    evaluator.process(DatasetCatalog.get(VAL), outputs)
    ours = evaluator.evaluate()["panoptic_seg"]
    for group, suffix in (("All", ""), ("Things", "_th"), ("Stuff", "_st")):
        assert ours["PQ" + suffix] == pytest.approx(100 * official[group]["pq"], abs=1e-9)
    assert 10 < ours["PQ"] < 99

    stem = "toytown_000000_000019_leftImg8bit"
    lines = (folder / f"instance/{stem}_pred.txt").read_text().splitlines()
    assert len(lines) == len(outputs[0]["instances"])
    png, label, _ = lines[0].split()
    mask = np.array(Image.open(folder / "instance" / png)) > 0
    assert np.array_equal(mask, outputs[0]["instances"].pred_masks[0].numpy())
    assert int(label) in meta.thing_dataset_id_to_contiguous_id
    labels = np.array(Image.open(folder / f"semantic/{stem}_pred.png"))
    assert set(np.unique(labels)) <= {7, 8, 11, 21, 23, 17, 24, 26, 27, 33}


def test_coco_files(tmp_path):
    """Ids come from COCO's list of images; masks come back from the results file."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "images/000000000042.jpg")
    info = {"images": [{"id": 42, "file_name": "000000000042.jpg"}]}
    (tmp_path / "info.json").write_text(json.dumps(info))
    name = "made_up_test-dev_panoptic"
    register_test_images(
        name, tmp_path / "images", "coco_2017_val_panoptic", tmp_path / "info.json"
    )
    try:
        (record,) = DatasetCatalog.get(name)
        ids = rng.integers(0, 3, (20, 30)).astype(np.int32)
        output = {
            "panoptic_seg": (
                torch.from_numpy(ids), [{"id": 1, "category_id": 0}, {"id": 2, "category_id": 80}]
            ),
            "instances": Instances(
                ids.shape, pred_masks=torch.from_numpy(ids[None] == 1),
                pred_classes=torch.tensor([0]), scores=torch.tensor([0.5]),
            ),
        }  # fmt: skip
        folder = write_submission(name, [record], [output], tmp_path)
        (annotation,) = json.loads((folder / "panoptic.json").read_text())["annotations"]
        assert annotation == {
            "image_id": 42,
            "file_name": "000000000042.png",
            "segments_info": [{"id": 1, "category_id": 1}, {"id": 2, "category_id": 92}],
        }
        written = np.array(Image.open(folder / "panoptic/000000000042.png"), dtype=np.int32)
        assert np.array_equal(rgb2id(written), ids)
        (instance,) = json.loads((folder / "instances.json").read_text())
        assert (instance["image_id"], instance["category_id"], instance["score"]) == (42, 1, 0.5)
        assert np.array_equal(mask_util.decode(instance["segmentation"]), ids == 1)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_eval_only_writes_a_submission(repository, test_images, tmp_path):
    cfg = load_config(
        repository / "configs/Cityscapes-PanopticSegmentation/amwc_R50.yaml",
        ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", "INPUT.CROP.SIZE", "(128,256)",
         "INPUT.MIN_SIZE_TEST", "64", "DATALOADER.NUM_WORKERS", "0", "OUTPUT_DIR", str(tmp_path),
         "DATASETS.TEST", "('cityscapes_fine_panoptic_test',)"],
    )  # fmt: skip
    assert Trainer.test(cfg, Trainer.build_model(cfg)) == {}
    annotations = json.loads((tmp_path / "inference/panoptic.json").read_text())["annotations"]
    assert [a["image_id"] for a in annotations] == [
        "toytown_000000_000019",
        "toytown_000001_000019",
    ]
    for annotation in annotations:
        assert (tmp_path / "inference/panoptic" / annotation["file_name"]).is_file()


def test_missing_test_images_are_named(fake_cityscapes):
    with pytest.raises(FileNotFoundError, match=r"no images in .*test"):
        DatasetCatalog.get("cityscapes_fine_panoptic_test")
    with pytest.raises(ValueError, match="already registered"):
        register_test_images("cityscapes_fine_panoptic_test", "nowhere", VAL)


def test_names_that_are_taken_are_left_alone():
    before = dict(DatasetCatalog)
    register_builtin_test_sets()
    assert dict(DatasetCatalog) == before


def test_images_of_one_name_get_predictions_of_their_own(tmp_path):
    for file in ("left/frame.png", "right/frame.png", "right/._frame.png"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    found = test_sets._list_images(tmp_path, None)
    names = [image["prediction_name"] for image in found]
    assert names == ["left/frame.png", "right/frame.png"]
    assert [image["image_id"] for image in found] == ["left/frame", "right/frame"]
    (tmp_path / "right/frame.jpg").touch()
    assert len({image["prediction_name"] for image in test_sets._list_images(tmp_path, None)}) == 3
