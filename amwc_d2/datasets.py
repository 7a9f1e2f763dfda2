"""Panoptic data: the toy set and any COCO-panoptic folder, registered with Detectron2.

``register_panoptic_folders()`` runs at ``import amwc_d2``. It only lists folders: a JSON is read
when its dataset is loaded, or when the class names in its metadata are first asked for. Contiguous
class ids are 0..K-1 in the order of the JSON's categories, things and stuff alike, as in
Detectron2's own ``coco_2017_*_panoptic`` and ``cityscapes_fine_panoptic_*``.

Shape shorthand: H, W an image's height and width, K the classes.
"""

import json
import logging
import os
from functools import partial
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata

from amwc_d2 import toy_dataset

logger = logging.getLogger(__name__)

SPLITS = ("train", "val")
BUILTIN_FOLDERS = ("coco", "cityscapes")  # Detectron2 registers these itself
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
CLASS_KEYS = (
    "thing_classes",
    "thing_colors",
    "stuff_classes",
    "stuff_colors",
    "thing_dataset_id_to_contiguous_id",
    "stuff_dataset_id_to_contiguous_id",
)


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
    toy_classes = class_metadata(toy_dataset.CATEGORIES, "the toy set")
    for folder in sorted({root / "toy", *folders}):
        for split in SPLITS:
            name = f"{folder.name}_panoptic_{split}"
            roots = folder / split, folder / f"panoptic_{split}", folder / f"panoptic_{split}.json"
            if name in DatasetCatalog or folder.name in BUILTIN_FOLDERS:
                continue
            if folder.name == "toy":
                _register(name, *roots, partial(_load_toy, folder, split), **toy_classes)
            elif roots[-1].is_file():
                register_panoptic_dataset(name, *roots)


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
        info = _read_json(self.panoptic_json)
        self.__dict__.update(class_metadata(info["categories"], self.panoptic_json))


def class_metadata(categories, source):
    """Make Detectron2's class metadata from a JSON's categories.

    Args:
        categories (list[dict]): ``{"id", "name", "isthing"[, "color"]}``, in the classes' order.
        source (str): where they come from, for the errors.

    Returns:
        dict: the six :data:`CLASS_KEYS`. Names and colours list all K classes twice, as things and
        as stuff, as Detectron2's panoptic datasets do; the two id maps are disjoint.

    Raises:
        ValueError: an entry is incomplete, or an id comes twice.
    """
    for category in categories:
        for key in ("id", "name", "isthing"):
            if key not in category:
                raise ValueError(
                    f"{source}: category {category} has no '{key}'. Give each category an id, a "
                    "name and isthing (1 for things, 0 for stuff)."
                )
    ids = [category["id"] for category in categories]
    if not ids or len(set(ids)) < len(ids):
        raise ValueError(f"{source}: category ids must be there and differ, got {ids}.")
    names = [category["name"] for category in categories]
    colors = [
        list(category.get("color") or _palette(index)) for index, category in enumerate(categories)
    ]
    things, stuff = (
        {c["id"]: index for index, c in enumerate(categories) if bool(c["isthing"]) == isthing}
        for isthing in (True, False)
    )
    return dict(zip(CLASS_KEYS, (names, colors, list(names), list(colors), things, stuff)))


def _palette(index):
    """A colour [R, G, B] for a class without one: PASCAL VOC's rule, which never repeats."""
    bits = [[index + 1 >> (3 * place + channel) & 1 for place in range(7)] for channel in range(3)]
    return [sum(bit << (7 - place) for place, bit in enumerate(channel)) for channel in bits]


# ---------------------------------------------------------------------------- loading
def _load_toy(folder, split):
    if not toy_dataset.is_current(folder):
        toy_dataset.make_toy_dataset(folder)
    return load_panoptic_json(
        folder / f"panoptic_{split}.json", folder / split, folder / f"panoptic_{split}"
    )


def _read_json(path):
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"{path} does not exist. A panoptic dataset needs its JSON there: see "
            "datasets/README.md, or register another path with register_panoptic_dataset()."
        )
    with open(path, encoding="utf-8") as file:
        info = json.load(file)
    for key in ("annotations", "categories"):
        if not isinstance(info, dict) or not isinstance(info.get(key), list):
            raise ValueError(
                f"{path} has no list '{key}', so it is not in COCO-panoptic format. Expected "
                '{"images": [...], "annotations": [...], "categories": [...]}.'
            )
    return info


