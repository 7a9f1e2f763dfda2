"""Detectron2's Cityscapes evaluators, where they work and without stray files."""

import glob
import importlib
import importlib.util
import logging
import os
import sys
import types

from detectron2.data import MetadataCatalog
from detectron2.evaluation import CityscapesInstanceEvaluator, CityscapesSemSegEvaluator

logger = logging.getLogger(__name__)

# The name under which Detectron2's main branch imports cityscapesscripts since 2024-12
# (detectron2 issue 5436); no such package is published.
_UPSTREAM_NAME = "deeplearning.projects.cityscapesApi.cityscapesscripts"
_MODULES = (
    "helpers.labels",
    "evaluation.evalInstanceLevelSemanticLabeling",
    "evaluation.evalPixelLevelSemanticLabeling",
)


def alias_cityscapesscripts():
    """Let Detectron2's main branch find cityscapesscripts under the name that it imports."""
    top = _UPSTREAM_NAME.partition(".")[0]
    if top in sys.modules or importlib.util.find_spec(top) is not None:
        return
    parts = _UPSTREAM_NAME.split(".")
    for end in range(1, len(parts)):
        name = ".".join(parts[:end])
        sys.modules[name] = types.ModuleType(name)
    for name in ("", *_MODULES):
        path = name.split(".") if name else []
        for end in range(len(path) + 1):
            tail = "".join(f".{part}" for part in path[:end])
            module = importlib.import_module(f"cityscapesscripts{tail}")
            sys.modules[f"{_UPSTREAM_NAME}{tail}"] = module


class InstanceEvaluator(CityscapesInstanceEvaluator):
    """Detectron2's, which leaves no ``matches.json`` in the working directory."""

    def evaluate(self):
        scripts = importlib.import_module(f"cityscapesscripts.{_MODULES[1]}")
        write = scripts.writeDict2JSON
        scripts.writeDict2JSON = lambda content, name: write(
            content, os.path.join(self._temp_dir, name)
        )
        try:
            return super().evaluate()
        finally:
            scripts.writeDict2JSON = write


def build_cityscapes_evaluators(dataset_name):
    """Build the official AP and mIoU evaluators of a Cityscapes panoptic dataset.

    Args:
        dataset_name (str): registered with ``gt_dir`` in its metadata.

    Returns:
        list[DatasetEvaluator]: empty, with a warning, where their files or scripts are missing.
    """
    gt_dir = MetadataCatalog.get(dataset_name).gt_dir
    for kind in ("instanceIds", "labelIds"):
        if not glob.glob(os.path.join(gt_dir, "*", f"*_gtFine_{kind}.png")):
            logger.warning(
                "No Cityscapes AP and mIoU for %s: '%s' has no */*_gtFine_%s.png.",
                dataset_name, gt_dir, kind,
            )  # fmt: skip
            return []
    if importlib.util.find_spec("cityscapesscripts") is None:
        logger.warning("No Cityscapes AP and mIoU: run 'pip install cityscapesscripts'.")
        return []
    alias_cityscapesscripts()
    return [InstanceEvaluator(dataset_name), CityscapesSemSegEvaluator(dataset_name)]
