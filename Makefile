# The commands people type. Nothing is needed beforehand but Python >= 3.10 and a C++17 compiler.
#   make demo    trains the demo network with every method and leaves table, figure and CSV under runs/
#   make test    all tests
#   make lint    ruff and mypy
#   make bench   ops and whole steps against the peers; rows go to bench/data/cpu.csv; ARGS=--full for everything, --overhead for training steps
#   make instructions   instruction counts against those recorded; wants valgrind
#   make site    the documentation, in build/site
#   make figures   figures and tables of docs/benchmarks.md from bench/data
#   make gpu-check OUT=folder   everything that wants a GPU, with the Python and torch at hand: see bench/gpu_check.py
#   TORCH=...    another torch, e.g. make test TORCH='torch==2.12.0'

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml setup.py $(shell find csrc -type f)

demo: $(VENV)/demo.stamp
	$(BIN)/sharpkern train

test: $(VENV)/test.stamp
	$(BIN)/python -m pytest

lint: $(VENV)/lint.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/bench.stamp
	$(BIN)/python bench/step.py $(ARGS)

instructions: $(VENV)/test.stamp
	$(BIN)/python bench/instructions.py $(ARGS)

site: $(VENV)/test.stamp
	$(BIN)/mkdocs build -f docs/site/mkdocs.yml --strict

figures: $(VENV)/test.stamp
	$(BIN)/python bench/figures.py
	$(BIN)/python bench/tables.py

gpu-check:
	$(PYTHON) bench/gpu_check.py --out $(or $(OUT),runs/gpu-check)

clean:
	rm -rf $(VENV) build dist *.egg-info sharpkern/backend/native/*.so

$(VENV)/torch.stamp:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check '$(TORCH)'
	@touch $@

$(VENV)/demo.stamp: $(VENV)/torch.stamp $(SOURCES)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[train]'
	@touch $@

$(VENV)/test.stamp: $(VENV)/demo.stamp
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[train,test]'
	@touch $@

$(VENV)/bench.stamp: $(VENV)/test.stamp
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[train,test,bench]'
	@touch $@

$(VENV)/lint.stamp: $(VENV)/test.stamp
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[train,test,lint]'
	@touch $@

.PHONY: demo test lint bench instructions site figures gpu-check clean
