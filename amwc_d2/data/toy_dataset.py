"""The bundled *toy* panoptic set in COCO-panoptic format: the scenes of ``toy_scenes``, on disk."""

import json
import logging
import tempfile
from pathlib import Path

import cv2
import numpy as np
from iopath.common.file_io import file_lock
from tqdm import tqdm

from amwc_d2.data.toy_scenes import CATEGORIES, HEIGHT, WIDTH, draw_scene

logger = logging.getLogger(__name__)

GENERATOR_VERSION = 1  # raise it whenever the pixels or the JSON change: cached sets are redrawn


def _write_split(folder, split, count, seed):
    """Write ``split``, ``panoptic_split`` and ``panoptic_split.json`` under ``folder``."""
    (folder / split).mkdir()
    (folder / f"panoptic_{split}").mkdir()
    images, annotations = [], []
    for index in tqdm(range(count), desc=f"toy {split}", unit="image", leave=False):
        rng = np.random.default_rng([seed, split == "val", index])
        image, ids, segments_info = draw_scene(rng)
        image_id, stem = index + 1, f"{index + 1:06d}"
        cv2.imwrite(str(folder / split / f"{stem}.jpg"), image[..., ::-1],
                    [cv2.IMWRITE_JPEG_QUALITY, 95])  # fmt: skip
        bgr = np.stack([ids >> 16, ids >> 8 & 255, ids & 255], axis=2)  # id = R + 256 G + 65536 B
        cv2.imwrite(str(folder / f"panoptic_{split}" / f"{stem}.png"), bgr.astype(np.uint8))
        images.append({"id": image_id, "file_name": f"{stem}.jpg",
                       "width": WIDTH, "height": HEIGHT})  # fmt: skip
        annotations.append({"image_id": image_id, "file_name": f"{stem}.png",
                            "segments_info": segments_info})  # fmt: skip
    text = json.dumps({"images": images, "annotations": annotations, "categories": CATEGORIES})
    (folder / f"panoptic_{split}.json").write_text(text)


def read_stamp(root):
    """Read how the set under ``root`` was made; None where there is none."""
    stamp = Path(root) / "toy_version.json"
    return json.loads(stamp.read_text()) if stamp.is_file() else None


def is_current(root):
    """Tell whether ``root`` holds a toy set, of any size or seed, made by this generator."""
    stamp = read_stamp(root)
    return stamp is not None and stamp["generator"] == GENERATOR_VERSION


def make_toy_dataset(root, num_train=800, num_val=300, seed=0):
    """Generate the toy set in COCO-panoptic format, unless ``root`` already holds the same one.

    The set appears under ``root`` all at once: it is written to a folder beside it and renamed,
    under a file lock, so processes that start together make it once. The same arguments give the
    same pixels, and image i does not depend on how many follow it.

    Args:
        root (str or Path): the folder to make, holding ``{train,val,panoptic_train,panoptic_val}``
            and ``panoptic_{train,val}.json``.
        num_train (int): training images.
        num_val (int): validation images, drawn independently of the training images.
        seed (int): >= 0.

    Returns:
        Path: ``root``.

    Raises:
        FileExistsError: ``root`` is a folder that this generator did not make.
    """
    root = Path(root)
    stamp = {"generator": GENERATOR_VERSION, "train": num_train, "val": num_val, "seed": seed}
    root.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(str(root.parent / f".{root.name}")):
        if read_stamp(root) == stamp:
            return root
        if root.exists() and read_stamp(root) is None:
            raise FileExistsError(
                f"{root} exists, but it has no toy_version.json, so the toy set did not make it. "
                "Move it away, or set DETECTRON2_DATASETS to another folder."
            )
        logger.info("Drawing the toy set, %d + %d images, into %s", num_train, num_val, root)
        with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}-") as scratch:
            made = Path(scratch) / "made"
            made.mkdir()
            for split, count in (("train", num_train), ("val", num_val)):
                _write_split(made, split, count, seed)
            (made / "toy_version.json").write_text(json.dumps(stamp))
            if root.exists():
                root.rename(Path(scratch) / "old")
            made.rename(root)
    return root
