"""Build of the solver extension; everything else is declared in pyproject.toml.

Imports setuptools and Cython only: torch is not needed to build, so build isolation works.
``AMWC_CYTHON_DEBUG=1`` turns Cython's bounds checks on; ``AMWC_SANITIZE=1`` adds ASan and UBSan.
"""

import os
import shutil
from glob import glob
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

SOLVER = "amwc_d2/solver_cython"
DEBUG = os.environ.get("AMWC_CYTHON_DEBUG") == "1"
SANITIZE = os.environ.get("AMWC_SANITIZE") == "1"

# No -march=native and no contraction of a*b+c: the same bits on every machine.
COMPILE_ARGS = ["-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno"]
LINK_ARGS = []
if SANITIZE:
    COMPILE_ARGS += ["-O1", "-g", "-fsanitize=address,undefined", "-fno-omit-frame-pointer"]
    LINK_ARGS += ["-fsanitize=address,undefined"]


class BuildSolver(build_ext):
    """build_ext that says in one sentence what is missing when no compiler is there."""

    def build_extension(self, ext):
        try:
            super().build_extension(ext)
        except Exception as error:
            raise SystemExit(
                f"amwc_d2: the solver could not be compiled ({error}). It needs a C++17 compiler "
                "(gcc or clang): on Debian 'apt-get install g++', on macOS 'xcode-select "
                "--install'; then run the same pip command again."
            ) from error


class BuildPackage(build_py):
    """build_py that puts configs and model zoo, which lie beside the package, into it."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        for folder in ("configs", "checkpoints"):
            target = Path(self.build_lib, "amwc_d2", folder)
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(folder, target)


extension = Extension(
    "amwc_d2.solver_cython._amwc",
    sources=[f"{SOLVER}/_amwc.pyx"],
    depends=glob(f"{SOLVER}/**/*.hpp", recursive=True),
    include_dirs=[SOLVER],
    language="c++",
    extra_compile_args=COMPILE_ARGS,
    extra_link_args=LINK_ARGS,
)

setup(
    ext_modules=cythonize(
        [extension],
        compiler_directives={"boundscheck": DEBUG, "initializedcheck": DEBUG},
    ),
    cmdclass={"build_ext": BuildSolver, "build_py": BuildPackage},
)
