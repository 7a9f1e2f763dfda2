PYTHON ?= python3
ENV := .venv
PY := $(ENV)/bin/python

.PHONY: help env test test-all lint demo sanitize docs wheel faults

help:
	@echo "make env       .venv with everything (torch, Detectron2, the solver)"
	@echo "make demo      both training stages on the toy set, evaluation, pictures under output/"
	@echo "make test      the fast tests (a few minutes)"
	@echo "make test-all  every test, those on real data where $$DETECTRON2_DATASETS has some"
	@echo "make lint      ruff and cython-lint"
	@echo "make faults    trainings that are killed, starved and lied to (docs/reliability.md)"
	@echo "make docs      the reference of the API, from the docstrings, in build/docs"
	@echo "make wheel     a wheel in dist, installed and used away from the repository"
	@echo "make sanitize  the solver's tests and fuzzing under ASan and UBSan"

env:
	@PYTHON=$(PYTHON) tools/maintainer/make_env.sh $(ENV)

# One process a core, one thread each: faster than one process with many threads.
test: env
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto

test-all: env
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto -m ""

lint: env
	$(ENV)/bin/ruff check . && $(ENV)/bin/ruff format --check . && \
	PATH=$(ENV)/bin:$$PATH cython-lint amwc_d2/solver_cython/_amwc.pyx

demo: env
	$(PY) tools/two_stages.py configs/Toy-PanopticSegmentation/demo_R18.yaml

# The extension with AddressSanitizer and UndefinedBehaviorSanitizer in build/sanitize, without the
# rest of the package; Python's own leaks at exit are not reported.
CASES ?= 10000
SAN := build/sanitize
# Beside ASan libstdc++, without which ASan does not find the function that throws.
SAN_LIBRARY = $$($${CC:-gcc} -print-file-name=$(1))
SAN_RUN := LD_PRELOAD="$(call SAN_LIBRARY,libasan.so) $(call SAN_LIBRARY,libstdc++.so)" PYTHONPATH=$(SAN) \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1

sanitize: env
	mkdir -p $(SAN)/amwc_d2/solver_cython
	touch $(SAN)/amwc_d2/__init__.py
	cp amwc_d2/solver_cython/*.py $(SAN)/amwc_d2/solver_cython/
	AMWC_SANITIZE=1 $(PY) setup.py -q build_ext --build-lib $(SAN) --build-temp $(SAN)/temp
	$(SAN_RUN) $(PY) tests/solver/fuzz_solver.py --cases $(CASES)

# Warnings are errors: a docstring that cannot be rendered, a module that does not load.
API := amwc_d2 $(addprefix amwc_d2.,solver_cython model_zoo amwc_layer estimators losses costs edges \
	refinement config affinity_head panoptic_seg post_processing visualization data evaluation \
	engine explain)
docs: env
	$(PY) -W ignore::FutureWarning -W error::UserWarning -m pdoc --docformat google \
		--output-directory build/docs $(API)

wheel: env
	tools/maintainer/check_wheel.sh $(PY)

faults: env
	OMP_NUM_THREADS=1 $(PY) tools/maintainer/faults.py --write docs/reliability.md
