"""What people have, made into a COCO-panoptic dataset that trains at once.

Each layout has a function that lists its :class:`Item` s: an image, and how to load its labels as
ids with a class each. :func:`write_dataset` splits, tiles and writes them. ``tools/
import_dataset.py`` is the command; docs/own_data.md shows each layout.

Shape shorthand: H, W an image's height and width; K classes.
"""

import csv
import json
import logging
import re
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import tifffile
from panopticapi.utils import id2rgb
from PIL import Image
from pycocotools import mask as rle
from scipy import ndimage
from tqdm import tqdm

from amwc_d2.data.images import (
    ImageReader,
    count_pages,
    image_size,
    is_image,
    list_files,
    read_pixels,
)

logger = logging.getLogger(__name__)

LAYOUTS = ("instances", "classes", "masks", "coco", "cityscapes")
SPLIT_FOLDERS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
IMAGE_ENDINGS = ("_leftImg8bit", "_image", "_img", "_raw", "_rgb")  # left out when names are paired
EIGHT_NEIGHBOURS = np.ones((3, 3), int)


@dataclass(frozen=True)
class ImportedClass:
    """A class: its name, whether it is a thing, and its value in maps, if it has one."""

    name: str
    isthing: bool
    value: int | None = None


@dataclass
class Labels:
    """The labels of one image.

    Attributes:
        ids: int (H, W), 0 = void.
        category: class number, 0..K-1, of every other id.
        crowd: ids of regions whose instances nobody told apart.
    """

    ids: np.ndarray
    category: dict[int, int]
    crowd: set[int] = field(default_factory=set)


@dataclass
class Item:
    """An image to import.

    Attributes:
        name: its name in the dataset, without ending. image: the file.
        load: gives its :class:`Labels`.
        split: "train", "val", "test" or None (not said).
        page: of a stack, or None.
    """

    name: str
    image: Path
    load: Callable[[], Labels]
    split: str | None = None
    page: int | None = None


def parse_class(text, default_thing):
    """Read "name", "name:thing", "3=name:stuff" or "#ff0000=name" as an :class:`ImportedClass`.

    Raises:
        ValueError: it is none of these.
    """
    match = re.fullmatch(r"(?:(\d+|#[0-9a-fA-F]{6})=)?([^:=]+)(?::(thing|stuff))?", text)
    if not match:
        raise ValueError(
            f"--classes: '{text}' is not understood; expected NAME, NAME:thing, VALUE=NAME:stuff "
            "or #RRGGBB=NAME:thing."
        )
    value, name, kind = match.groups()
    if value is not None:
        value = int(value[1:], 16) if value.startswith("#") else int(value)
    return ImportedClass(name, default_thing if kind is None else kind == "thing", value)


# ---------------------------------------------------------------------------- files
def read_labels(path, page=None):
    """Read a label image as integers (H, W); colours become 65536 R + 256 G + B.

    Args:
        path (Path): TIFF, PNG (palettes by index) or npy, of any depth.
        page (int, optional): of a stack.

    Raises:
        ValueError: it is a JPEG, damaged, or holds other numbers than 0, 1, 2 ...
    """
    if path.suffix.lower() == ".npy":
        labels = np.load(path, allow_pickle=False)
        labels = labels if page is None else labels[page]
    else:
        labels = _palette_indices(path)
        if labels is None:
            labels = read_pixels(path, page)[0]
            if labels.shape[2] >= 3:
                labels = labels[..., :3].astype(np.int64)
                grey = (labels == labels[..., :1]).all()
                labels = labels[..., 0] if grey else labels @ np.array([65536, 256, 1])
            else:
                labels = labels[..., 0]
    if labels.ndim != 2:
        raise ValueError(f"{path} has labels of shape {labels.shape}; expected (H, W).")
    whole = labels.astype(np.int64)
    if (whole != labels).any() or whole.min() < 0:
        raise ValueError(f"{path}: expected the numbers 0, 1, 2 ... as labels, got others.")
    return whole


def _palette_indices(path):
    try:
        with Image.open(path) as image:
            if image.format in ("JPEG", "MPO"):
                raise ValueError(
                    f"{path} is a JPEG, whose compression changes labels. Export them as PNG or "
                    "TIFF."
                )
            return np.asarray(image) if image.mode == "P" else None
    except OSError:
        return None  # read_pixels says what is wrong


