"""Which evaluator a dataset gets, and the ceiling that the solver's grid puts on its results."""

import os

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator

from amwc_d2.data.mappers import ResizeShortestEdge
from amwc_d2.data.test_sets import SUBMISSION
from amwc_d2.evaluation.cityscapes import build_cityscapes_evaluators
from amwc_d2.evaluation.panoptic_evaluator import COCO_AREAS, AMWCPanopticEvaluator
from amwc_d2.evaluation.submission import SubmissionWriter
from amwc_d2.refinement import sample_cells, surrounding_labels, upsample_labels

__all__ = ["AMWCPanopticEvaluator", "build_evaluator", "grid_ceiling"]

BOUNDARY_RATIO = 0.02  # of the diagonal; both are what Boundary IoU's authors chose
CITYSCAPES_BOUNDARY_RATIO = 0.005


def build_evaluator(cfg, dataset_name, output_folder=None):
    """Build the evaluator of a panoptic dataset, with the official AP and mIoU where they exist.

    Cityscapes gets cityscapesscripts' AP and mIoU as well; COCO gets pycocotools' AP against its
    instance annotations, and so does any dataset X_panoptic with a ``json_file`` of instances in
    its metadata and a registered instance dataset X that numbers the things alike. All others get
    COCO's AP against the things of the panoptic ground truth.

    Args:
        cfg (CfgNode): reads ``OUTPUT_DIR``, ``DATASETS.TEST`` and ``TEST.ORACLE``.
        dataset_name (str): a registered panoptic dataset.
        output_folder (str or None): default ``OUTPUT_DIR/inference`` (with an oracle
            ``OUTPUT_DIR/inference_ORACLE_oracle``), with a subfolder for each dataset where there
            are several.

    Returns:
        AMWCPanopticEvaluator; for images without ground truth a ``SubmissionWriter``.

    Raises:
        ValueError: the dataset is not a panoptic one.
    """
    if output_folder is None:
        oracle = f"_{cfg.TEST.ORACLE}_oracle" if cfg.TEST.ORACLE else ""
        output_folder = os.path.join(cfg.OUTPUT_DIR, "inference" + oracle)
        if len(cfg.DATASETS.TEST) > 1:
            output_folder = os.path.join(output_folder, dataset_name)
    meta = MetadataCatalog.get(dataset_name)
    evaluator_type = meta.get("evaluator_type")
    if evaluator_type == SUBMISSION:
        return SubmissionWriter(dataset_name, output_folder)
    if evaluator_type == "cityscapes_panoptic_seg":
        companions = build_cityscapes_evaluators(dataset_name)
        ratio, limits = CITYSCAPES_BOUNDARY_RATIO, None
    elif evaluator_type == "coco_panoptic_seg":
        companions = _build_coco_evaluator(meta, output_folder)
        ratio, limits = BOUNDARY_RATIO, COCO_AREAS if dataset_name.startswith("coco_") else None
    else:
        raise ValueError(
            f"dataset '{dataset_name}' has evaluator_type {evaluator_type!r}; expected "
            "'coco_panoptic_seg' or 'cityscapes_panoptic_seg'. DATASETS.TEST takes panoptic "
            "datasets: see amwc_d2.register_panoptic_dataset."
        )
    return AMWCPanopticEvaluator(
        dataset_name,
        output_folder,
        oracle=cfg.TEST.ORACLE,
        boundary_ratio=ratio,
        size_limits=limits,
        instance_ap=not companions,
        companions=companions,
    )


def _build_coco_evaluator(meta, output_folder):
    """COCO's mask AP against its own instance annotations, where these are to be had."""
    instance_dataset = meta.name.removesuffix("_panoptic")
    json_file = meta.get("json_file")
    if not json_file or not os.path.isfile(json_file) or instance_dataset not in DatasetCatalog:
        return []
    # COCOEvaluator reads the model's classes by the instance dataset's numbers.
    numbers = MetadataCatalog.get(instance_dataset).get("thing_dataset_id_to_contiguous_id")
    if numbers != meta.thing_dataset_id_to_contiguous_id:
        return []
    return [COCOEvaluator(instance_dataset, tasks=("segm",), output_dir=output_folder)]


def grid_ceiling(
    dataset_name,
    stride=4,
    *,
    min_size=0,
    max_size=1333,
    factor=1.0,
    upsampling="refine",
    thing_area=0,
    stuff_area=0,
    num_images=0,
    output_dir=None,
):
    """Evaluate the ground truth itself after a trip to the grid that the solver works on.

    No model on that grid does better: what is missing to 100 is lost to resolution. The image is
    resized as at inference, and each cell takes the segment at its centre. With "refine" a pixel
    then shows its true segment wherever one of the four cells around it has it, as no choice
    between these cells can do better; elsewhere, and with "nearest" everywhere, that of the nearest
    cell. Segments below the limits on their area become void, as do crowd regions.

    Args:
        dataset_name (str): a registered panoptic dataset.
        stride (int): pixels of the network's input in a cell.
        min_size (int): ``INPUT.MIN_SIZE_TEST``; 0 = the image's own size.
        max_size (int): ``INPUT.MAX_SIZE_TEST``.
        factor (float): enlarges the images where ``min_size`` is 0.
        upsampling (str): ``MODEL.AMWC.UPSAMPLING``.
        thing_area, stuff_area (int): ``MODEL.AMWC.THING_AREA`` and ``STUFF_AREA``.
        num_images (int): as many images, evenly drawn; 0: all.
        output_dir (str or None): see :class:`AMWCPanopticEvaluator`.

    Returns:
        OrderedDict: the evaluator's results.
    """
    DatasetCatalog.get(dataset_name)  # draws the toy set if need be
    evaluator = AMWCPanopticEvaluator(dataset_name, output_dir, instance_ap=False, log=False)
    if num_images:
        chosen = list(evaluator.truth)[:: -(-len(evaluator.truth) // num_images)]
        evaluator.truth = {image_id: evaluator.truth[image_id] for image_id in chosen}
    things = MetadataCatalog.get(dataset_name).thing_dataset_id_to_contiguous_id
    evaluator.reset()
    for annotation in evaluator.truth.values():
        ids = evaluator.read_truth(annotation)
        size = tuple(max(1, round(side * factor)) for side in ids.shape)
        if min_size:
            transform = ResizeShortestEdge(min_size, max_size).get_transform(ids)
            size = transform.new_h, transform.new_w
        true = torch.from_numpy(ids)
        grid = sample_cells(true, stride, size)
        shown = upsample_labels(grid, stride, size, ids.shape)
        if upsampling == "refine":
            within_reach = (surrounding_labels(grid, stride, size, ids.shape) == true).any(0)
            shown = torch.where(within_reach, true, shown)
        ids = shown.numpy()
        areas = dict(zip(*(values.tolist() for values in np.unique(ids, return_counts=True))))
        kept, classes = [], np.full(ids.shape, -1)
        for segment in annotation["segments_info"]:
            mask = ids == segment["id"]
            category = evaluator.to_contiguous[segment["category_id"]]
            classes[mask] = category
            limit = thing_area if segment["category_id"] in things else stuff_area
            if segment["iscrowd"] or areas.get(segment["id"], 0) < limit:
                ids[mask] = 0
            elif segment["id"] in areas:
                kept.append({"id": segment["id"], "category_id": category})
        output = {
            "panoptic_seg": (torch.from_numpy(ids), kept),
            "classes": torch.from_numpy(classes),
        }
        evaluator.process([{"image_id": annotation["image_id"]}], [output])
    return evaluator.evaluate()
