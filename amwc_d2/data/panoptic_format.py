"""The COCO-panoptic format: a JSON and its PNGs, read into Detectron2's dataset dicts and checked.

Every error names the file, the image, the id and the way to mend it.

Shape shorthand: H, W an image's height and width, K the classes.
"""

import json
import logging
import os
from pathlib import Path

import numpy as np
from panopticapi.utils import rgb2id
from PIL import Image

from amwc_d2.data.images import is_image

logger = logging.getLogger(__name__)

MAX_REPORTED = 10  # ids listed in one error
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
def read_panoptic_json(path):
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"{path} does not exist. A panoptic dataset needs its JSON there: see "
            "datasets/README.md, or register another path with register_panoptic_dataset()."
        )
    with open(path, encoding="utf-8") as file:
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
        for key in ("id", "category_id", "area", "iscrowd"):  # panopticapi needs all of them
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
        converted.append({**segment, "category_id": contiguous, "isthing": isthing})
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
            f"{where}: no image {listed_name or stem + '.*'} in {self.image_root}. Add it, or pass "
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
            if png.mode not in ("RGB", "RGBA"):
                raise ValueError(
                    f"{path} has mode {png.mode}, expected RGB: a panoptic PNG holds an id as "
                    "R + 256 G + 65536 B (panopticapi.utils.id2rgb writes it so)."
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


def check_segment_ids(panoptic, segments_info, source):
    """Check that a panoptic map and its JSON entry name the same segments.

    Args:
        panoptic (ndarray): ids, integer (H, W), 0 = void.
        segments_info (list[dict]): the entry's segments.
        source (str): the PNG, for the error.

    Raises:
        ValueError: an id is in one of the two only.
    """
    painted = set(np.unique(panoptic).tolist()) - {0}
    listed = {segment["id"] for segment in segments_info}
    if painted - listed:
        raise ValueError(
            f"{source}: the PNG has ids {sorted(painted - listed)[:MAX_REPORTED]}, which the "
            "JSON's segments_info does not list. List them, or paint them 0 (void)."
        )
    if listed - painted:
        raise ValueError(
            f"{source}: segments_info lists ids {sorted(listed - painted)[:MAX_REPORTED]}, which "
            "the PNG does not have. Remove them from the JSON, or paint them."
        )


def check_sample(panoptic, sample):
    png = sample["pan_seg_file_name"]
    check_segment_ids(panoptic, sample["segments_info"], png)
    with Image.open(sample["file_name"]) as image:
        if image.size != panoptic.shape[::-1]:
            raise ValueError(
                f"{png} is {panoptic.shape[::-1]} pixels (width, height), but "
                f"{sample['file_name']} is {image.size}. Both must have the same size."
            )
    ids, counts = np.unique(panoptic, return_counts=True)
    areas = dict(zip(ids.tolist(), counts.tolist()))
    for segment in sample["segments_info"]:
        if segment["area"] != areas[segment["id"]]:
            raise ValueError(
                f"{png}: segment {segment['id']} has area {segment['area']} in the JSON and "
                f"{areas[segment['id']]} pixels in the PNG. The panoptic quality uses the JSON's: "
                "write the number of pixels there."
            )