def _split_of(relative):
    return next((SPLIT_FOLDERS[p] for p in relative.parts[:-1] if p in SPLIT_FOLDERS), None)


def _without_split(relative):
    parts = [p for p in relative.parts[:-1] if p not in SPLIT_FOLDERS]
    return Path(*parts, relative.name)


def pair_files(images, labels):
    """Pair the images of one folder with the labels of another by their names.

    ``cell_1.tif`` fits ``cell_1.png`` or, if there is only one such, ``cell_1_mask.npy``. Images
    without labels, and labels without an image, are left out with a warning.

    Args:
        images, labels (Path): folders, searched with their subfolders; may be the same one.

    Returns:
        list[(Path, Path, Path)]: image, label, and the image's path relative to ``images``.

    Raises:
        ValueError: nothing fits, or several labels fit one image.
    """
    images, labels = Path(images), Path(labels)
    label_files = {}
    for file in list_files(labels):
        if is_image(file) or file.suffix == ".npy":
            label_files[labels / file] = _without_split(file).with_suffix("").as_posix()
    by_stem = defaultdict(list)
    for file, stem in label_files.items():
        by_stem[_split_of(file.relative_to(labels)), stem].append(file)
    pairs, unlabelled, used = [], [], set()
    same = images.resolve() == labels.resolve()
    for relative in filter(is_image, list_files(images)):
        image = images / relative
        stem = _without_split(relative).with_suffix("").as_posix()
        split = _split_of(relative)
        for ending in IMAGE_ENDINGS:
            stem = stem.removesuffix(ending)
        found = [] if same else by_stem.get((split, stem), [])
        if not found:
            found = [
                file
                for (other_split, other), files in by_stem.items()
                for file in files
                if other_split == split and re.match(re.escape(stem) + r"[_.-]", other)
                and file != image
            ]  # fmt: skip
        if len(found) > 1:
            raise ValueError(
                f"{image}: several labels fit, {[file.name for file in found[:5]]}. Keep one "
                "in the folder of --labels."
            )
        if found:
            pairs.append((image, found[0], relative))
            used.add(found[0])
        else:
            unlabelled.append(image)
    unlabelled = [image for image in unlabelled if image not in used]
    if not pairs:
        raise ValueError(
            f"no image of {images} has a label in {labels}. Expected files of the same name, or "
            "NAME_mask and the like; found "
            f"{[f.name for f in unlabelled[:3]]} and {[f.name for f in list(label_files)[:3]]}."
        )
    for what, files in (
        ("images without labels", unlabelled),
        ("labels without an image", [f for f in label_files if f not in used] if not same else []),
    ):
        if files:
            logger.warning("Left out: %d %s, such as %s", len(files), what, files[0])
    return pairs


def _items_of_pairs(images, labels, load):
    """Items of paired files, a page each where the images are stacks; ``load(file, page)``."""
    items = []
    for image, label, relative in pair_files(images, labels):
        name = _without_split(relative).with_suffix("").as_posix()
        pages = count_pages(image)
        for page in range(pages) if pages > 1 else [None]:
            suffix = "" if page is None else f"_{page:04d}"
            items.append(
                Item(name + suffix, image, _bind(load, label, page), _split_of(relative), page)
            )
    return items


def _bind(function, *args):
    return lambda: function(*args)


# ---------------------------------------------------------------------------- layouts
def components(mask):
    """Number the connected parts (8 neighbours) of a mask from 1: int (H, W)."""
    return ndimage.label(mask, EIGHT_NEIGHBOURS)[0]


def list_instances(images, labels, classes):
    """Label images: 0 = background, 1..N the objects of one class.

    A label image of a single value is a mask; its connected parts become the objects.

    Args:
        images, labels (Path): folders. classes: the background, or None for void, and the things.
    """
    background, _ = classes
    warned = []

    def load(file, page):
        ids = read_labels(file, page)
        values = np.unique(ids)
        if (values > 0).sum() == 1:
            parts = components(ids > 0)
            if parts.max() > 1 and not warned:
                warned.append(file)
                logger.warning(
                    "%s holds one value, so it is a mask: its connected parts become objects, and "
                    "so in further files.", file,
                )  # fmt: skip
            ids = parts
        return _objects_on_background(np.unique(ids, return_inverse=True), ids.shape, background)

    return _items_of_pairs(images, labels, load)


