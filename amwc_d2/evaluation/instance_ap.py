"""COCO's mask AP against the things of panoptic ground truth, without instance annotations.

Masks are pycocotools' run-length codes. Predictions are scored as given: only their order counts.
"""

import contextlib
import io

import numpy as np
from pycocotools import mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

COCO_MAX_DETECTIONS = 100  # of an image, best first, in COCO's AP


def true_instances(index, segments_info, thing_ids, image_id):
    """The things of an image as COCO annotations.

    Args:
        index: int array (H, W), 1 + the position in ``segments_info``, 0 = void.
        segments_info: list of dicts with ``category_id``, ``iscrowd`` and ``area``.
        thing_ids: category ids of things.
        image_id: goes into the annotations.

    Returns:
        list[dict]: COCO annotations, without ``id``.
    """
    instances = []
    for position, segment in enumerate(segments_info, start=1):
        if segment["category_id"] in thing_ids:
            code = _encode(index == position)
            instances.append(
                {
                    "image_id": image_id,
                    "category_id": segment["category_id"],
                    "iscrowd": segment["iscrowd"],
                    "area": segment["area"],
                    "segmentation": code,
                }
            )
    return instances


def predicted_instances(instances, to_category, image_id):
    """Detectron2's instances as COCO results.

    Args:
        instances (Instances): with ``pred_masks`` bool (N, H, W), ``pred_classes`` and ``scores``.
        to_category: dict from the model's class to the category id.
        image_id: goes into the results.

    Returns:
        list[dict]: COCO results, without ``id``.
    """
    masks, classes, scores = (
        getattr(instances, field).detach().cpu().numpy()
        for field in ("pred_masks", "pred_classes", "scores")
    )
    results = []
    for mask, category, score in zip(masks, classes, scores):
        code = _encode(mask)
        results.append(
            {
                "image_id": image_id,
                "category_id": to_category[int(category)],
                "iscrowd": 0,
                "area": float(mask_util.area(code)),
                "segmentation": code,
                "score": float(score),
            }
        )
    return results


def average_precision(true, predicted, image_ids, category_ids):
    """COCO's mask AP.

    Args:
        true, predicted: lists from :func:`true_instances` and :func:`predicted_instances`.
        image_ids: all images, also those without things.
        category_ids: the categories of things.

    Returns:
        dict: percent; ``AP``, ``AP50``, ``AP75``, ``APs``, ``APm``, ``APl`` as COCO defines them
        (at most 100 detections an image), and ``AP_all``, the same as ``AP`` without that limit.
        NaN where the ground truth has nothing of the kind.
    """
    true = _index(true, image_ids, category_ids)
    found = _index(predicted, image_ids, category_ids)
    # (IoU threshold, recall, category, area range: all small medium large, detections)
    precision = _precision(true, found, COCO_MAX_DETECTIONS)

    def mean(precision, threshold=slice(None), area=0):
        values = precision[threshold, :, :, area, 0]
        values = values[values > -1]
        return 100 * float(values.mean()) if values.size else float("nan")

    results = {
        "AP": mean(precision),
        "AP50": mean(precision, threshold=0),
        "AP75": mean(precision, threshold=5),
        "APs": mean(precision, area=1),
        "APm": mean(precision, area=2),
        "APl": mean(precision, area=3),
    }
    most = max((len(found.imgToAnns[i]) for i in image_ids), default=0)
    if most > COCO_MAX_DETECTIONS:
        precision = _precision(true, found, most, all_areas=False)
    return {**results, "AP_all": mean(precision)}


def _precision(true, found, max_detections, all_areas=True):
    """Precision (thresholds, recalls, categories, area ranges, 1) of two indices."""
    evaluation = COCOeval(true, found, "segm")
    evaluation.params.maxDets = [max_detections]
    if not all_areas:
        evaluation.params.areaRng = evaluation.params.areaRng[:1]
        evaluation.params.areaRngLbl = evaluation.params.areaRngLbl[:1]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"]


def _encode(mask):
    return mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))


def _index(instances, image_ids, category_ids):
    """Annotations as pycocotools' index; ids start from 1, for 0 means "unmatched" there."""
    coco = COCO()
    coco.dataset = {
        # The masks know their own size, but COCO wants to read one here.
        "images": [{"id": i, "height": 0, "width": 0} for i in image_ids],
        "categories": [{"id": i} for i in category_ids],
        "annotations": [{**instance, "id": i} for i, instance in enumerate(instances, start=1)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco
