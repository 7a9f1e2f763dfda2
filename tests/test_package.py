"""The house: layers of imports, registration, the solver without anything but NumPy."""

import ast
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import amwc_d2

SOLVER_MAY_IMPORT = {"numpy"}
CORE_MAY_IMPORT = {"numpy", "scipy", "torch"}
CORE = {
    "amwc_layer",
    "costs",
    "edges",
    "estimators",
    "losses",
    "losses.affinity",
    "losses.end_to_end",
    "losses.labels",
    "losses.pq",
}


def imported_modules(path):
    """Absolute names of all modules that a file imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


def violations(paths, third_party, own):
    bad = []
    for path in paths:
        for name in imported_modules(path):
            top = name.split(".")[0]
            allowed = (
                (name.startswith(".") and "solver_cython" in str(path))
                or name in own
                or top in third_party | set(sys.stdlib_module_names)
            )
            if not allowed:
                bad.append(f"{path.name} imports {name}")
    return bad


def test_the_solver_imports_numpy_only(repository):
    files = list((repository / "amwc_d2/solver_cython").glob("*.py"))
    assert files
    assert not violations(files, SOLVER_MAY_IMPORT, set())


def test_the_core_never_imports_detectron2(repository):
    own = {"amwc_d2.solver_cython"} | {f"amwc_d2.{name}" for name in CORE}
    package = repository / "amwc_d2"
    modules = [package / f"{name.replace('.', '/')}.py" for name in sorted(CORE)]
    files = [file if file.exists() else file.with_suffix("") / "__init__.py" for file in modules]
    assert not violations(files, CORE_MAY_IMPORT, own)


def test_the_walk_sees_a_violation(tmp_path):
    (tmp_path / "edges.py").write_text("def f():\n    from detectron2.config import CfgNode\n")
    assert violations([tmp_path / "edges.py"], CORE_MAY_IMPORT, set())


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
    for name in amwc_d2.__all__:
        assert getattr(amwc_d2, name) is not None


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