def _objects_on_background(unique, shape, background):
    values, numbers = unique
    numbers = numbers.reshape(shape) + (0 if values[0] == 0 else 1)  # 0 = background
    count = int(numbers.max())
    if background is None:
        return Labels(numbers, dict.fromkeys(range(1, count + 1), 0))
    return Labels(numbers + 1, {1: 0, **dict.fromkeys(range(2, count + 2), 1)})


def list_class_maps(images, labels, classes, void=()):
    """Maps of classes; the connected parts of a thing class become its instances.

    Args:
        images, labels (Path): folders.
        classes (list[ImportedClass]): with ``value`` s. void: values without a class.
    """

    def load(file, page):
        values = read_labels(file, page)
        known = {c.value for c in classes} | set(void)
        unknown = sorted(set(np.unique(values).tolist()) - known)
        if unknown:
            raise ValueError(
                f"{file} holds the values {[_show(v) for v in unknown[:10]]}, which --classes does "
                "not name. Add them, or give them to --void."
            )
        ids, category = np.zeros(values.shape, np.int64), {}
        for k, imported in enumerate(classes):
            mask = values == imported.value
            parts = components(mask) if imported.isthing else mask.astype(np.int64)
            offset = len(category)
            ids[mask] = parts[mask] + offset
            category.update(dict.fromkeys(range(offset + 1, offset + int(parts.max()) + 1), k))
        return Labels(ids, category)

    return _items_of_pairs(images, labels, load)


def _show(value):
    return f"#{value:06x}" if value > 255 else value


def values_of_maps(images, labels, most=20):
    """The values of the first class maps, with their share of the pixels, for an error."""
    total, counts = 0, defaultdict(int)
    for _, label, _ in pair_files(images, labels)[:most]:
        values, numbers = np.unique(read_labels(label), return_counts=True)
        total += numbers.sum()
        for value, number in zip(values.tolist(), numbers.tolist()):
            counts[value] += number
    shares = sorted(counts.items(), key=lambda item: -item[1])[:30]
    return ", ".join(f"{_show(value)} ({100 * n / total:.1f} %)" for value, n in shares)


def list_masks(root, classes):
    """The Data Science Bowl's layout: ``ID/images/*`` and ``ID/masks/*``, one mask an object.

    Args:
        root (Path): folder of the ``ID`` s, at any depth. classes: as in :func:`list_instances`.
    """
    background, _ = classes
    root, items = Path(root), []
    for folder in sorted(f.parent for f in root.rglob("images") if f.is_dir()):
        files = [f for f in sorted((folder / "images").iterdir()) if is_image(f)]
        masks = sorted(f for f in (folder / "masks").glob("*") if is_image(f))
        if len(files) != 1:
            raise ValueError(f"{folder}/images holds {len(files)} images, expected one.")
        if not masks:
            logger.warning("Left out: %s has no masks", folder)
            continue
        relative = folder.relative_to(root)
        name = _without_split(relative / "x").parent.as_posix()
        items.append(Item(name, files[0], _bind(_load_masks, masks, background),
                          _split_of(relative / "x")))  # fmt: skip
    if not items:
        raise ValueError(f"no ID/images beside an ID/masks under {root}.")
    return items


def _load_masks(files, background):
    ids = None
    for number, file in enumerate(files, start=1):
        mask = read_labels(file) > 0
        ids = np.zeros(mask.shape, np.int64) if ids is None else ids
        if mask.shape != ids.shape:
            raise ValueError(f"{file} is {mask.shape}, but {files[0]} is {ids.shape} (H, W).")
        ids[mask & (ids == 0)] = number  # the first of two that overlap keeps the pixel
    return _objects_on_background(np.unique(ids, return_inverse=True), ids.shape, background)


