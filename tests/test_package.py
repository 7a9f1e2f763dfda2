"""Package structure: layers of imports, registration, the solver with NumPy alone."""

import ast
import graphlib
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import amwc_d2
from amwc_d2._registration import WITHOUT_DETECTRON2

# Every module of the package belongs to one layer and imports from its own and lower ones only.
LAYERS = [
    {"version", "solver_cython"},
    {"edges", "costs", "refinement", "estimators", "amwc_layer", "losses"},
    {"_registration", "config", "config_names"},
    {"data"},
    {"affinity_head", "post_processing", "visualization", "freezing"},
    {"panoptic_seg"},
    {"evaluation"},
    {"engine", "model_zoo", "explain"},
    {"__init__"},
]
THIRD_PARTY = {"version": set(), "solver_cython": {"numpy"}}  # others may import anything
THIRD_PARTY |= {module: {"numpy", "scipy", "torch"} for module in LAYERS[1]}
THIRD_PARTY["_registration"] = THIRD_PARTY["__init__"] = set()


def imports(path, package):
    """Absolute names of all that a file imports, at any depth; a name of a module or in one."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = [package.name, *path.relative_to(package).parts][: -node.level or None]
            home = ".".join([*(parts if node.level else []), *filter(None, [node.module])])
            yield from (f"{home}.{alias.name}" for alias in node.names)


def violations(package):
    """Every import that runs upward, and every library that a layer does not allow."""
    layer_of = {room: i for i, layer in enumerate(LAYERS) for room in layer}
    for path in sorted(package.rglob("*.py")):
        room = path.relative_to(package).parts[0].removesuffix(".py")
        assert room in layer_of, f"amwc_d2.{room} is new: give it a place in LAYERS"
        for name in imports(path, package):
            top, *rest = name.split(".")
            if top == package.name:
                wrong = layer_of.get(rest[0], -1) > layer_of[room]
            else:
                wrong = top not in THIRD_PARTY.get(room, {top}) | set(sys.stdlib_module_names)
            if wrong:
                yield f"{path.relative_to(package)} imports {name}"


def test_imports_respect_the_layers(repository):
    assert list(violations(repository / "amwc_d2")) == []
    assert LAYERS[0] | LAYERS[1] == WITHOUT_DETECTRON2


def test_the_walk_sees_violations(tmp_path):
    package = tmp_path / "amwc_d2"
    (package / "losses").mkdir(parents=True)
    (package / "edges.py").write_text("def f():\n    from detectron2.config import CfgNode\n")
    (package / "losses" / "pq.py").write_text("from amwc_d2 import config\n")
    (package / "costs.py").write_text("from . import data\nfrom .edges import VOID\n")
    assert list(violations(package)) == [
        "costs.py imports amwc_d2.data",
        "edges.py imports detectron2.config.CfgNode",
        "losses/pq.py imports amwc_d2.config",
    ]


def test_no_module_imports_itself_by_a_detour(repository):
    package = repository / "amwc_d2"
    modules = {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package).with_suffix("").parts
        modules[".".join(["amwc_d2", *(p for p in parts if p != "__init__")])] = path
    graph = {
        module: {
            name if name in modules else name.rpartition(".")[0]
            for name in imports(path, package)
            if name.startswith("amwc_d2.")
        }
        for module, path in modules.items()
        if module != "amwc_d2"
    }
    order = graphlib.TopologicalSorter(graph)
    order.prepare()  # raises CycleError, which shows the circle


def test_importing_registers_with_detectron2():
    code = (
        "import amwc_d2\n"
        "from detectron2.modeling import META_ARCH_REGISTRY\n"
        "from detectron2.projects.panoptic_deeplab import panoptic_seg\n"
        "heads = panoptic_seg.INS_EMBED_BRANCHES_REGISTRY\n"
        "assert META_ARCH_REGISTRY.get('AMWCPanoptic') is amwc_d2.AMWCPanoptic\n"
        "assert heads.get('AMWCAffinityHead') is amwc_d2.AMWCAffinityHead\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("first", ["import detectron2", "from amwc_d2.config import load_config"])
def test_registration_does_not_depend_on_what_is_imported_first(first):
    code = (
        f"{first}\n"
        "import amwc_d2.solver_cython\n"
        "from detectron2.data import DatasetCatalog\n"
        "from detectron2.modeling import META_ARCH_REGISTRY\n"
        "assert 'AMWCPanoptic' in META_ARCH_REGISTRY\n"
        "names = DatasetCatalog.list()\n"
        "assert {'toy_panoptic_train', 'cityscapes_fine_panoptic_test'} <= set(names)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names():
    assert set(amwc_d2.__all__) == {
        "AMWCAffinityHead",
        "AMWCLayer",
        "AMWCPanoptic",
        "AMWCPanopticEvaluator",
        "AMWCTargetGenerator",
        "Predictor",
        "Trainer",
        "__version__",
        "add_amwc_config",
        "build_evaluator",
        "check_panoptic_dataset",
        "draw_panel",
        "load_config",
        "register_panoptic_dataset",
        "register_panoptic_folders",
    }
    for name in amwc_d2.__all__:
        assert getattr(amwc_d2, name) is not None
        assert name in dir(amwc_d2)


def test_the_solver_and_the_core_load_no_detectron2():
    code = (
        "import sys\n"
        "from amwc_d2.solver_cython import solve_amwc\n"
        "assert not {'torch', 'scipy', 'detectron2'} & set(sys.modules)\n"
        "import amwc_d2.losses.end_to_end\n"
        "assert 'torch' in sys.modules and 'detectron2' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_tools_is_not_a_package(repository):
    """Detectron2's wheel installs a package called tools; ours must not hide behind it."""
    assert not (repository / "tools" / "__init__.py").exists()


@pytest.fixture(scope="module")
def numpy_only(repository, tmp_path_factory):
    """A Python that sees the standard library, NumPy and this package; nothing else."""
    import numpy

    folder = tmp_path_factory.mktemp("numpy_only")
    venv.create(folder / "env", with_pip=False, symlinks=True)
    site = folder / "site"
    site.mkdir()
    numpy_home = Path(numpy.__file__).parent
    for item in [numpy_home, *numpy_home.parent.glob("numpy.libs")]:
        (site / item.name).symlink_to(item)
    (site / "amwc_d2").symlink_to(repository / "amwc_d2")

    def run(code):
        return subprocess.run(
            [folder / "env/bin/python", "-c", code],
            env={**os.environ, "PYTHONPATH": str(site)},
            capture_output=True,
            text=True,
        )

    return run


def test_solver_alone_needs_numpy_only(numpy_only):
    result = numpy_only(
        "import numpy as np\n"
        "from amwc_d2.solver_cython import solve_amwc\n"
        "s = solve_amwc(np.zeros((2, 4, 5), 'f'), np.ones((1, 2, 4, 5), 'f'), [1],"
        " np.array([False, True]))\n"
        "print(s.segments.max())\n"
    )
    assert result.stdout.strip() == "0", result.stderr


@pytest.mark.parametrize("name", ["AMWCPanoptic", "add_amwc_config", "Trainer"])
def test_asking_for_the_rest_names_what_is_missing(name, numpy_only):
    result = numpy_only(f"import amwc_d2\namwc_d2.{name}")
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert (f"amwc_d2.{name} needs '" in last and "INSTALL.md" in last) or "pip install" in last
    assert "No module named" not in last


def test_unknown_names_are_ordinary_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        amwc_d2.nonsense  # noqa: B018
