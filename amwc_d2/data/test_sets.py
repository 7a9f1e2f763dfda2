"""Sets of images without ground truth, for the test servers.

``cityscapes_fine_panoptic_test`` and ``coco_2017_test-dev_panoptic`` are registered at ``import
amwc_d2``; name one in ``DATASETS.TEST`` and run ``--eval-only``.
"""

import json
from collections import Counter
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from amwc_d2.data.datasets import datasets_root
from amwc_d2.data.images import is_image, list_files

SUBMISSION = "panoptic_submission"  # evaluator_type


def register_test_images(name, image_root, like, image_info=None):
    """Register images without ground truth.

    Args:
        name (str): name for ``cfg.DATASETS.TEST``.
        image_root (str or Path): folder of the images; subfolders are searched too.
        like (str): a registered dataset with the same classes, such as the val set.
        image_info (str, Path or None): COCO's JSON with ``images``, which gives ids and files;
            None: all images of the folder, the id being the file's name up to ``_leftImg8bit`` or
            to its ending, after its folder where names come twice.

    Raises:
        ValueError: ``name`` is already registered.
    """
    if name in DatasetCatalog:
        raise ValueError(f"A dataset called '{name}' is already registered. Choose another name.")
    DatasetCatalog.register(name, lambda: _list_images(image_root, image_info))
    meta = MetadataCatalog.get(like)
    MetadataCatalog.get(name).set(
        evaluator_type=SUBMISSION,
        like=like,
        ignore_label=meta.ignore_label,
        stuff_classes=meta.stuff_classes,
        thing_classes=meta.thing_classes,
        stuff_colors=meta.stuff_colors,
        thing_colors=meta.thing_colors,
        stuff_dataset_id_to_contiguous_id=meta.stuff_dataset_id_to_contiguous_id,
        thing_dataset_id_to_contiguous_id=meta.thing_dataset_id_to_contiguous_id,
    )


def _list_images(image_root, image_info):
    root = Path(image_root)
    if image_info is not None:
        images = json.loads(Path(image_info).read_text(encoding="utf-8-sig"))["images"]
        files = [root / image["file_name"] for image in images]
        ids = [image["id"] for image in images]
        twice = [i for i, count in Counter(ids).items() if count > 1]
        if twice:
            raise ValueError(f"{image_info}: image ids {twice[:5]} come twice. Number them anew.")
        names = _unique_names(root, files)
    else:
        files = list_files(root) if root.is_dir() else []
        files = [root / file for file in files if is_image(file)]
        names = _unique_names(root, files)
        ids = [name.removesuffix("_leftImg8bit") for name in names]
    if not files:
        raise FileNotFoundError(f"no images in '{root}'. Put the test images there.")
    return [
        {"file_name": str(file), "image_id": image_id, "prediction_name": f"{name}.png"}
        for file, image_id, name in zip(files, ids, names)
    ]


def _unique_names(root, files):
    """What to call each file's prediction: its stem, with its folder where stems come twice."""
    relative = [file.relative_to(root) for file in files]
    for names in (
        [file.stem for file in relative],
        [file.with_suffix("").as_posix() for file in relative],
    ):
        if len({name.lower() for name in names}) == len(names):
            return names
    return [file.as_posix() for file in relative]


def register_builtin_test_sets():
    """Register Cityscapes test and COCO test-dev at their places under ``datasets_root()``.

    Names that are already taken are left alone.
    """
    root = datasets_root()
    name = "cityscapes_fine_panoptic_test"
    if name not in DatasetCatalog:
        images = root / "cityscapes/leftImg8bit/test"
        register_test_images(name, images, like="cityscapes_fine_panoptic_val")
    name = "coco_2017_test-dev_panoptic"
    if name not in DatasetCatalog:
        images, info = root / "coco/test2017", "coco/annotations/image_info_test-dev2017.json"
        register_test_images(name, images, like="coco_2017_val_panoptic", image_info=root / info)


register_builtin_test_sets()