def list_coco(images, jsons, classes):
    """COCO instances: polygons, run lengths or both, with or without stuff.

    Smaller objects lie on top of larger ones; the annotations of a stuff class, and a class's
    crowds, become one segment each. What nobody annotated is background.

    Args:
        images (Path): folder. jsons (list[tuple[Path, str or None]]): files, and their split.
        classes (list[ImportedClass]): with category ids as values; from :func:`coco_classes`.
    """
    images, items = Path(images), []
    files = {f.as_posix(): images / f for f in list_files(images) if is_image(f)}
    by_name = defaultdict(list)
    for file in files.values():
        by_name[file.name].append(file)
    number = {c.value: k for k, c in enumerate(classes) if c.value is not None}
    rest = next((k for k, c in enumerate(classes) if c.value is None), None)
    for path, split in jsons:
        info = _read_coco(path)
        annotations = defaultdict(list)
        for annotation in info["annotations"]:
            annotations[annotation["image_id"]].append(annotation)
        if len({image["id"] for image in info["images"]}) < len(info["images"]):
            raise ValueError(f"{path}: several 'images' share an id. Number them anew.")
        for image in info["images"]:
            name = image["file_name"].replace("\\", "/")
            found = [files[name]] if name in files else by_name.get(Path(name).name, [])
            if len(found) != 1:
                raise ValueError(
                    f"{path}: {len(found)} images called {name} in {images}; expected one. Give "
                    "--images the folder that its file_name starts from."
                )
            relative = found[0].relative_to(images)
            load = _bind(_load_coco, path, image, annotations[image["id"]], classes, number, rest)
            items.append(Item(_without_split(relative).with_suffix("").as_posix(), found[0], load,
                              split or _split_of(relative)))  # fmt: skip
    return items


def _read_coco(path):
    try:
        info = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}. Is it complete?") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(info, dict) or not isinstance(info.get(key), list):
            raise ValueError(f"{path} has no list '{key}'; expected COCO's instances JSON.")
    return info


def coco_classes(path, stuff=(), background="background"):
    """The classes of a COCO JSON: ``isthing`` where it says so, otherwise things but for ``stuff``.

    Raises:
        ValueError: ``stuff`` names no category.
    """
    categories = _read_coco(path)["categories"]
    names = [c["name"] for c in categories]
    if set(stuff) - set(names):
        raise ValueError(f"--stuff: {sorted(set(stuff) - set(names))} is not among {names}.")
    classes = [
        ImportedClass(c["name"], bool(c.get("isthing", 1)) and c["name"] not in stuff, c["id"])
        for c in categories
    ]
    if background and background not in names:
        classes.insert(0, ImportedClass(background, False))
    return classes


def _load_coco(path, image, annotations, classes, number, rest):
    height, width = image["height"], image["width"]
    ids, category, crowd = np.zeros((height, width), np.int64), {}, set()
    shared = {}  # ids of what has one segment a class
    masks = []
    for annotation in annotations:
        if not annotation.get("segmentation"):
            raise ValueError(
                f"{path}: annotation {annotation.get('id')} has no segmentation. Boxes alone are "
                "not enough: masks or polygons are needed."
            )
        if annotation["category_id"] not in number:
            raise ValueError(
                f"{path}: annotation {annotation.get('id')} has the unknown category "
                f"{annotation['category_id']!r}."
            )
        masks.append((_decode(annotation["segmentation"], height, width), annotation))
    if rest is not None:
        ids[:], category[1] = 1, rest
    is_thing = {a["category_id"]: classes[number[a["category_id"]]].isthing for a in annotations}
    masks.sort(key=lambda pair: (is_thing[pair[1]["category_id"]], -int(pair[0].sum())))
    for mask, annotation in masks:
        k, is_crowd = number[annotation["category_id"]], bool(int(annotation.get("iscrowd", 0)))
        new = len(category) + 1
        if is_crowd or not classes[k].isthing:
            new = shared.setdefault((k, is_crowd), new)
        category[new] = k
        ids[mask] = new
        if is_crowd and classes[k].isthing:
            crowd.add(new)
    return Labels(ids, category, crowd)


