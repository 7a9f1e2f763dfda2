#!/usr/bin/env bash
# Builds the wheel and uses it away from the repository: the solver in an empty environment with
# NumPy alone, the model zoo and the recipes beside the libraries of an environment that has all.
#
#   tools/maintainer/check_wheel.sh PYTHON        of the environment with all libraries
set -euo pipefail
python=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
cd "$(dirname "$0")/../.."
rm -rf dist build/lib* build/bdist*
"$python" -m pip --disable-pip-version-check -q wheel --no-build-isolation --no-deps -w dist .
wheel=$(ls "$PWD"/dist/amwc_d2-*.whl)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"

"$python" -m venv empty
empty/bin/python -m pip --disable-pip-version-check -q install --no-deps "$wheel" 'numpy>=1.26,<2.3'
empty/bin/python - <<'PY'
import importlib.util

import numpy as np
from amwc_d2.solver_cython import lower_bound, solve_amwc

assert importlib.util.find_spec("torch") is None, "this environment is not empty"
rng = np.random.default_rng(0)
node_costs = rng.normal(size=(3, 24, 32)).astype(np.float32)
edge_costs = rng.normal(size=(2, 2, 24, 32)).astype(np.float32)
problem = node_costs, edge_costs, [1, 4], [False, False, True]
solution = solve_amwc(*problem)
assert lower_bound(*problem) <= solution.objective < 0
print("wheel: the solver works with NumPy alone")
PY

"$python" -m pip --disable-pip-version-check -q install --no-deps --target everything "$wheel"
PYTHONPATH="$scratch/everything" "$python" - <<'PY'
from pathlib import Path

import amwc_d2
from amwc_d2 import load_config, model_zoo

assert Path(amwc_d2.__file__).is_relative_to(Path.cwd()), amwc_d2.__file__
names = model_zoo.names()
for name in names:
    assert Path(model_zoo.get_config(name).MODEL.WEIGHTS).is_relative_to(Path.cwd())
recipe = "COCO-PanopticSegmentation/amwc_R50_e2e.yaml"
cfg = load_config(model_zoo.get_config_file(recipe))
assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 133
print("wheel: model zoo", names, "and the recipes are inside")
PY
