"""Checks of panoptic data that cost too much, or come too early, to run while loading.

``check_panoptic_metadata`` runs once when a model is built. ``check_panoptic_dataset`` opens every
PNG of a dataset: run it once on new data. ``check_segment_ids`` is the check of one sample.

Shape shorthand: H, W an image's height and width, K the classes.
"""

import difflib

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from panopticapi.utils import rgb2id
from PIL import Image
from tqdm import tqdm

MAX_REPORTED = 10


def check_panoptic_metadata(*names):
    """Check that datasets are registered, complete, and agree on their classes.

    Args:
        names (str): datasets that one model is trained or evaluated on.

    Returns:
        Metadata: the first one's.

    Raises:
        KeyError: a name is not registered.
        ValueError: a metadata field is missing or wrong, or two datasets differ in their classes.
    """
    for name in names:
        if name not in DatasetCatalog:
            close = difflib.get_close_matches(name, list(DatasetCatalog), n=3)
            raise KeyError(
                f"Dataset '{name}' is not registered. {f'Did you mean {close}? ' if close else ''}"
                "A folder NAME with panoptic_train.json under $DETECTRON2_DATASETS becomes "
                "NAME_panoptic_train; register_panoptic_dataset() takes any other layout."
            )
        _check_fields(name, MetadataCatalog.get(name))
    first = MetadataCatalog.get(names[0])
    for name in names[1:]:
        _check_same_classes(first, MetadataCatalog.get(name))
    return first


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


def read_panoptic_png(path):
    """Read a panoptic PNG as ids, int32 (H, W): R + 256 G + 65536 B, 0 = void."""
    with Image.open(path) as png:
        if png.mode not in ("RGB", "RGBA"):
            raise ValueError(
                f"{path} has mode {png.mode}, expected RGB: a panoptic PNG holds an id as "
                "R + 256 G + 65536 B (panopticapi.utils.id2rgb writes it so)."
            )
        return rgb2id(np.asarray(png.convert("RGB"))).astype(np.int32)


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


def check_panoptic_dataset(name, progress=True):
    """Open every PNG and image header of a dataset and check them against the JSON.

    Args:
        name (str): a registered dataset.
        progress (bool): show a progress bar.

    Returns:
        dict: ``images``, ``segments``, ``crowd_segments`` (counts) and ``void_fraction`` (of all
        pixels).

    Raises:
        ValueError: lists up to ten wrong samples: ids that only one side knows, an area that is not
            the number of pixels, an image and a PNG of different sizes, a file that does not open.
    """
    check_panoptic_metadata(name)
    samples = DatasetCatalog.get(name)
    problems, void, pixels = [], 0, 0
    for sample in tqdm(samples, desc=f"checking {name}", unit="image", disable=not progress):
        try:
            panoptic = read_panoptic_png(sample["pan_seg_file_name"])
            _check_sample(panoptic, sample)
        except (OSError, ValueError) as error:
            problems.append(f"{type(error).__name__}: {error}")
            continue
        void, pixels = void + int((panoptic == 0).sum()), pixels + panoptic.size
    if problems:
        shown = "\n  ".join(problems[:MAX_REPORTED])
        raise ValueError(f"{len(problems)} of {len(samples)} samples of '{name}':\n  {shown}")
    segments = [segment for sample in samples for segment in sample["segments_info"]]
    return {
        "images": len(samples),
        "segments": len(segments),
        "crowd_segments": sum(segment.get("iscrowd", 0) for segment in segments),
        "void_fraction": void / pixels,
    }


def _check_sample(panoptic, sample):
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
