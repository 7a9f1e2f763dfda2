"""One pass over a dataset: panoptic quality, AP, mIoU, and what the solver did.

Shape shorthand in this module:

    H, W: an image    K: classes
"""

import contextlib
import io
import itertools
import os
import tempfile
from collections import OrderedDict, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from panopticapi.evaluation import PQStat, pq_compute_single_core
from panopticapi.utils import id2rgb
from PIL import Image

from amwc_d2.data.panoptic_format import check_inside, read_panoptic_json, read_panoptic_png
from amwc_d2.evaluation import instance_ap, report, segment_metrics
from amwc_d2.evaluation.loop import together

COCO_AREAS = (32**2, 96**2)  # pixels; COCO's limits between small, medium and large
MAX_WORKERS = 8  # threads of one process that compare images


@dataclass
class ImageResult:
    """What one image adds to the results."""

    true: dict  # annotation of the ground-truth JSON
    pred: dict  # annotation of the prediction, in the same format
    solver: dict  # numbers about the solver, by name
    records: np.ndarray = None  # segment_metrics.RECORD
    boundary_records: np.ndarray = None
    splits: int = 0
    merges: int = 0
    true_instances: list = field(default_factory=list)
    pred_instances: list = field(default_factory=list)
    stat: PQStat = None


class AMWCPanopticEvaluator(DatasetEvaluator):
    """PQ, AP, mIoU and solver figures of a model on a panoptic dataset.

    PQ, SQ and RQ come from panopticapi's own functions on the predictions that are written to
    ``output_dir``. Predictions may be made on several ranks in any order. Nothing that the model
    returned is changed. Every image of the ground truth must be predicted once.

    Results, in percent where nothing else is said; NaN where the ground truth has nothing of the
    kind:

    * ``panoptic_seg``: ``PQ``, ``SQ``, ``RQ`` over all classes, things (``_th``) and stuff
      (``_st``), and ``PQ-<class>``;
    * ``amwc``: ``PQ_boundary`` (IoU limited by that of the boundaries); ``PQ_th_small``,
      ``_medium``, ``_large`` by area; ``mIoU`` of the solver's classes, ``mIoU_argmax`` of the
      class logits alone; ``splits`` and ``merges`` (counts, see ``segment_metrics``); the mean of
      each number that the model reports about its solver, and ``solver_seconds_p95``;
    * ``segm``: COCO's AP against the things of the panoptic ground truth;
    * what the companions return.

    Attributes:
        truth: the annotations of the ground-truth JSON by image id, in its order.
        to_contiguous: category id of the JSON -> class of the model.
    """

    def __init__(
        self,
        dataset_name,
        output_dir=None,
        *,
        oracle="",
        boundary_ratio=0.02,
        size_limits=None,
        instance_ap=True,
        companions=(),
        log=True,
    ):
        """
        Args:
            dataset_name (str): registered, with Detectron2's panoptic metadata.
            output_dir (str or None): gets ``panoptic.json`` and ``panoptic/*.png`` (COCO's format,
                also for submission), ``results.json``, ``per_class.csv``, ``per_image.csv`` and
                ``segments.csv`` (a line for each match, false positive and miss). None: nothing
                is kept.
            oracle (str): which costs of the model were the truth (``TEST.ORACLE``); the
                reports name it.
            boundary_ratio (float): width of boundaries, as a share of the image's diagonal.
            size_limits (tuple[float, float] or None): areas in pixels between small, medium and
                large things; None: the terciles of the ground truth.
            instance_ap (bool): compute AP from the panoptic ground truth.
            companions (list[DatasetEvaluator]): further evaluators; they join the results.
            log (bool): write the results' tables to the log.

        Raises:
            ValueError: a ``file_name`` of the ground truth leads out of the folder of PNGs.
        """
        meta = MetadataCatalog.get(dataset_name)
        self._name = dataset_name
        self._output_dir = Path(output_dir) if output_dir else None
        self._oracle = oracle
        self._boundary_ratio = boundary_ratio
        self._instance_ap = instance_ap
        self._companions = list(companions)
        self._log = log
        self._num_classes = len(meta.stuff_classes)
        things = meta.thing_dataset_id_to_contiguous_id
        self.to_contiguous = {**meta.stuff_dataset_id_to_contiguous_id, **things}
        self._to_dataset = {v: k for k, v in self.to_contiguous.items()}
        self._true_root = meta.panoptic_root
        truth = read_panoptic_json(meta.panoptic_json)
        self._categories = {category["id"]: category for category in truth["categories"]}
        self._thing_ids = [i for i, category in self._categories.items() if category["isthing"]]
        self.truth = {annotation["image_id"]: annotation for annotation in truth["annotations"]}
        for annotation in self.truth.values():
            check_inside(annotation["file_name"], meta.panoptic_json)
        self._truth_header = {k: v for k, v in truth.items() if k != "annotations"}
        self._size_limits = size_limits or self._terciles()
        self._pool, self._scratch = None, None

    def _terciles(self):
        areas = [
            segment["area"]
            for annotation in self.truth.values()
            for segment in annotation["segments_info"]
            if segment["category_id"] in self._thing_ids and not segment["iscrowd"]
        ]
        return tuple(np.quantile(areas, [1 / 3, 2 / 3]).tolist()) if areas else COCO_AREAS

    def reset(self):
        if self._output_dir is None:
            self._scratch = tempfile.TemporaryDirectory(prefix="amwc_panoptic_")
            self._pred_root = Path(self._scratch.name)
        else:
            self._pred_root = self._output_dir / "panoptic"
        self._pred_root.mkdir(parents=True, exist_ok=True)
        self._results, self._jobs, self._confusions = [], deque(), {}
        self._pool = ThreadPoolExecutor(_num_workers())
        for companion in self._companions:
            companion.reset()

    def process(self, inputs, outputs):
        """
        Args:
            inputs (list[dict]): with ``image_id``.
            outputs (list[dict]): the model's. ``panoptic_seg``: int tensor (H, W), 0 = void, and
                its ``segments_info``. Optional: ``classes`` int (H, W), ``sem_seg`` (K, H, W),
                ``instances``, ``amwc`` (a dict; its numbers are averaged).
        """
        for given, output in zip(inputs, outputs):
            self._jobs.append(self._pool.submit(self._compare, *self._unpack(given, output)))
            while len(self._jobs) > 2 * _num_workers():  # bounds the memory
                self._collect(self._jobs.popleft())
        for companion in self._companions:
            companion.process(inputs, outputs)

    def _unpack(self, given, output):
        """Fetch what the comparison needs from the model's output, leaving that as it was."""
        image_id = given["image_id"]
        if image_id not in self.truth:
            raise ValueError(
                f"image_id {image_id!r} ({given.get('file_name')}) is not in the annotations of "
                f"'{self._name}'. Evaluate a dataset with the evaluator made for it."
            )
        ids, segments_info = output["panoptic_seg"]
        if segments_info is None:
            raise ValueError("panoptic_seg needs its segments_info, not the label_divisor encoding")
        true = self.truth[image_id]
        pred = {
            "image_id": image_id,
            "file_name": true["file_name"],
            "segments_info": [
                {"id": s["id"], "category_id": self._to_dataset[s["category_id"]]}
                for s in segments_info
            ],
        }
        classes = {}
        if "classes" in output:
            classes["mIoU"] = output["classes"].cpu().numpy()
        if "sem_seg" in output:
            classes["mIoU_argmax"] = output["sem_seg"].argmax(dim=0).cpu().numpy()
        instances = []
        if self._instance_ap and "instances" in output:
            instances = instance_ap.predicted_instances(
                output["instances"], self._to_dataset, image_id
            )
        numbers = output.get("amwc", {}).items()
        solver = {key: value for key, value in numbers if isinstance(value, (int, float))}
        return ImageResult(true, pred, solver, pred_instances=instances), ids.cpu().numpy(), classes

    def _compare(self, result, pred_ids, classes):
        """Compare one image, except for what panopticapi does, and write its prediction."""
        name = result.true["file_name"]
        path = self._pred_root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(id2rgb(pred_ids)).save(path, compress_level=1)

        true_ids = self.read_truth(result.true)
        if true_ids.shape != pred_ids.shape:
            raise ValueError(
                f"the prediction for '{name}' is {pred_ids.shape}, the ground truth "
                f"{true_ids.shape}. Give the model the image's own height and width."
            )
        true_info, pred_info = result.true["segments_info"], result.pred["segments_info"]
        true = segment_metrics.index_map(true_ids, true_info, f"the ground truth '{name}'")
        pred = segment_metrics.index_map(pred_ids, pred_info, f"the prediction for '{name}'")
        result.records = segment_metrics.match_segments(true, pred, true_info, pred_info)
        result.boundary_records = segment_metrics.match_segments(
            true, pred, true_info, pred_info, self._boundary_ratio
        )
        pairs = segment_metrics.overlaps(true, pred, len(true_info), len(pred_info))
        result.splits, result.merges = segment_metrics.count_splits_and_merges(
            pairs, self._things(true_info), self._things(pred_info)
        )
        categories = [self.to_contiguous[s["category_id"]] for s in true_info]
        true_classes = np.array([-1] + categories)[true]
        confusions = {
            key: segment_metrics.class_confusion(true_classes, values, self._num_classes)
            for key, values in classes.items()
        }
        if self._instance_ap:
            result.true_instances = instance_ap.true_instances(
                true, true_info, self._thing_ids, result.true["image_id"]
            )
        return result, confusions

    def _collect(self, job):
        """Keep one image's result; class confusions are large and are only summed."""
        result, confusions = job.result()
        self._results.append(result)
        for key, confusion in confusions.items():
            self._confusions[key] = self._confusions.get(key, 0) + confusion

    def read_truth(self, annotation):
        """Read the segment ids, int32 (H, W), 0 = void, of an annotation of the ground truth."""
        return read_panoptic_png(os.path.join(self._true_root, annotation["file_name"]))

    def _things(self, segments_info):
        """Bool (1 + segments,): whether a segment is a thing and no crowd; the first is void."""
        return np.array(
            [False]
            + [s["category_id"] in self._thing_ids and not s.get("iscrowd") for s in segments_info]
        )

    def evaluate(self):
        """Gather all ranks' images and compute the results; contains a synchronisation.

        Returns:
            OrderedDict: see the class; None on ranks other than the first.

        Raises:
            ValueError: an image of the ground truth without a prediction.
        """
        together(self._finish_images)
        comm.synchronize()
        gathered = comm.gather((self._results, self._confusions))
        companions = [companion.evaluate() for companion in self._companions]
        self._results = []
        if not comm.is_main_process():
            return None
        by_id = {r.true["image_id"]: r for results, _ in gathered for r in results}
        missing = [i for i in self.truth if i not in by_id]
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(self.truth)} images of '{self._name}' have no "
                f"prediction, the first being {missing[0]!r}. Evaluate the whole dataset."
            )
        images = [by_id[i] for i in self.truth]  # the ground truth's order, whoever made them
        parts = [confusions for _, confusions in gathered]
        keys = dict.fromkeys(itertools.chain(*parts))
        confusions = {key: sum(part[key] for part in parts if key in part) for key in keys}
        results, per_class = self._summarize(images, confusions)
        for companion in companions:
            results.update(companion or {})
        header = {
            "dataset": self._name,
            "oracle": self._oracle,
            "images": len(images),
            "size_limits": self._size_limits,
        }
        if self._log:
            report.log_results(header, results, per_class)
        if self._output_dir is not None:
            report.write_predictions(
                self._output_dir / "panoptic.json", self._truth_header, [r.pred for r in images]
            )
            report.write_results(self._output_dir, header, results, per_class, images)
        return results

    def _finish_images(self):
        while self._jobs:
            self._collect(self._jobs.popleft())
        # panopticapi prints; only one thread may redirect, so this comes after all the rest.
        with contextlib.redirect_stdout(io.StringIO()):
            for result, stat in zip(
                self._results, self._pool.map(self._official_stat, self._results)
            ):
                result.stat = stat
        self._pool.shutdown()
        if self._scratch is not None:
            self._scratch.cleanup()

    def _official_stat(self, result):
        """TP, FP, FN and IoU of one image, by panopticapi, which writes into what it is given."""
        pred = {**result.pred, "segments_info": [dict(s) for s in result.pred["segments_info"]]}
        return pq_compute_single_core(
            0, [(result.true, pred)], self._true_root, str(self._pred_root), self._categories
        )

    def _summarize(self, images, confusions):
        """Results (see the class) and one row for each class, from all images."""
        total = PQStat()
        for image in images:
            total += image.stat
        panoptic = {}
        for suffix, isthing in (("", None), ("_th", True), ("_st", False)):
            for key, value in _pq_average(total, self._categories, isthing).items():
                panoptic[f"{key}{suffix}"] = value
        ious = {key: segment_metrics.class_iou(c) for key, c in confusions.items()}
        per_class = report.class_rows(total, self._categories, ious, self.to_contiguous)
        panoptic.update({f"PQ-{row['class']}": row["PQ"] for row in per_class})

        records = np.concatenate([image.records for image in images])
        boundaries = np.concatenate([image.boundary_records for image in images])
        amwc = {"PQ_boundary": segment_metrics.panoptic_quality(boundaries, self._categories)}
        size = np.digitize(records["area"], self._size_limits)
        for i, name in enumerate(("small", "medium", "large")):
            amwc[f"PQ_th_{name}"] = segment_metrics.panoptic_quality(
                records[size == i], self._thing_ids
            )
        amwc.update({key: float(np.nanmean(iou)) for key, iou in ious.items()})
        amwc["splits"] = float(sum(image.splits for image in images))
        amwc["merges"] = float(sum(image.merges for image in images))
        for key in images[0].solver:
            amwc[key] = float(np.mean([image.solver[key] for image in images]))
        if "solver_seconds" in images[0].solver:
            seconds = [image.solver["solver_seconds"] for image in images]
            amwc["solver_seconds_p95"] = float(np.quantile(seconds, 0.95))

        results = OrderedDict(panoptic_seg=panoptic, amwc=amwc)
        if self._instance_ap:
            results["segm"] = instance_ap.average_precision(
                [t for image in images for t in image.true_instances],
                [p for image in images for p in image.pred_instances],
                [image.true["image_id"] for image in images],
                self._thing_ids,
            )
        return results, per_class


def _pq_average(stat, categories, isthing):
    """panopticapi's averages in percent; NaN where it would divide by zero."""
    occurring = {
        i: category
        for i, category in categories.items()
        if isthing in (None, bool(category["isthing"])) and report.count(stat[i]) > 0
    }
    if not occurring:
        return dict.fromkeys(("PQ", "SQ", "RQ"), float("nan"))
    average, _ = stat.pq_average(occurring, isthing=None)
    return {key.upper(): 100 * float(average[key]) for key in ("pq", "sq", "rq")}


def _num_workers():
    """Threads for this process: its share of the CPUs that it may use."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(MAX_WORKERS, cpus // comm.get_local_size()))
