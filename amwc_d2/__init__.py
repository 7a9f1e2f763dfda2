"""Panoptic segmentation trained end to end through an asymmetric multiway cut.

``import amwc_d2`` registers ``AMWCPanoptic`` and ``AMWCAffinityHead`` with Detectron2. Where torch
or Detectron2 is not installed, ``amwc_d2.solver_cython`` still works (NumPy is all it needs), and
asking this package for anything else names what is missing.
"""

from amwc_d2.version import __version__

__all__ = [
    "AMWCAffinityHead",
    "AMWCPanoptic",
    "AMWCPanopticEvaluator",
    "AMWCTargetGenerator",
    "Trainer",
    "__version__",
    "add_amwc_config",
    "build_evaluator",
    "register_panoptic_dataset",
]

_missing = None
try:
    from amwc_d2.affinity_head import AMWCAffinityHead
    from amwc_d2.config import add_amwc_config
    from amwc_d2.data.datasets import register_panoptic_dataset, register_panoptic_folders
    from amwc_d2.data.target_generator import AMWCTargetGenerator
    from amwc_d2.engine.trainer import Trainer
    from amwc_d2.evaluation import AMWCPanopticEvaluator, build_evaluator
    from amwc_d2.panoptic_seg import AMWCPanoptic
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] == "amwc_d2":
        raise
    _missing = error
else:
    register_panoptic_folders()

_INSTALL = {
    "detectron2": "Detectron2 (with its projects) is not on PyPI: see INSTALL.md or 'make env'",
    "torch": "pip install torch torchvision",
    "panopticapi": "pip install panopticapi-lite",
    "cv2": "pip install opencv-python-headless",
    "PIL": "pip install pillow",
}


def __getattr__(name):
    if _missing is not None and name in __all__:
        top = (_missing.name or "").partition(".")[0]
        hint = _INSTALL.get(top, f"pip install {top}")
        raise ImportError(
            f"amwc_d2.{name} needs '{_missing.name}', which is not installed. {hint}. "
            "(amwc_d2.solver_cython works without it.)"
        ) from _missing
    raise AttributeError(f"module 'amwc_d2' has no attribute '{name}'")
