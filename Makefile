PYTHON ?= python3
ENV := .venv
PY := $(ENV)/bin/python

.PHONY: help env test lint demo sanitize

help:
	@echo "make env       .venv with everything (torch, Detectron2, the solver)"
	@echo "make demo      both training stages on the toy set, evaluation, pictures under output/"
	@echo "make test      the tests"
	@echo "make lint      ruff and cython-lint"
	@echo "make sanitize  the solver's tests and fuzzing under ASan and UBSan"

env:
	@PYTHON=$(PYTHON) tools/make_env.sh $(ENV)

test: env
	$(PY) -m pytest

lint: env
	$(ENV)/bin/ruff check . && $(ENV)/bin/ruff format --check . && \
	$(ENV)/bin/cython-lint amwc_d2/solver_cython/_amwc.pyx

demo: env
	$(PY) tools/toy_demo.py --output output/toy
