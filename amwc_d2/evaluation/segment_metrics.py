"""Matching of predicted with true segments, and the quality measures that follow from it.

The matching is that of the panoptic metric (Kirillov et al., "Panoptic Segmentation", 2019, as in
panopticapi); the boundary variant is that of Cheng et al., "Boundary IoU", 2021.

Shape shorthand in this module:

    H, W: the image    G, P: true and predicted segments of an image    K: classes
    R: records, one for each matched pair, false positive and miss
"""

import numpy as np
from scipy import ndimage

TRUE_POSITIVE, FALSE_POSITIVE, MISS = range(3)

# Areas are in pixels: of the true segment for matched pairs and misses, else of the predicted one.
RECORD = np.dtype([("category", "i8"), ("outcome", "i1"), ("area", "i8"), ("iou", "f8")])


def index_map(ids, segments_info, what):
    """Turn ids into positions in ``segments_info``.

    Args:
        ids: int array (H, W) of segment ids; 0 is void.
        segments_info: list of dicts with ``id``.
        what: how errors call this map.

    Returns:
        int64 array (H, W): 0 for void, otherwise 1 + the position in ``segments_info``.

    Raises:
        ValueError: an id in the map that is not listed, or a listed id that is not in the map.
    """
    listed = np.array([0] + [segment["id"] for segment in segments_info])
    order = np.argsort(listed, kind="stable")
    place = np.searchsorted(listed, ids, sorter=order).clip(max=len(listed) - 1)
    index = order[place]
    unlisted = listed[index] != ids
    if unlisted.any():
        raise ValueError(
            f"{what} has segment id {int(ids[unlisted][0])}, which its segments_info does not "
            "list. List every id but 0 (void)."
        )
    present = np.bincount(index.ravel(), minlength=len(listed)) > 0
    if not present[1:].all():
        raise ValueError(
            f"the segments_info of {what} lists id {int(listed[1:][~present[1:]][0])}, which no "
            "pixel has. List only ids that are in the map."
        )
    return index


def overlaps(true, pred, num_true, num_pred):
    """Count the pixels of every pair of segments.

    Args:
        true, pred: int64 arrays of one shape, from :func:`index_map`.
        num_true, num_pred: G and P.

    Returns:
        int64 array (1 + G, 1 + P); row and column 0 are void.
    """
    pairs = np.bincount(
        (true * (num_pred + 1) + pred).ravel(), minlength=(num_true + 1) * (num_pred + 1)
    )
    return pairs.reshape(num_true + 1, num_pred + 1)


def boundary(index, dilation):
    """Find the pixels at most ``dilation`` pixels inside the border of their segment.

    Args:
        index: int array (H, W) of segments; the image's border is a border as well.
        dilation: width in pixels, in the maximum norm.

    Returns:
        bool array (H, W).
    """
    size = 2 * dilation + 1
    outside = {"size": size, "mode": "constant", "cval": -1}
    low = ndimage.minimum_filter(index.astype(np.int32), **outside)
    high = ndimage.maximum_filter(index.astype(np.int32), **outside)
    return low != high


def match_segments(true, pred, true_info, pred_info, boundary_ratio=None):
    """Match predicted with true segments: same category and IoU above one half.

    True areas are those in ``true_info``, as in panopticapi. Void takes no part in a union; crowd
    segments cannot be matched; an unmatched prediction of which more than half lies on void and on
    the crowd of its category is neither right nor wrong.

    Args:
        true, pred: int64 arrays (H, W) from :func:`index_map`.
        true_info: G dicts with ``category_id``, ``iscrowd`` and ``area``.
        pred_info: P dicts with ``category_id``.
        boundary_ratio: None for the plain IoU; otherwise the IoU is the smaller of the plain one
            and of that between the two boundaries, this share of the image's diagonal wide.

    Returns:
        array (R,) of dtype ``RECORD``.
    """
    num_true, num_pred = len(true_info), len(pred_info)
    pairs = overlaps(true, pred, num_true, num_pred)
    true_category = np.array([-1] + [segment["category_id"] for segment in true_info])
    pred_category = np.array([-2] + [segment["category_id"] for segment in pred_info])
    crowd = np.array([0] + [segment["iscrowd"] for segment in true_info], dtype=bool)
    true_area = np.array([0] + [segment["area"] for segment in true_info])
    pred_area = pairs.sum(0)

    candidate = (pairs > 0) & (true_category[:, None] == pred_category) & ~crowd[:, None]
    g, p = np.nonzero(candidate)
    iou = pairs[g, p] / (true_area[g] + pred_area[p] - pairs[g, p] - pairs[0, p])
    if boundary_ratio is not None:
        iou = np.minimum(iou, _boundary_iou(true, pred, num_true, num_pred, boundary_ratio)[g, p])
    matched = iou > 0.5
    g, p, iou = g[matched], p[matched], iou[matched]

    missed = ~crowd
    missed[0] = False
    missed[g] = False
    wrong = np.ones(num_pred + 1, dtype=bool)
    wrong[0] = False
    wrong[p] = False
    ignored = pairs[0].copy()
    # panopticapi knows one crowd segment for each category, the last one listed.
    last_crowd = {true_category[i]: i for i in np.flatnonzero(crowd)}
    for category, i in last_crowd.items():
        ignored += np.where(pred_category == category, pairs[i], 0)
    wrong &= ignored / np.maximum(pred_area, 1) <= 0.5

    found, missed, wrong = len(g), np.flatnonzero(missed), np.flatnonzero(wrong)
    records = np.zeros(found + len(missed) + len(wrong), dtype=RECORD)
    parts = np.split(records, [found, found + len(missed)])
    for part, outcome, category, area in (
        (parts[0], TRUE_POSITIVE, true_category[g], true_area[g]),
        (parts[1], MISS, true_category[missed], true_area[missed]),
        (parts[2], FALSE_POSITIVE, pred_category[wrong], pred_area[wrong]),
    ):
        part["outcome"], part["category"], part["area"] = outcome, category, area
    parts[0]["iou"] = iou
    return records


