"""Build of the solver extension; everything else is declared in pyproject.toml.

Imports setuptools and Cython only: torch is not needed to build, so build isolation works.
``AMWC_CYTHON_DEBUG=1`` turns Cython's bounds checks on; ``AMWC_SANITIZE=1`` adds ASan and UBSan.
"""

import os
from glob import glob

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

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
    cmdclass={"build_ext": BuildSolver},
)
