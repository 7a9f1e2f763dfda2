#!/usr/bin/env bash
# Makes .venv with everything the project needs, Detectron2 included; does nothing when it is right.
#
#   tools/maintainer/make_env.sh [FOLDER]        default .venv; PYTHON=python3.11 chooses the interpreter
#
# Detectron2 has no release on PyPI. The wheel sal-detectron2 is Detectron2 0.7 with its projects,
# pure Python, but tagged for Python 3.10 only, hence the renaming.
set -euo pipefail
cd "$(dirname "$0")/../.."
env=${1:-.venv}
python=${PYTHON:-python3}
wanted=$(cat "$0" pyproject.toml setup.py amwc_d2/solver_cython/*.pyx amwc_d2/solver_cython/{,detail/}*.hpp \
    2>/dev/null | sha256sum | cut -c1-16)
stamp="$env/.amwc_d2-$wanted-$(pwd | sha256sum | cut -c1-8)"
[ -f "$stamp" ] && exit 0

say() { printf 'make env: %s\n' "$*" >&2; }
command -v "$python" >/dev/null ||
    { say "no '$python' found. Install Python 3.11 (Debian: apt-get install python3 python3-venv)."; exit 1; }
"$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' ||
    { say "$("$python" --version) found, Python 3.10 to 3.12 needed: make env PYTHON=python3.11"; exit 1; }
"$python" -c 'import venv, ensurepip' 2>/dev/null ||
    { say "Python's venv module is missing. Debian: apt-get install python3-venv"; exit 1; }
command -v "${CXX:-c++}" >/dev/null || command -v g++ >/dev/null ||
    { say "no C++ compiler found, and the solver needs one. Debian: apt-get install g++"; exit 1; }

[ -x "$env/bin/python" ] || { say "making $env"; "$python" -m venv "$env"; }
pip() { "$env/bin/python" -m pip --disable-pip-version-check -q "$@"; }

say "torch (a few minutes: 5 GB on Linux)"
pip install torch==2.14.1 torchvision==0.29.1 'numpy==1.26.*'
if ! "$env/bin/python" -c 'import detectron2.projects' 2>/dev/null; then
    say "detectron2"
    wheels=$(mktemp -d)
    trap 'rm -rf "$wheels"' EXIT
    pip download --no-deps --python-version 3.10 --only-binary=:all: -d "$wheels" sal-detectron2==0.7.2
    for wheel in "$wheels"/*.whl; do
        mv "$wheel" "$(echo "$wheel" | sed -E 's/-cp310-[a-z0-9_]+-any\.whl$/-py3-none-any.whl/')"
    done
    pip install --no-deps "$wheels"/*.whl
fi
say "the other libraries"
pip install 'setuptools>=77,<81' wheel 'Cython>=3.1' 'numpy==1.26.*' \
    fvcore iopath omegaconf hydra-core pycocotools panopticapi-lite cityscapesscripts \
    cloudpickle opencv-python-headless tifffile psutil tensorboard matplotlib scipy black tabulate cma \
    'pytest>=8' pytest-timeout pytest-xdist hypothesis ruff cython-lint pycodestyle pdoc bioimage-cpp onnx onnxruntime
say "amwc_d2 and its solver"
pip install --no-build-isolation --no-deps -e .
rm -f "$env"/.amwc_d2-*
touch "$stamp"
say "ready: $env"
