"""Panoptic data: the toy set and any COCO-panoptic folder, registered with Detectron2.

``register_panoptic_folders()`` runs at ``import amwc_d2``. It only lists folders: a JSON is read
when its dataset is loaded, or when the class names in its metadata are first asked for. Contiguous
class ids are 0..K-1 in the order of the JSON's categories, things and stuff alike, as in
Detectron2's own ``coco_2017_*_panoptic`` and ``cityscapes_fine_panoptic_*``.

Shape shorthand: H, W an image's height and width, K the classes.
"""

import difflib
import os
from functools import partial
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.catalog import Metadata

from amwc_d2.data import toy_dataset
from amwc_d2.data.panoptic_format import (
    CLASS_KEYS,
    class_metadata,
    load_panoptic_json,
    read_panoptic_json,
)
from amwc_d2.data.survey import survey_dataset

SPLITS = ("train", "val")
BUILTIN_FOLDERS = ("coco", "cityscapes")  # Detectron2 registers these itself
MAX_REPORTED = 10  # problems listed in one error


def datasets_root():
    """Return the folder that holds all datasets: ``$DETECTRON2_DATASETS``, or ``datasets``."""
    return Path(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")))


# ---------------------------------------------------------------------------- registration
def register_panoptic_folders():
    """Register the toy set and every COCO-panoptic folder under :func:`datasets_root`.

    A folder NAME with ``panoptic_{train,val}.json`` beside ``train, val, panoptic_train,
    panoptic_val`` becomes ``NAME_panoptic_train`` and ``NAME_panoptic_val``. Names that are already
    taken, Detectron2's own among them, are left alone, so calling this again only adds what is new.
    """
    root = datasets_root()
    folders = [folder for folder in root.iterdir() if folder.is_dir()] if root.is_dir() else []
    for folder in sorted({root / "toy", *folders}):
        if folder.name not in BUILTIN_FOLDERS:
            register_panoptic_folder(folder)


def register_panoptic_folder(folder):
    """Register one folder, wherever it lies, as :func:`register_panoptic_folders` does.

    Returns:
        list[str]: the names of its splits that are registered, now or before.
    """
    folder = Path(folder)
    names = []
    for split in SPLITS:
        name = f"{folder.name}_panoptic_{split}"
        roots = folder / split, folder / f"panoptic_{split}", folder / f"panoptic_{split}.json"
        if name not in DatasetCatalog:
            if folder.name == "toy":
                classes = class_metadata(toy_dataset.CATEGORIES, "the toy set")
                _register(name, *roots, partial(_load_toy, folder, split), **classes)
            elif roots[-1].is_file():
                register_panoptic_dataset(name, *roots)
        if name in DatasetCatalog:
            names.append(name)
    return names


def find_datasets(name):
    """The datasets that a user means: a name, a folder's name, or a folder with both splits.

    Args:
        name (str): "cells_panoptic_val", "cells" (under ``$DETECTRON2_DATASETS``) or a path.

    Returns:
        list[str]: names of registered datasets.

    Raises:
        KeyError: there is nothing of that name.
    """
    if name in DatasetCatalog:
        return [name]
    if os.path.isdir(name):
        names = register_panoptic_folder(Path(name).resolve())
        if names:
            return names
    names = [f"{name}_panoptic_{s}" for s in SPLITS if f"{name}_panoptic_{s}" in DatasetCatalog]
    if not names:
        check_panoptic_metadata(name)
    return names or [name]


def register_panoptic_dataset(name, image_root, panoptic_root, panoptic_json, image_suffix=None):
    """Register a dataset in COCO-panoptic format, whatever its folders are called.

    Nothing is read now: a wrong path or a wrong entry is reported, with the file, the id and the
    fix, when the dataset or its class names are first used.

    Args:
        name (str): name for ``cfg.DATASETS``, not taken yet.
        image_root (str or Path): folder of the images; subfolders are searched too.
        panoptic_root (str or Path): folder of the PNGs, id = R + 256 G + 65536 B.
        panoptic_json (str or Path): the JSON with ``annotations`` and ``categories``. ``images`` is
            optional; image ids may be integers or strings.
        image_suffix (str, optional): what follows the PNG's stem in the image's name, such as
            ``"_leftImg8bit.png"``. By default the name is the one in ``images``, or else the PNG's
            stem with any of the usual image extensions.

    Raises:
        ValueError: ``name`` is already registered.
    """
    if name in DatasetCatalog:
        raise ValueError(f"A dataset called '{name}' is already registered. Choose another name.")
    load = partial(load_panoptic_json, panoptic_json, image_root, panoptic_root, image_suffix)
    _register(name, image_root, panoptic_root, panoptic_json, load)


def _register(name, image_root, panoptic_root, panoptic_json, load, **classes):
    DatasetCatalog.register(name, load)
    MetadataCatalog[name] = _PanopticMetadata(
        name=name,
        image_root=str(image_root),
        panoptic_root=str(panoptic_root),
        panoptic_json=str(panoptic_json),
        json_file=None,
        evaluator_type="coco_panoptic_seg",
        ignore_label=255,
        label_divisor=1000,
        **classes,
    )


class _PanopticMetadata(Metadata):
    """Metadata that reads its classes from ``panoptic_json`` when one of them is first needed."""

    def __getattr__(self, key):
        if key not in CLASS_KEYS:
            return super().__getattr__(key)
        self._read_classes()
        return self.__dict__[key]

    def as_dict(self):
        if CLASS_KEYS[0] not in self.__dict__:
            self._read_classes()
        return super().as_dict()

    def _read_classes(self):
        info = read_panoptic_json(self.panoptic_json)
        self.__dict__.update(class_metadata(info["categories"], self.panoptic_json))


def _load_toy(folder, split):
    if not toy_dataset.is_current(folder):
        toy_dataset.make_toy_dataset(folder)
    return load_panoptic_json(
        folder / f"panoptic_{split}.json", folder / split, folder / f"panoptic_{split}"
    )


# ---------------------------------------------------------------------------- checks
def load_samples(names, filter_empty=False):
    """Load datasets as ``get_detection_dataset_dicts`` does.

    Raises:
        FileNotFoundError: the data of one of Detectron2's own datasets are not complete; it says
            where they should be. Errors of other datasets are passed on.
    """
    try:
        return get_detection_dataset_dicts(names, filter_empty=filter_empty)
    except (AssertionError, FileNotFoundError) as error:
        names = [names] if isinstance(names, str) else names
        own = [name for name in names if name.split("_")[0] in BUILTIN_FOLDERS]
        if not own:
            raise
        raise FileNotFoundError(
            f"Datasets {own} are not complete under $DETECTRON2_DATASETS (here "
            f"{datasets_root().resolve()}): {error}. datasets/README.md says what belongs there, "
            "and which command (csCreatePanopticImgs) makes Cityscapes' panoptic files."
        ) from error


def check_panoptic_metadata(*names, num_classes=None, ignore_value=None):
    """Check that datasets are registered, complete, and agree on their classes.

    Args:
        names (str): datasets that one model is trained or evaluated on.
        num_classes (int, optional): the model's K, if it is to be compared.
        ignore_value (int, optional): the model's class of void pixels, if it is to be compared.

    Returns:
        Metadata: the first one's.

    Raises:
        KeyError: a name is not registered.
        ValueError: no name is given, a metadata field is missing or wrong, or classes differ from
            each other's or from ``num_classes``, or void is marked otherwise.
    """
    if not names:
        raise ValueError("no dataset is named: set DATASETS.TRAIN or DATASETS.TEST.")
    for name in names:
        if name not in DatasetCatalog and name not in MetadataCatalog:
            raise KeyError(_not_registered(name))
        _check_fields(name, MetadataCatalog.get(name))
    first = MetadataCatalog.get(names[0])
    if num_classes not in (None, len(first.stuff_classes)):
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {num_classes}, but dataset '{names[0]}' has "
            f"{len(first.stuff_classes)} classes. Set it to {len(first.stuff_classes)}."
        )
    if ignore_value not in (None, first.ignore_label):
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.IGNORE_VALUE is {ignore_value}, but dataset '{names[0]}' marks "
            f"pixels without a class by {first.ignore_label}: class {ignore_value} would never be "
            f"learnt. Set it to {first.ignore_label}."
        )
    for name in names[1:]:
        _check_same_classes(first, MetadataCatalog.get(name))
    return first


