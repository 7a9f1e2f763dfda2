"""Fixtures: a throw-away ``$DETECTRON2_DATASETS`` with a tiny toy set and a fake Cityscapes tree.

The variable is set here, before anything imports Detectron2, because Detectron2 reads it once, at
import. Subprocesses inherit it.
"""

import contextlib
import io
import json
import os
import signal
import tempfile
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
REAL_DATA = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).resolve()

COCO_NAMES = {  # classes of the toy set that COCO knows by another name
    "sidewalk": "pavement-merged",
    "building": "building-other-merged",
    "vegetation": "tree-merged",
    "sky": "sky-other-merged",
    "pole": "traffic light",
}

_scratch = tempfile.TemporaryDirectory(prefix="amwc_d2_tests_")
DATASETS = Path(_scratch.name)
os.environ["DETECTRON2_DATASETS"] = str(DATASETS)


@pytest.fixture
def ctrl_c():
    """SIGINT raises KeyboardInterrupt, as at a prompt; parallel test workers ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def repository():
    """The repository's root, a Path."""
    return REPOSITORY


@pytest.fixture(scope="session")
def real_data():
    """The ``$DETECTRON2_DATASETS`` of whoever runs the tests; for tests marked ``data``."""
    if not any((REAL_DATA / name).is_dir() for name in ("coco", "dsb2018")):
        pytest.skip(f"needs coco/ or dsb2018/ in $DETECTRON2_DATASETS, which is {REAL_DATA}")
    return REAL_DATA


@pytest.fixture(scope="session")
def toy_root():
    """Folder of a toy set of 12 + 6 images, loaded as ``toy_panoptic_{train,val}``."""
    from amwc_d2.data.toy_dataset import make_toy_dataset

    return make_toy_dataset(DATASETS / "toy", num_train=12, num_val=6)


