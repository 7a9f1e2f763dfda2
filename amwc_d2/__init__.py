"""Panoptic segmentation trained end to end through an asymmetric multiway cut.

``import amwc_d2`` registers ``AMWCPanoptic``, ``AMWCAffinityHead`` and the datasets with Detectron2
(at the moment when Detectron2 itself is imported, before or after). Everything below is loaded when
it is first used, so that ``amwc_d2.solver_cython`` needs NumPy and loads nothing else.
"""

import importlib

from amwc_d2._registration import register_with_detectron2
from amwc_d2.version import __version__

_HOMES = {  # public names, and the modules that define them
    "AMWCAffinityHead": "amwc_d2.affinity_head",
    "AMWCLayer": "amwc_d2.amwc_layer",
    "AMWCPanoptic": "amwc_d2.panoptic_seg",
    "AMWCPanopticEvaluator": "amwc_d2.evaluation",
    "AMWCTargetGenerator": "amwc_d2.data.target_generator",
    "Predictor": "amwc_d2.engine.predictor",
    "Trainer": "amwc_d2.engine.trainer",
    "add_amwc_config": "amwc_d2.config",
    "build_evaluator": "amwc_d2.evaluation",
    "check_panoptic_dataset": "amwc_d2.data.datasets",
    "draw_panel": "amwc_d2.visualization",
    "load_config": "amwc_d2.config",
    "register_panoptic_dataset": "amwc_d2.data.datasets",
    "register_panoptic_folders": "amwc_d2.data.datasets",
}

__all__ = ["__version__", *_HOMES]

_INSTALL = {
    "detectron2": "Detectron2 (with its projects) is not on PyPI: see INSTALL.md or 'make env'",
    "torch": "pip install torch torchvision",
    "panopticapi": "pip install panopticapi-lite",
    "cv2": "pip install opencv-python-headless",
    "PIL": "pip install pillow",
}


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module 'amwc_d2' has no attribute '{name}'")
    try:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        top = (error.name or "").partition(".")[0]
        if top == "amwc_d2":
            raise
        hint = _INSTALL.get(top, f"pip install {top}")
        raise ImportError(
            f"amwc_d2.{name} needs '{error.name}', which is not installed. {hint}. "
            "(amwc_d2.solver_cython works without it.)"
        ) from error
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})


register_with_detectron2()