def _not_registered(name):
    """What to say of a name that is no dataset's."""
    root = datasets_root().resolve()
    folder, _, split = name.rpartition("_panoptic_")
    if split in SPLITS and (root / folder).is_dir():
        there = sorted(file.name for file in (root / folder).glob("*.json"))
        return (
            f"Dataset '{name}' is not registered: {root / folder} is there, but not its "
            f"panoptic_{split}.json (it holds {there or 'no JSON'}). tools/import_dataset.py "
            "writes both splits; register_panoptic_dataset() takes files of other names."
        )
    close = difflib.get_close_matches(name, list(DatasetCatalog), n=3)
    return (
        f"Dataset '{name}' is not registered. {f'Did you mean {close}? ' if close else ''}A folder "
        "NAME with panoptic_train.json or panoptic_val.json under $DETECTRON2_DATASETS (here "
        f"{root}) becomes NAME_panoptic_train or _val; register_panoptic_dataset() takes any other "
        "layout, tools/import_dataset.py other formats."
    )


def _check_fields(name, metadata):
    for key in ("stuff_classes", "thing_dataset_id_to_contiguous_id",
                "stuff_dataset_id_to_contiguous_id", "ignore_label"):  # fmt: skip
        if not hasattr(metadata, key):
            raise ValueError(
                f"The metadata of dataset '{name}' has no '{key}'. register_panoptic_dataset() "
                f"sets all of them; otherwise call MetadataCatalog.get('{name}').set({key}=...)."
            )
    things = set(metadata.thing_dataset_id_to_contiguous_id.values())
    stuff = set(metadata.stuff_dataset_id_to_contiguous_id.values())
    num_classes = len(metadata.stuff_classes)
    if things | stuff != set(range(num_classes)):
        raise ValueError(
            f"The metadata of dataset '{name}' maps its categories to the contiguous ids "
            f"{sorted(things | stuff)}, but stuff_classes has {num_classes} names. Expected each "
            f"of 0..{num_classes - 1}, with stuff_classes naming all classes, things included. "
            "(Detectron2's '*_separated' datasets do not do so: use the standard ones.)"
        )
    if metadata.ignore_label in range(num_classes):
        raise ValueError(
            f"Dataset '{name}' has {num_classes} classes, and its ignore_label "
            f"{metadata.ignore_label}, which marks pixels without a class, is one of their ids. "
            f"Use at most {metadata.ignore_label} classes."
        )