def _boundary_iou(true, pred, num_true, num_pred, ratio):
    """IoU (1 + G, 1 + P) between the segments' boundaries; void takes no part in the union."""
    dilation = max(round(ratio * float(np.hypot(*true.shape))), 1)
    of_true, of_pred = boundary(true, dilation) & (true > 0), boundary(pred, dilation) & (pred > 0)
    both = of_true & of_pred
    pairs = overlaps(true[both], pred[both], num_true, num_pred)
    true_area = np.bincount(true[of_true], minlength=num_true + 1)
    pred_area = np.bincount(pred[of_pred], minlength=num_pred + 1)
    on_void = np.bincount(pred[of_pred & (true == 0)], minlength=num_pred + 1)
    union = true_area[:, None] + (pred_area - on_void) - pairs
    return pairs / np.maximum(union, 1)


def panoptic_quality(records, categories):
    """PQ of records, the mean over those of the given categories that occur in them.

    Args:
        records: array (R,) of dtype ``RECORD``, of any number of images.
        categories: category ids.

    Returns:
        PQ in percent; NaN where no category occurs.
    """
    values = []
    for category in categories:
        of_category = records[records["category"] == category]
        if len(of_category):
            found = of_category["outcome"] == TRUE_POSITIVE
            values.append(of_category["iou"].sum() / (found.sum() + 0.5 * (~found).sum()))
    return 100 * float(np.mean(values)) if values else float("nan")


def count_splits_and_merges(pairs, true_things, pred_things, share=0.25):
    """Count things that several predictions share, and predictions that swallow several things.

    Args:
        pairs: int64 array (1 + G, 1 + P) from :func:`overlaps`.
        true_things: bool (1 + G,), things that are not crowds.
        pred_things: bool (1 + P,).
        share: least part of a true thing that a prediction must hold to split it.

    Returns:
        (splits, merges): things of which at least two predicted things hold more than ``share``
        each; predicted things that hold more than half of at least two things each.
    """
    part = pairs[true_things] / np.maximum(pairs[true_things].sum(1, keepdims=True), 1)
    part = part[:, pred_things]
    return int(((part > share).sum(1) >= 2).sum()), int(((part > 0.5).sum(0) >= 2).sum())


def class_confusion(true, pred, num_classes):
    """Confusion matrix of classes.

    Args:
        true, pred: int arrays of one shape; values outside 0..K-1 are void.
        num_classes: K.

    Returns:
        int64 array (K, K + 1), true class by predicted class, the last column predicted void;
        pixels that are void in ``true`` are left out.
    """
    valid = (true >= 0) & (true < num_classes)
    true, pred = true[valid].astype(np.int64), pred[valid].astype(np.int64)
    pred[(pred < 0) | (pred >= num_classes)] = num_classes
    counts = np.bincount(true * (num_classes + 1) + pred, minlength=num_classes * (num_classes + 1))
    return counts.reshape(num_classes, num_classes + 1)


def class_iou(confusion):
    """IoU of each class from :func:`class_confusion`.

    Args:
        confusion: int64 array (K, K + 1).

    Returns:
        float64 array (K,), percent; NaN for classes without true pixels. Their mean (``nanmean``)
        is the mIoU, as in Detectron2's ``SemSegEvaluator``.
    """
    hit = np.diagonal(confusion).astype(np.float64)
    true, pred = confusion.sum(1), confusion[:, :-1].sum(0)
    return np.where(true > 0, 100 * hit / np.maximum(true + pred - hit, 1), np.nan)
