"""The evaluator's results as tables, JSON and CSV."""

import csv
import json
import logging
import math

import numpy as np
from tabulate import tabulate

from amwc_d2.evaluation.segment_metrics import FALSE_POSITIVE, MISS, TRUE_POSITIVE

logger = logging.getLogger(__name__)

_FORMULA = ("=", "+", "-", "@")
_OUTCOMES = {TRUE_POSITIVE: "TP", FALSE_POSITIVE: "FP", MISS: "FN"}


def count(stat):
    """Segments, true or predicted, in panopticapi's statistic of a category."""
    return stat.tp + stat.fp + stat.fn


def quality(stat):
    """PQ, SQ and RQ in percent of panopticapi's statistic of a category; NaN if it is empty."""
    if count(stat) == 0:
        return dict.fromkeys(("PQ", "SQ", "RQ"), math.nan)
    recognised = stat.tp / (stat.tp + 0.5 * stat.fp + 0.5 * stat.fn)
    segmented = stat.iou / stat.tp if stat.tp else 0.0
    values = {"PQ": segmented * recognised, "SQ": segmented, "RQ": recognised}
    return {key: 100 * float(value) for key, value in values.items()}


def class_rows(stat, categories, ious, to_contiguous):
    """Describe every class.

    Args:
        stat (PQStat): of the whole dataset.
        categories: dict from category id to the JSON's category.
        ious: dict from a name of mIoU to IoU of each class, percent, (K,).
        to_contiguous: dict from category id to the model's class.

    Returns:
        list[dict]: one row for each category, in the JSON's order.
    """
    return [
        {
            "class": category["name"],
            "isthing": int(bool(category["isthing"])),
            **quality(stat[i]),
            "TP": stat[i].tp,
            "FP": stat[i].fp,
            "FN": stat[i].fn,
            **{name[1:]: float(iou[to_contiguous[i]]) for name, iou in ious.items()},
        }
        for i, category in categories.items()
    ]


def image_row(image):
    """Describe one ``ImageResult``; PQ is the mean over the classes in this image."""
    stats = [stat for stat in image.stat.pq_per_cat.values() if count(stat)]
    pq = np.mean([quality(stat)["PQ"] for stat in stats]) if stats else math.nan
    return {
        "image_id": image.true["image_id"],
        "file_name": image.true["file_name"],
        "PQ": float(pq),
        "TP": sum(stat.tp for stat in stats),
        "FP": sum(stat.fp for stat in stats),
        "FN": sum(stat.fn for stat in stats),
        "true_segments": len(image.true["segments_info"]),
        "pred_segments": len(image.pred["segments_info"]),
        "splits": image.splits,
        "merges": image.merges,
        **image.solver,
    }


def log_results(header, results, per_class):
    """Log the results of a dataset as tables; the arguments as in :func:`write_results`."""
    panoptic = results["panoptic_seg"]
    groups = []
    for title, suffix, wanted in (
        ("all", "", (0, 1)),
        ("things", "_th", (1,)),
        ("stuff", "_st", (0,)),
    ):
        occurring = [r for r in per_class if r["isthing"] in wanted and not math.isnan(r["PQ"])]
        groups.append(
            [title, *(panoptic[key + suffix] for key in ("PQ", "SQ", "RQ")), len(occurring)]
        )
    other = [
        (f"{task}: {key}", value)
        for task, values in results.items()
        if task != "panoptic_seg"
        for key, value in values.items()
        if "-" not in key  # Detectron2's mark of values of single classes
    ]
    style = {"tablefmt": "pipe", "floatfmt": ".2f"}
    oracle = header["oracle"]
    logger.info(
        "Results on %s%s:\n%s\n\n%s\n\n%s\n"
        "Small things are below %.0f pixels, large ones from %.0f.",
        header["dataset"],
        f" with TEST.ORACLE '{oracle}' (bounds, not the model's own)" if oracle else "",
        tabulate(groups, headers=["", "PQ", "SQ", "RQ", "#classes"], **style),
        tabulate(per_class, headers="keys", **style),
        tabulate(other, headers=["", "value"], tablefmt="pipe", floatfmt=".4g"),
        *header["size_limits"],
    )


def write_predictions(path, header, annotations):
    """Write predictions as COCO-panoptic JSON; their PNGs lie in the folder of the same name.

    Args:
        path (Path): the JSON.
        header: the ground truth's JSON without its annotations.
        annotations: list of dicts with ``image_id``, ``file_name`` and ``segments_info``.
    """
    path.write_text(json.dumps({**header, "annotations": annotations}))


def write_results(folder, header, results, per_class, images):
    """Write ``results.json``, ``per_class.csv``, ``per_image.csv`` and ``segments.csv``.

    Args:
        folder (Path): an existing folder.
        header: dict with what was evaluated: ``dataset``, ``oracle`` ("" = none), ``images`` and
            ``size_limits``, the areas in pixels between small, medium and large things.
        results: the evaluator's.
        per_class: from :func:`class_rows`.
        images: list of ``ImageResult``.
    """
    content = {**header, "results": results, "per_class": per_class}
    (folder / "results.json").write_text(json.dumps(_without_nan(content), indent=1) + "\n")
    _write_csv(folder / "per_class.csv", per_class)
    _write_csv(folder / "per_image.csv", [image_row(image) for image in images])
    segments = [
        {
            "image_id": image.true["image_id"],
            "category_id": int(record["category"]),
            "outcome": _OUTCOMES[int(record["outcome"])],
            "area": int(record["area"]),
            "iou": float(record["iou"]),
        }
        for image in images
        for record in image.records
    ]
    _write_csv(folder / "segments.csv", segments)


def _without_nan(value):
    """JSON knows no NaN: None instead."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _write_csv(path, rows):
    with open(path, "w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, fieldnames=list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows({key: _as_text(value) for key, value in row.items()} for row in rows)


def _as_text(value):
    """A name that a spreadsheet would take for a formula gets an apostrophe before it."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
