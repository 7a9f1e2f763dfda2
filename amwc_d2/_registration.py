"""Registers the model and the datasets with Detectron2, as soon as Detectron2 is imported.

``import amwc_d2`` must register everything, as users of Detectron2 expect, and the solver alone
must not pay for loading torch and Detectron2. So the registration waits: for the first import of
Detectron2, or of a module of this package that needs it, whoever asks for it.
"""

import importlib
import sys
import warnings
from importlib.abc import MetaPathFinder

# The solver, and the core: these never import Detectron2 (tests/test_package.py walks them).
WITHOUT_DETECTRON2 = {
    "amwc_layer",
    "costs",
    "edges",
    "estimators",
    "losses",
    "refinement",
    "solver_cython",
    "version",
}


def register():
    """Register the meta-architecture, the affinity head and the datasets with Detectron2.

    Warns where another library is missing, and names it.
    """
    try:
        for module in ("affinity_head", "panoptic_seg", "data.datasets", "data.test_sets"):
            importlib.import_module(f"amwc_d2.{module}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "amwc_d2":
            raise
        warnings.warn(
            f"AMWCPanoptic is not registered with Detectron2: '{error.name}' is not installed. "
            "See INSTALL.md.",
            ImportWarning,
            stacklevel=2,
        )


def register_with_detectron2():
    """Register now if Detectron2 is loaded, or else when it is."""
    if "detectron2" in sys.modules:
        register()
    else:
        sys.meta_path.insert(0, _RegisterAfterImport())


class _RegisterAfterImport(MetaPathFinder):
    """Calls :func:`register` when the first module that needs Detectron2 has been loaded.

    Not while it is being loaded: ``from amwc_d2.config import ...`` would then meet itself, half
    executed, on the way through ``amwc_d2.panoptic_seg``.
    """

    def find_spec(self, name, path=None, target=None):
        top, _, rest = name.partition(".")
        if name != "detectron2" and (
            top != "amwc_d2" or rest.partition(".")[0] in {"", *WITHOUT_DETECTRON2}
        ):
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(name, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module):
            if self not in sys.meta_path:  # registered by an import inside this one
                return execute(module)
            sys.meta_path.remove(self)
            try:
                execute(module)
            except BaseException:
                sys.meta_path.insert(0, self)
                raise
            register()

        spec.loader.exec_module = execute_and_register
        return spec