@pytest.fixture
def register_scenes(tmp_path):
    """A function that writes and registers a COCO-panoptic dataset, gone after the test.

    It takes scenes, pairs of ids (H, W) and segments_info, and categories, and returns the name;
    image i is grey.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from panopticapi.utils import id2rgb
    from PIL import Image

    from amwc_d2 import register_panoptic_dataset

    names = []

    def register(scenes, categories):
        name = f"made_up_{len(names)}"
        folder = tmp_path / name
        (folder / "images").mkdir(parents=True)
        (folder / "png").mkdir()
        annotations = []
        for i, (ids, segments_info) in enumerate(scenes):
            file = f"{i:04d}.png"
            Image.fromarray(id2rgb(ids)).save(folder / "png" / file)
            Image.new("RGB", ids.shape[::-1], "grey").save(folder / "images" / file)
            annotations.append({"image_id": i, "file_name": file, "segments_info": segments_info})
        truth = {"annotations": annotations, "categories": categories}
        (folder / "truth.json").write_text(json.dumps(truth))
        register_panoptic_dataset(name, folder / "images", folder / "png", folder / "truth.json")
        names.append(name)
        return name

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture(scope="session")
def fake_cityscapes():
    """A Cityscapes tree with 2 train and 2 val images (128x256), drawn by the toy generator.

    ``cityscapes_fine_panoptic_{train,val}``, and Detectron2's other Cityscapes names, read it.
    """
    from cityscapesscripts.preparation.createPanopticImgs import convert2panoptic

    root = DATASETS / "cityscapes"
    for split, first_seed in (("train", 0), ("val", 10)):
        for index in range(2):
            _write_cityscapes_image(root, split, index, first_seed + index)
    with contextlib.redirect_stdout(io.StringIO()):
        convert2panoptic(str(root / "gtFine"), setNames=["train", "val"])
    return root


@pytest.fixture(scope="session")
def fake_coco():
    """COCO's folders with 2 train and 4 val images of toy scenes (128x256), in its 133 classes.

    ``coco_2017_{train,val}_panoptic``, Detectron2's own names, read it.
    """
    import cv2
    from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
    from panopticapi.utils import id2rgb
    from PIL import Image

    from amwc_d2.data.toy_scenes import CATEGORIES, draw_scene

    theirs = {category["name"]: category["id"] for category in COCO_CATEGORIES}
    ids = {
        category["id"]: theirs[COCO_NAMES.get(category["name"], category["name"])]
        for category in CATEGORIES
    }
    root = DATASETS / "coco"
    (root / "annotations").mkdir(parents=True)
    for split, seeds in (("train2017", range(2)), ("val2017", range(10, 14))):
        (root / split).mkdir()
        (root / f"panoptic_{split}").mkdir()
        images, annotations = [], []
        for seed in seeds:
            image, segments, infos = draw_scene(np.random.default_rng(seed))
            height, width = segments.shape
            cv2.imwrite(str(root / split / f"{seed:012d}.jpg"), image[..., ::-1])
            file = f"{seed:012d}.png"
            Image.fromarray(id2rgb(segments)).save(root / f"panoptic_{split}" / file)
            images.append(
                {"id": seed, "file_name": f"{seed:012d}.jpg", "height": height, "width": width}
            )
            infos = [{**info, "category_id": ids[info["category_id"]]} for info in infos]
            annotations.append({"image_id": seed, "file_name": file, "segments_info": infos})
        truth = {"images": images, "annotations": annotations, "categories": COCO_CATEGORIES}
        (root / f"annotations/panoptic_{split}.json").write_text(json.dumps(truth))
    return root


def _write_cityscapes_image(root, split, index, seed):
    """Write one image with its instanceIds (uint16), labelIds and labelTrainIds."""
    from cityscapesscripts.helpers.labels import id2label
    from PIL import Image

    from amwc_d2.data.toy_scenes import draw_scene

    image, segments, segments_info = draw_scene(np.random.default_rng(seed))
    instance_ids = np.zeros(segments.shape, np.uint16)
    for segment in segments_info:
        class_id = segment["category_id"]  # the toy set has Cityscapes' ids
        countable = id2label[class_id].hasInstances and not segment["iscrowd"]
        instance_ids[segments == segment["id"]] = segment["id"] if countable else class_id
    label_ids = np.where(instance_ids < 1000, instance_ids, instance_ids // 1000)
    train_ids = np.vectorize(lambda label: id2label[label].trainId % 256)(label_ids)

    stem = f"toytown_{index:06d}_000019"
    files = {
        f"leftImg8bit/{split}/toytown/{stem}_leftImg8bit.png": image,
        f"gtFine/{split}/toytown/{stem}_gtFine_instanceIds.png": instance_ids,
        f"gtFine/{split}/toytown/{stem}_gtFine_labelIds.png": label_ids.astype(np.uint8),
        f"gtFine/{split}/toytown/{stem}_gtFine_labelTrainIds.png": train_ids.astype(np.uint8),
    }
    for name, pixels in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / name)


@pytest.fixture
def register_toy_copy(toy_root, tmp_path):
    """A function that registers a copy of the first images of the toy set, gone after the test.

    It takes their number and returns the dataset's name and folder (``train`` holds the images).
    """
    import shutil

    from detectron2.data import DatasetCatalog, MetadataCatalog

    from amwc_d2 import register_panoptic_dataset

    names = []

    def register(count):
        name, folder = f"toy_copy_{len(names)}", tmp_path / f"toy_copy_{len(names)}"
        truth = json.loads((toy_root / "panoptic_train.json").read_text())
        truth["annotations"] = truth["annotations"][:count]
        kept = {annotation["image_id"] for annotation in truth["annotations"]}
        truth["images"] = [image for image in truth["images"] if image["id"] in kept]
        for part, file_names in (
            ("train", [image["file_name"] for image in truth["images"]]),
            ("panoptic_train", [annotation["file_name"] for annotation in truth["annotations"]]),
        ):
            (folder / part).mkdir(parents=True)
            for file_name in file_names:
                shutil.copy(toy_root / part / file_name, folder / part / file_name)
        (folder / "truth.json").write_text(json.dumps(truth))
        register_panoptic_dataset(
            name, folder / "train", folder / "panoptic_train", folder / "truth.json"
        )
        names.append(name)
        return name, folder

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