def load_panoptic_json(panoptic_json, image_root, panoptic_root, image_suffix=None):
    """Load a COCO-panoptic JSON as Detectron2's dataset dicts.

    Args:
        panoptic_json, image_root, panoptic_root, image_suffix: as in
            :func:`register_panoptic_dataset`.

    Returns:
        list[dict]: ``file_name``, ``image_id`` (as in the JSON), ``pan_seg_file_name``,
        ``segments_info`` (contiguous ``category_id``, ``isthing``, ``iscrowd`` and the JSON's other
        fields), and ``height``, ``width`` where ``images`` has them.

    Raises:
        FileNotFoundError: the JSON, an image or a PNG is missing.
        ValueError: an entry is wrong; the message names the file, the image, the id and the fix.
    """
    info = _read_json(panoptic_json)
    classes = class_metadata(info["categories"], panoptic_json)
    images = {image["id"]: image for image in info.get("images", [])}
    find_image = _ImageFinder(image_root, image_suffix)
    pngs = _list_files(panoptic_root)
    samples = []
    for annotation in info["annotations"]:
        if "segments_info" not in annotation:
            raise ValueError(
                f"{panoptic_json}: the annotation of image {annotation.get('image_id')} has no "
                "'segments_info'. This looks like an instances JSON; give the panoptic one."
            )
        image_id, png = annotation["image_id"], annotation["file_name"]
        if png not in pngs:
            raise FileNotFoundError(
                f"{Path(panoptic_root) / png} does not exist, but {panoptic_json} names it for "
                f"image {image_id}. Add the PNG, or remove the annotation."
            )
        where = f"{panoptic_json}: image {image_id} ({png})"
        image = images.get(image_id, {})
        sample = {
            "file_name": os.path.join(image_root, find_image(png, image.get("file_name"), where)),
            "image_id": image_id,
            "pan_seg_file_name": os.path.join(panoptic_root, png),
            "segments_info": _convert_segments(annotation["segments_info"], classes, where),
        }
        sample.update((key, image[key]) for key in ("height", "width") if key in image)
        samples.append(sample)
    if not samples:
        raise ValueError(f"{panoptic_json}: 'annotations' is empty, so there is nothing to load.")
    logger.info("Loaded %d images from %s", len(samples), panoptic_json)
    return samples


def _convert_segments(segments_info, classes, where):
    things, stuff = (classes[f"{kind}_dataset_id_to_contiguous_id"] for kind in ("thing", "stuff"))
    converted, seen = [], set()
    for segment in segments_info:
        for key in ("id", "category_id", "area"):
            if key not in segment:
                raise ValueError(f"{where}: segment {segment} has no '{key}'. Add it to the JSON.")
        category = segment["category_id"]
        if category not in things and category not in stuff:
            raise ValueError(
                f"{where}: segment {segment['id']} has the unknown category {category}; known are "
                f"{sorted([*things, *stuff], key=str)}. Add it to the JSON's categories, or "
                "correct the segment."
            )
        if segment["id"] in seen or segment["id"] == 0:
            raise ValueError(
                f"{where}: segment id {segment['id']} comes twice, or is 0, which means void. "
                "Give every segment its own id, and paint it so in the PNG."
            )
        seen.add(segment["id"])
        isthing = category in things
        contiguous = things[category] if isthing else stuff[category]
        crowd = segment.get("iscrowd", 0)
        changed = {"category_id": contiguous, "isthing": isthing, "iscrowd": crowd}
        converted.append({**segment, **changed})
    return converted


def _list_files(root):
    """List the files under ``root`` as a set of relative paths with forward slashes."""
    if not os.path.isdir(root):
        raise FileNotFoundError(
            f"{root} is not a folder. Create it, or register the right one with "
            "register_panoptic_dataset()."
        )
    files = set()
    for folder, _, names in os.walk(root, followlinks=True):
        prefix = Path(folder).relative_to(root).as_posix() + "/"
        files.update((prefix + name).removeprefix("./") for name in names)
    return files


class _ImageFinder:
    """Finds the image of a panoptic PNG among the files under ``image_root``."""

    def __init__(self, image_root, suffix=None):
        self.image_root, self.suffix = image_root, suffix
        self.files = _list_files(image_root)
        self.by_stem = {}
        for file in sorted(self.files):
            stem, extension = os.path.splitext(file)
            if extension.lower() in IMAGE_SUFFIXES:
                self.by_stem.setdefault(stem, []).append(file)

    def __call__(self, png, listed_name, where):
        """Return the image's relative path; ``listed_name`` is its name in ``images``, or None."""
        stem = os.path.splitext(png)[0]
        if self.suffix is not None:
            found = [stem + self.suffix] if stem + self.suffix in self.files else []
        elif listed_name in self.files:
            found = [listed_name]
        else:
            found = self.by_stem.get(stem, [])
        if len(found) == 1:
            return found[0]
        wanted = listed_name or stem + (self.suffix or ".*")
        if found:
            raise ValueError(
                f"{where}: several images fit, {found}. List the right one under 'images', or pass "
                "image_suffix to register_panoptic_dataset()."
            )
        raise FileNotFoundError(
            f"{where}: no image {wanted} in {self.image_root}. Add it, or pass image_suffix to "
            "register_panoptic_dataset() if images are named after the PNGs with another ending."
        )
