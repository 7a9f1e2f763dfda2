"""Predictions on images without ground truth (data/test_sets.py), as the test servers want them."""

import json
import logging
import os
from collections import OrderedDict
from itertools import chain
from pathlib import Path

from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    DatasetEvaluator,
)
from detectron2.utils import comm
from panopticapi.utils import id2rgb
from PIL import Image

from amwc_d2.evaluation import instance_ap
from amwc_d2.evaluation.cityscapes import alias_cityscapesscripts

logger = logging.getLogger(__name__)


class SubmissionWriter(DatasetEvaluator):
    """Writes predictions for a test server; there is nothing to evaluate.

    In ``output_dir``: ``panoptic.json`` and ``panoptic/*.png`` in COCO's format, which both servers
    take; for COCO ``instances.json`` (mask results), for Cityscapes ``instance/`` and ``semantic/``
    as cityscapesscripts reads them. Works on several ranks of one file system.
    """

    def __init__(self, dataset_name, output_dir):
        """
        Args:
            dataset_name (str): from :func:`register_test_images`.
            output_dir (str): created if need be.
        """
        meta = MetadataCatalog.get(dataset_name)
        self._output_dir = Path(output_dir)
        things = meta.thing_dataset_id_to_contiguous_id
        self._categories = [
            {"id": i, "name": meta.stuff_classes[k], "isthing": int(i in things)}
            for i, k in {**meta.stuff_dataset_id_to_contiguous_id, **things}.items()
        ]
        self._to_dataset = {
            k: i for i, k in {**meta.stuff_dataset_id_to_contiguous_id, **things}.items()
        }
        self._companions = []
        if MetadataCatalog.get(meta.like).evaluator_type == "cityscapes_panoptic_seg":
            alias_cityscapesscripts()
            self._companions = [
                _InstanceFiles(dataset_name, self._output_dir / "instance"),
                _SemanticFiles(dataset_name, self._output_dir / "semantic"),
            ]

    def reset(self):
        (self._output_dir / "panoptic").mkdir(parents=True, exist_ok=True)
        self._annotations, self._instances = [], []
        for companion in self._companions:
            companion.reset()

    def process(self, inputs, outputs):
        for given, output in zip(inputs, outputs):
            ids, segments_info = output["panoptic_seg"]
            file_name = given.get("prediction_name") or Path(given["file_name"]).stem + ".png"
            target = self._output_dir / "panoptic" / file_name
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(id2rgb(ids.cpu().numpy())).save(target)
            segments = [
                {"id": s["id"], "category_id": self._to_dataset[s["category_id"]]}
                for s in segments_info
            ]
            self._annotations.append(
                {"image_id": given["image_id"], "file_name": file_name, "segments_info": segments}
            )
            if not self._companions and "instances" in output:
                self._instances += instance_ap.predicted_instances(
                    output["instances"], self._to_dataset, given["image_id"]
                )
        for companion in self._companions:
            companion.process(inputs, outputs)

    def evaluate(self):
        """Gather all ranks' annotations and write them; returns an empty dict."""
        comm.synchronize()
        annotations = comm.gather(self._annotations)
        instances = comm.gather(self._instances)
        if not comm.is_main_process():
            return None
        annotations = sorted(chain(*annotations), key=lambda annotation: annotation["file_name"])
        images = [{"id": a["image_id"], "file_name": a["file_name"]} for a in annotations]
        content = {"images": images, "annotations": annotations, "categories": self._categories}
        (self._output_dir / "panoptic.json").write_text(json.dumps(content))
        if not self._companions:
            instances = [_as_json(instance) for instance in chain(*instances)]
            (self._output_dir / "instances.json").write_text(json.dumps(instances))
        logger.info("Wrote the predictions for %d images to %s", len(images), self._output_dir)
        return OrderedDict()


def _as_json(instance):
    code = instance["segmentation"]
    keys = ("image_id", "category_id", "score")
    return {
        **{key: instance[key] for key in keys},
        "segmentation": {**code, "counts": code["counts"].decode()},
    }


class _Files:
    """Makes a Cityscapes evaluator of Detectron2 write into a folder that stays."""

    def __init__(self, dataset_name, folder):
        super().__init__(dataset_name)
        self._temp_dir = str(folder)

    def reset(self):
        os.makedirs(self._temp_dir, exist_ok=True)


class _InstanceFiles(_Files, CityscapesInstanceEvaluator):
    """``*_pred.txt`` and a PNG for each instance."""


class _SemanticFiles(_Files, CityscapesSemSegEvaluator):
    """``*_pred.png`` with Cityscapes' label ids."""
