"""The COCO-panoptic format: a JSON and its PNGs, read into Detectron2's dataset dicts and checked.

Every error names the file, the image, the id and the way to mend it.

Shape shorthand: H, W an image's height and width, K the classes.
"""

import functools
import json
import logging
import numbers
import os
import posixpath
import unicodedata
from collections import Counter
from pathlib import Path, PurePath

import numpy as np
from panopticapi.utils import rgb2id
from PIL import Image

from amwc_d2.data.images import is_image, list_files

logger = logging.getLogger(__name__)

MAX_REPORTED = 10  # ids listed in one error
LARGE_JSON = 64 << 20  # bytes; larger ones are parsed anew each time rather than kept
CLASS_KEYS = (
    "thing_classes",
    "thing_colors",
    "stuff_classes",
    "stuff_colors",
    "thing_dataset_id_to_contiguous_id",
    "stuff_dataset_id_to_contiguous_id",
)


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
        if not is_flag(category["isthing"]):
            raise ValueError(
                f"{source}: category {category['id']!r} has isthing {category['isthing']!r}; "
                "expected the number 1 (things) or 0 (stuff)."
            )
        color = category.get("color")
        if color is not None and (
            len(color) != 3 or any(not is_integer(c) or not 0 <= c < 256 for c in color)
        ):
            raise ValueError(
                f"{source}: category {category['id']!r} has colour {color}; expected three "
                "integers from 0 to 255, or none."
            )
        name = category["name"]
        if not isinstance(name, str) or any(unicodedata.category(c) in ("Cc", "Cs") for c in name):
            raise ValueError(
                f"{source}: category {category['id']} has the name {name!r}; expected text without "
                "control characters and surrogates, for names are written to logs and files."
            )
    ids = [category["id"] for category in categories]
    if not ids or len(set(ids)) < len(ids):
        raise ValueError(f"{source}: category ids must be there and differ, got {ids}.")
    names = [category["name"] for category in categories]
    if len(set(names)) < len(names):
        twice = sorted(name for name, count in Counter(names).items() if count > 1)
        raise ValueError(
            f"{source}: several categories are called {twice}. Results are listed by name: give "
            "each category its own."
        )
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


def is_integer(value):
    """Tell whether a JSON's value is an integer; true, false and "1" are not."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_flag(value):
    """Tell whether a JSON's value is 0, 1, false or true; texts such as "0" are not."""
    return isinstance(value, (bool, numbers.Integral)) and value in (0, 1)