def _decode(segmentation, height, width):
    if isinstance(segmentation, list):
        code = rle.merge(rle.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        code = rle.frPyObjects(segmentation, height, width)
    else:
        code = segmentation
    return rle.decode(code).astype(bool)


def cityscapes_classes():
    """Cityscapes' 19 classes, with their ids in ``*_instanceIds.png``."""
    from cityscapesscripts.helpers.labels import labels

    return [
        ImportedClass(label.name, label.hasInstances, label.id)
        for label in labels
        if label.trainId not in (-1, 255)
    ]


def list_cityscapes(root, classes):
    """Trees in the style of Cityscapes: ``*_leftImg8bit.*`` and ``*_instanceIds.png``.

    In the latter, ``1000 * class + i`` is the i-th instance; a value below 1000 is a class without
    instances, or a group of instances that nobody told apart. Other classes are void.

    Args:
        root (Path): folder above both. classes (list[ImportedClass]): with ids as values.
    """
    root, items = Path(root), []
    images = {
        f.name.rsplit("_leftImg8bit", 1)[0]: f for f in root.rglob("*_leftImg8bit.*") if is_image(f)
    }
    number = {c.value: k for k, c in enumerate(classes)}

    def load(file):
        ids = read_labels(file)
        values, numbers = np.unique(ids, return_inverse=True)
        category, crowd, new = {}, set(), np.zeros(len(values), np.int64)
        for i, value in enumerate(values.tolist()):
            k = number.get(value // 1000 if value >= 1000 else value)
            if k is None:
                continue
            new[i] = i + 1
            category[i + 1] = k
            if classes[k].isthing and value < 1000:
                crowd.add(i + 1)
        return Labels(new[numbers].reshape(ids.shape), category, crowd)

    for file in sorted(root.rglob("*_instanceIds.png")):
        stem = re.sub(r"_gt[A-Za-z]*_instanceIds$", "", file.stem).removesuffix("_instanceIds")
        if stem not in images:
            raise ValueError(f"{file}: no image {stem}_leftImg8bit.* under {root}.")
        relative = file.relative_to(root)
        items.append(Item(stem, images[stem], _bind(load, file), _split_of(relative)))
    if not items:
        raise ValueError(f"no *_instanceIds.png under {root}.")
    return items


# ---------------------------------------------------------------------------- groups of images
def with_groups(items, classes, group_of):
    """Give every group of images classes of its own, named ``class_group``.

    Images of other kinds (stained and fluorescent, say) differ more than their objects do.

    Args:
        items (list[Item]). classes (list[ImportedClass]).
        group_of (callable): item -> name of its group.

    Returns:
        (list[Item], list[ImportedClass])
    """
    groups = [group_of(item) for item in tqdm(items, desc="groups", leave=False)]
    names = sorted(set(groups))
    grouped = [replace(c, name=f"{c.name}_{name}") for c in classes for name in names]

    def load(item, group):
        labels = item.load()
        shift = names.index(group)
        moved = {i: k * len(names) + shift for i, k in labels.category.items()}
        return replace(labels, category=moved)

    return [
        replace(item, load=_bind(load, item, group)) for item, group in zip(items, groups)
    ], grouped


def by_brightness(item):
    """The group "dark" or "light" of an image, by its median."""
    reader = ImageReader("L", "percentile", page=-1 if item.page is None else item.page, channels=1)
    return "light" if np.median(reader(item.image)) >= 128 else "dark"


def groups_of_file(path):
    """A function from an item to its group, from a CSV of names (without ending) and groups."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        table = {row[0].strip(): row[1].strip() for row in csv.reader(file) if len(row) > 1}

    def group_of(item):
        for name in (item.name, item.image.name, item.image.stem):
            if name in table:
                return table[name]
        raise ValueError(f"{path} has no line for {item.name}. Expected 'name,group'.")

    return group_of


# ---------------------------------------------------------------------------- writing
def choose_splits(items, val=0.2, seed=0):
    """Fill in the splits: folders called train and val decide, otherwise a seeded draw of images.

    All pages of a stack stay together. Images of a "test" split become "val" where there is no
    "val", and are left out otherwise.

    Raises:
        ValueError: fewer than two images, or a split without any.
    """
    said = {item.split for item in items}
    if "train" in said and said & {"val", "test"}:
        keep = {"train": "train", ("val" if "val" in said else "test"): "val"}
        kept = [replace(item, split=keep[item.split]) for item in items if item.split in keep]
        if len(kept) < len(items):
            logger.warning("Left out: %d images outside train and val", len(items) - len(kept))
        return kept
    files = sorted({item.image for item in items})
    if len(files) < 2:
        if len(items) < 2:
            raise ValueError("one image only: training and validation need one each (see --tile).")
        files = None  # one stack: its pages are divided
    keys = files or list(range(len(items)))
    order = np.random.default_rng(seed).permutation(len(keys))
    count = min(max(1, round(val * len(keys))), len(keys) - 1)
    chosen = {keys[i] for i in order[:count]}
    return [
        replace(item, split="val" if (item.image if files else i) in chosen else "train")
        for i, item in enumerate(items)
    ]


def write_dataset(folder, items, classes, *, tile=0, min_area=0):
    """Write a COCO-panoptic dataset, all of it or nothing.

    Args:
        folder (Path): made anew, with ``{train,val}``, ``panoptic_{train,val}`` and their JSONs.
        items (list[Item]): with a split, "train" or "val".
        classes (list[ImportedClass]): K.
        tile (int): cut images into tiles of at most so many pixels a side; 0: leave them whole.
        min_area (int): segments of things with fewer pixels become void.

    Returns:
        dict: images and segments of each split.

    Raises:
        FileExistsError: ``folder`` is there already.
        ValueError: an image or its labels are wrong; it names the files.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists. Move it away, or choose another name.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    truths = {split: {"images": [], "annotations": []} for split in ("train", "val")}
    names = set()
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        made = Path(scratch) / "made"
        for item in tqdm(items, desc=f"writing {folder.name}", unit="image"):
            if (item.split, item.name.lower()) in names:
                raise ValueError(f"two images are called {item.name} ({item.image}). Rename one.")
            names.add((item.split, item.name.lower()))
            labels = item.load()
            size = image_size(item.image)
            if labels.ids.shape != size:
                raise ValueError(
                    f"{item.image} is {size} pixels (height, width), but its labels are "
                    f"{labels.ids.shape}."
                )
            for name, image, part in _tiles(item, labels, tile):
                _write_image(made / item.split, name, image, part, labels, min_area, classes,
                             truths[item.split])  # fmt: skip
        categories = [
            {"id": k + 1, "name": c.name, "isthing": int(c.isthing)} for k, c in enumerate(classes)
        ]
        for split, truth in truths.items():
            if not truth["images"]:
                raise ValueError(f"no image for the {split} split.")
            text = json.dumps({**truth, "categories": categories})
            (made / f"panoptic_{split}.json").write_text(text)
        made.rename(folder)
    return {
        split: {
            "images": len(truth["images"]),
            "segments": sum(len(a["segments_info"]) for a in truth["annotations"]),
        }
        for split, truth in truths.items()
    }


def _tiles(item, labels, tile):
    """(name, image, ids) of each part: the image a path, to be copied, or pixels."""
    height, width = labels.ids.shape
    if item.page is None and (not tile or max(height, width) <= tile):
        yield item.name, item.image, labels.ids
        return
    pixels, _ = read_pixels(item.image, item.page)
    tile = tile or max(height, width)
    rows, columns = (np.linspace(0, n, -(-n // tile) + 1).astype(int) for n in (height, width))
    for top, bottom in pairwise(rows):
        for left, right in pairwise(columns):
            cut = np.s_[top:bottom, left:right]
            suffix = f"_y{top}_x{left}" if len(rows) + len(columns) > 4 else ""
            yield item.name + suffix, pixels[cut], labels.ids[cut]


def _write_image(root, name, image, ids, labels, min_area, classes, truth):
    """Write an image and its PNG, and add them to the JSON's content."""
    segments, painted = [], np.zeros(ids.shape, np.int64)
    for i, area in zip(*(a.tolist() for a in np.unique(ids, return_counts=True))):
        category = labels.category.get(i)
        if category is None or (classes[category].isthing and area < min_area):
            continue
        new = len(segments) + 1
        painted[ids == i] = new
        segments.append(
            {
                "id": new,
                "category_id": category + 1,
                "area": area,
                "iscrowd": int(i in labels.crowd),
            }
        )
    if isinstance(image, Path):
        file = root / f"{name}{image.suffix.lower()}"
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(image, file)
    else:
        file = write_pixels(root / name, image)
    png = root.parent / f"panoptic_{root.name}" / f"{name}.png"
    png.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(id2rgb(painted)).save(png)
    number = len(truth["images"]) + 1
    height, width = ids.shape
    truth["images"].append(
        {"id": number, "file_name": file.relative_to(root).as_posix(), "height": height,
         "width": width}
    )  # fmt: skip
    truth["annotations"].append(
        {"image_id": number, "file_name": f"{name}.png", "segments_info": segments}
    )


def write_pixels(path, pixels):
    """Write pixels (H, W, C) of any type without loss, as PNG or else as TIFF; returns the file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = pixels.shape[2]
    if pixels.dtype == np.uint8 and channels in (1, 3):
        file = path.with_name(path.name + ".png")
        Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(file)
        return file
    file = path.with_name(path.name + ".tif")
    if channels in (3, 4):
        tifffile.imwrite(file, pixels, photometric="rgb", compression="zlib")
    else:
        planes = np.ascontiguousarray(np.moveaxis(pixels, 2, 0))
        tifffile.imwrite(
            file, planes[0] if channels == 1 else planes, photometric="minisblack",
            compression="zlib", metadata={"axes": "YX" if channels == 1 else "CYX"},
        )  # fmt: skip
    return file