def _check_same_classes(first, other):
    if list(first.stuff_classes) != list(other.stuff_classes):
        raise ValueError(
            f"Datasets '{first.name}' and '{other.name}' differ in their classes: "
            f"{first.stuff_classes} and {other.stuff_classes}. A model numbers classes in the "
            "order of the JSON's categories: write the same list into both JSONs."
        )
    ids = [set(m.thing_dataset_id_to_contiguous_id.values()) for m in (first, other)]
    if ids[0] != ids[1]:
        differing = [first.stuff_classes[k] for k in sorted(ids[0] ^ ids[1])]
        raise ValueError(
            f"Datasets '{first.name}' and '{other.name}' disagree on which classes are things: "
            f"{differing}. Correct 'isthing' in the JSONs' categories."
        )


def check_panoptic_dataset(name, progress=True):
    """Open every image and every PNG of a dataset and check them against the JSON.

    ``tools/check_dataset.py`` prints more about it.

    Args:
        name (str): a registered dataset.
        progress (bool): show a progress bar.

    Returns:
        dict: ``images``, ``segments``, ``crowd_segments`` (counts) and ``void_fraction`` (of all
        pixels).

    Raises:
        ValueError: lists up to ten problems: ids that only one side knows, an area that is not the
            number of pixels, an image and a PNG of different sizes, damaged files, several
            segments where a class can have one.
    """
    check_panoptic_metadata(name)
    survey = survey_dataset(name, progress=progress)
    if survey.problems:
        raise ValueError(describe_problems(survey))
    return {
        "images": survey.samples,
        "segments": len(survey.segments),
        "crowd_segments": int(survey.segments["crowd"].sum()),
        "void_fraction": survey.void_pixels / survey.pixels,
    }


def describe_problems(survey):
    """The first problems of a :class:`Survey`, as a text."""
    shown = "\n  ".join(survey.problems[:MAX_REPORTED])
    more = len(survey.problems) - MAX_REPORTED
    return (
        f"{survey.wrong_samples} of {survey.samples} samples of '{survey.name}' are wrong:\n  "
        + shown
        + (f"\n  and {more} more problems" if more > 0 else "")
    )


register_panoptic_folders()