# ---------------------------------------------------------------------------- loading
def read_panoptic_json(path):
    """Read a COCO-panoptic JSON; file names in it come with forward slashes and without "./".

    Small ones are kept until the file changes: classes, samples and evaluators all read them.

    Returns:
        dict: not to be changed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not in COCO-panoptic format.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"{path} does not exist. A panoptic dataset needs its JSON there: see "
            "datasets/README.md, or register another path with register_panoptic_dataset()."
        )
    state = os.stat(path)
    parse = _parse_json if state.st_size < LARGE_JSON else _parse_json.__wrapped__
    return parse(os.fspath(path), state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=4)
def _parse_json(path, _time, _size):
    with open(path, encoding="utf-8-sig") as file:  # Windows' programs write a byte-order mark
        try:
            info = json.load(file)
        except ValueError as error:
            raise ValueError(
                f"{path} is not JSON: {error}. Is it complete? Write or copy it again."
            ) from error
    for key in ("annotations", "categories"):
        if not isinstance(info, dict) or not isinstance(info.get(key), list):
            raise ValueError(
                f"{path} has no list '{key}', so it is not in COCO-panoptic format. Expected "
                '{"images": [...], "annotations": [...], "categories": [...]}.'
            )
    annotations = info["annotations"]
    if any("segmentation" in annotation for annotation in annotations[:1]):
        raise ValueError(
            f"{path} is an instances JSON of COCO: one annotation for each object, with polygons "
            "or run lengths. tools/import_dataset.py --layout coco makes a panoptic dataset of it."
        )
    for entry in (*annotations, *info.get("images", [])):
        if isinstance(entry.get("file_name"), str):
            entry["file_name"] = posixpath.normpath(entry["file_name"].replace("\\", "/"))
    return info


def load_panoptic_json(panoptic_json, image_root, panoptic_root, image_suffix=None):
    """Load a COCO-panoptic JSON as Detectron2's dataset dicts.

    Args:
        panoptic_json, image_root, panoptic_root, image_suffix: as in
            :func:`register_panoptic_dataset`.

    Returns:
        list[dict]: ``file_name``, ``image_id`` (as in the JSON), ``pan_seg_file_name``,
        ``segments_info`` (contiguous ``category_id``, ``isthing`` and the JSON's other fields),
        and ``height``, ``width`` where ``images`` has them.

    Raises:
        FileNotFoundError: the JSON, an image or a PNG is missing.
        ValueError: an entry is wrong; the message names the file, the image, the id and the fix.
    """
    info = read_panoptic_json(panoptic_json)
    classes = class_metadata(info["categories"], panoptic_json)
    images = _images_by_id(info.get("images", []), panoptic_json)
    find_image = _ImageFinder(image_root, image_suffix)
    pngs = _list_files(panoptic_root)
    samples, users = [], {}  # users: image ids by what may be used once only
    for annotation in info["annotations"]:
        for key in ("image_id", "file_name", "segments_info"):
            if key not in annotation:
                raise ValueError(
                    f"{panoptic_json}: the annotation of image {annotation.get('image_id')} has no "
                    f"'{key}'. Expected image_id, file_name (of the PNG) and segments_info, as in "
                    "COCO's panoptic JSON (an instances JSON is another thing)."
                )
        image_id, png = annotation["image_id"], annotation["file_name"]
        if not png.lower().endswith(".png"):
            raise ValueError(
                f"{panoptic_json}: the labels of image {image_id!r} are called {png}; expected a "
                "name in .png. Predictions are written under the same name, and JPEG would change "
                "their ids: save or rename the labels as PNG."
            )
        if png not in pngs:
            raise FileNotFoundError(
                f"{Path(panoptic_root) / png} does not exist, but {panoptic_json} names it for "
                f"image {image_id}. Add the PNG, or remove the annotation."
            )
        where = f"{panoptic_json}: image {image_id} ({png})"
        if images and image_id not in images:
            raise ValueError(
                f"{where}: 'images' does not list id {image_id!r}, its ids look like "
                f'{next(iter(images))!r}. List the image, or correct image_id (1 and "1" differ).'
            )
        image = images.get(image_id, {})
        file = find_image(png, image.get("file_name"), where)
        for what in (f"image id {image_id!r}", f"labels {png}", f"image {file}"):
            if what in users:
                raise ValueError(
                    f"{panoptic_json}: two annotations, of {users[what]} and of {file} with {png}, "
                    f"share the {what}. Give every image an id, a file and an annotation of its own"
                    " (image ids may overlap where JSONs were merged)."
                )
            users[what] = f"{file} with {png}"
        sample = {
            "file_name": os.path.join(image_root, file),
            "image_id": image_id,
            "pan_seg_file_name": os.path.join(panoptic_root, png),
            "segments_info": _convert_segments(annotation["segments_info"], classes, where),
        }
        sample.update((key, image[key]) for key in ("height", "width") if key in image)
        samples.append(sample)
    if not samples:
        raise ValueError(f"{panoptic_json}: 'annotations' is empty, so there is nothing to load.")
    logger.info("Loaded %d images from %s", len(samples), panoptic_json)
    if len(images) > len(samples):
        logger.warning(
            "%s: %d of %d images have no annotation and are left out",
            panoptic_json, len(images) - len(samples), len(images),
        )  # fmt: skip
    return samples


def _images_by_id(images, panoptic_json):
    by_id, files = {}, {}
    for image in images:
        for key in ("id", "file_name"):
            if key not in image:
                raise ValueError(f"{panoptic_json}: the entry {image} of 'images' has no '{key}'.")
        for table, key in ((by_id, "id"), (files, "file_name")):
            other = table.setdefault(image[key], image)
            if other is not image:
                raise ValueError(
                    f"{panoptic_json}: 'images' has two entries with {key} {image[key]!r}: "
                    f"{other['file_name']} (id {other['id']!r}) and {image['file_name']} (id "
                    f"{image['id']!r}). Were two JSONs merged? Number the images anew, in "
                    "'annotations' too."
                )
    return by_id


def _convert_segments(segments_info, classes, where):
    things, stuff = (classes[f"{kind}_dataset_id_to_contiguous_id"] for kind in ("thing", "stuff"))
    converted, seen = [], set()
    for segment in segments_info:
        for key in ("id", "category_id", "area", "iscrowd"):  # panopticapi needs all of them
            if key not in segment:
                raise ValueError(f"{where}: segment {segment} has no '{key}'. Add it to the JSON.")
        category, number = segment["category_id"], segment["id"]
        if not is_flag(segment["iscrowd"]):
            raise ValueError(
                f"{where}: segment {number} has iscrowd {segment['iscrowd']!r}; expected the "
                "number 0 or 1. Correct the JSON."
            )
        if not isinstance(segment["area"], numbers.Real) or segment["area"] < 0:
            raise ValueError(
                f"{where}: segment {number} has area {segment['area']!r}; expected its number of "
                "pixels."
            )
        if category not in things and category not in stuff:
            raise ValueError(
                f"{where}: segment {number} has the unknown category {category!r}; known are "
                f"{sorted([*things, *stuff], key=str)}. Add it to the JSON's categories, or "
                'correct the segment (1 and "1" differ).'
            )
        if not is_integer(number) or not 0 < number < 1 << 24:
            raise ValueError(
                f"{where}: segment id {number!r}; expected an integer from 1 to 16777215, as the "
                "PNG's colours can hold (0 means void)."
            )
        if number in seen:
            raise ValueError(
                f"{where}: segment id {number} comes twice. "
                "Give every segment its own id, and paint it so in the PNG."
            )
        seen.add(segment["id"])
        isthing = category in things
        contiguous = things[category] if isthing else stuff[category]
        converted.append({**segment, "category_id": contiguous, "isthing": isthing})
    return converted


def check_inside(file_name, source):
    """Check that a file name of a JSON leads to no place but below the folder that it is for.

    Predictions are written under the names of the ground truth.

    Raises:
        ValueError: an absolute path, or one with "..".
    """
    path = PurePath(str(file_name))
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(
            f"{source}: the file_name {file_name!r} leads out of its folder; expected a relative "
            "path without '..'. Correct the JSON; if it is not yours, do not trust it."
        )


def _list_files(root):
    """List the files under ``root`` as a set of relative paths with forward slashes."""
    if not os.path.isdir(root):
        raise FileNotFoundError(
            f"{root} is not a folder. Create it, or register the right one with "
            "register_panoptic_dataset()."
        )
    return {path.as_posix() for path in list_files(root)}


class _ImageFinder:
    """Finds the image of a panoptic PNG among the files under ``image_root``."""

    def __init__(self, image_root, suffix=None):
        self.image_root, self.suffix = image_root, suffix
        self.files = _list_files(image_root)
        self.by_stem = {}
        for file in sorted(self.files):
            if is_image(file):
                self.by_stem.setdefault(os.path.splitext(file)[0], []).append(file)

    def __call__(self, png, listed_name, where):
        """Return the image's relative path; ``listed_name`` is its name in ``images``, or None."""
        stem = os.path.splitext(png)[0]
        if self.suffix is not None:
            if stem + self.suffix in self.files:
                return stem + self.suffix
            raise FileNotFoundError(
                f"{where}: no image {stem + self.suffix} in {self.image_root}. Add it, or correct "
                f"image_suffix '{self.suffix}': the image's name is the PNG's stem and that."
            )
        if listed_name in self.files:
            found = [listed_name]
        elif listed_name is not None:
            near = self.by_stem.get(os.path.splitext(listed_name)[0]) or self.by_stem.get(stem)
            raise FileNotFoundError(
                f"{where}: no image {listed_name} in {self.image_root}, as 'images' calls it. "
                + (f"{near[0]} is there: if that is it, name it so. " if near else "")
                + "Add the image, or correct its file_name."
            )
        else:
            found = self.by_stem.get(stem, [])
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(
                f"{where}: several images fit, {found}. List the right one under 'images', or pass "
                "image_suffix to register_panoptic_dataset()."
            )
        raise FileNotFoundError(
            f"{where}: no image {stem}.* in {self.image_root}. Add it, or pass "
            "image_suffix to register_panoptic_dataset() if images are named after the PNGs with "
            "another ending."
        )


# ---------------------------------------------------------------------------- checking
def read_panoptic_colors(path):
    """Read a panoptic PNG as it is, uint8 (H, W, 3): id = R + 256 G + 65536 B, 0 = void.

    Raises:
        ValueError: it is damaged or no RGB image.
    """
    try:
        with Image.open(path) as png:
            if png.format in ("JPEG", "MPO", "WEBP"):
                raise ValueError(
                    f"{path} is a {png.format} file whatever its name: compression changed its "
                    "ids. Write the labels as PNG again, from where they came from."
                )
            if png.mode not in ("RGB", "RGBA"):
                raise ValueError(
                    f"{path} has mode {png.mode}, expected RGB: a panoptic PNG holds an id as "
                    "R + 256 G + 65536 B (panopticapi.utils.id2rgb writes it so). "
                    "tools/import_dataset.py makes panoptic labels of a grey or palette image of "
                    "classes or instances."
                )
            return np.asarray(png.convert("RGB"))
    except (OSError, SyntaxError) as error:
        if getattr(error, "errno", None):
            raise
        raise ValueError(
            f"{path} cannot be read ({error}). Is it complete? Copy or export it again."
        ) from error


def read_panoptic_png(path):
    """Read a panoptic PNG as ids, int32 (H, W): R + 256 G + 65536 B, 0 = void."""
    return rgb2id(read_panoptic_colors(path)).astype(np.int32)


def check_image_size(sample, image, labels=None):
    """Check an image, as it was read, against the JSON's size and its labels.

    Args:
        sample (dict): of the DatasetCatalog.
        image (ndarray): (H, W, ...), upright. labels (ndarray, optional): (H, W, ...).

    Raises:
        ValueError: the sizes differ.
    """
    size = image.shape[1::-1]
    for key, side in (("width", size[0]), ("height", size[1])):
        if sample.get(key, side) != side:
            raise ValueError(
                f"{sample['file_name']} is {size} pixels (width, height), but the JSON's 'images' "
                f"give it the {key} {sample[key]}. Write the upright image's size there."
            )
    if labels is not None and labels.shape[1::-1] != size:
        raise ValueError(
            f"{sample['pan_seg_file_name']} is {labels.shape[1::-1]} pixels (width, height), but "
            f"{sample['file_name']} is {size}. Both must have the same size."
        )


def label_problems(panoptic, sample, metadata):
    """What is wrong with the labels of an image.

    Args:
        panoptic (ndarray): ids, integer (H, W), 0 = void.
        sample (dict): of the DatasetCatalog.
        metadata (Metadata): of the dataset.

    Returns:
        list[str]: a text for each problem, naming the PNG and the fix.
    """
    png, segments = sample["pan_seg_file_name"], sample["segments_info"]
    ids, counts = np.unique(panoptic, return_counts=True)
    areas = {i: n for i, n in zip(ids.tolist(), counts.tolist()) if i}
    listed = {segment["id"] for segment in segments}
    problems = []
    if areas.keys() - listed:
        cause = _cause_of_unknown_ids(set(areas), listed, metadata)
        problems.append(
            f"{png}: the PNG has ids {sorted(areas.keys() - listed)[:MAX_REPORTED]}, which the "
            f"JSON's segments_info does not list. {cause}"
        )
    elif listed - areas.keys():
        problems.append(
            f"{png}: segments_info lists ids {sorted(listed - areas.keys())[:MAX_REPORTED]}, which "
            "the PNG does not have. Remove them from the JSON, or paint them."
        )
    things = set(metadata.thing_dataset_id_to_contiguous_id.values())
    of_class = {}
    for segment in segments:
        category, crowd = segment["category_id"], bool(segment["iscrowd"])
        if not problems and segment["area"] != areas[segment["id"]]:
            problems.append(
                f"{png}: segment {segment['id']} has area {segment['area']} in the JSON and "
                f"{areas[segment['id']]} pixels in the PNG. The panoptic quality uses the JSON's: "
                "write the number of pixels there."
            )
        if crowd or category not in things:
            of_class.setdefault((category, crowd), []).append(segment["id"])
    for (category, crowd), several in of_class.items():
        if len(several) > 1:
            name = metadata.stuff_classes[category]
            what = f"crowd regions of class '{name}'" if crowd else f"segments of stuff '{name}'"
            reason = (
                "the panoptic quality knows one a class and image, and punishes the others"
                if crowd
                else "a model gives one a class and image, so that none can match them"
            )
            problems.append(
                f"{png}: {len(several)} {what} (ids {several[:MAX_REPORTED]}); {reason}. Give them "
                "one id together, in the PNG and in the JSON."
            )
    return problems


def _cause_of_unknown_ids(painted, listed, metadata):
    """The likely reason for ids that nobody listed, and what to do about it."""
    unknown = painted - listed
    swapped = {i >> 16 | (i & 0xFF00) | (i & 0xFF) << 16 for i in painted}
    if swapped <= listed:
        return (
            "Red and blue are swapped: OpenCV writes BGR. Write the PNGs with Pillow, or pass "
            "cv2.imwrite the colours in reverse, id2rgb(ids)[..., ::-1]."
        )
    colors = {r + 256 * g + 65536 * b for r, g, b in metadata.stuff_colors}
    if painted <= colors:
        return (
            "They are the colours of the classes: the PNG is a map of classes, where each segment "
            "needs a colour of its own. tools/import_dataset.py --layout classes makes one."
        )
    if len(unknown) > 10 + 2 * len(listed):
        return (
            "So many come of JPEG compression, or of resizing by interpolation: keep labels as PNG "
            "and resize them with the nearest pixel's."
        )
    if all(i % 0x010101 == 0 for i in unknown):
        return (
            "They are grey: the PNG is a grey image of ids, saved as RGB. Write the colours of "
            "panopticapi.utils.id2rgb(ids), or see tools/import_dataset.py."
        )
    return (
        "List them, or paint them 0 (void). If the PNG shows classes in colours, "
        "tools/import_dataset.py --layout classes makes panoptic labels of it."
    )
