# Two commands are enough:  make train  and  make test.  Each works alone on a fresh machine (Python 3.11+, pip).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TRAIN_FLAGS ?=
TEST_FLAGS ?= -n 2

.PHONY: train test lint bench docs clean

# A stamp per set of packages, so that nothing is installed twice.
$(VENV)/pip.stamp:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@touch $@

$(VENV)/base.stamp: pyproject.toml $(VENV)/pip.stamp
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/test.stamp: pyproject.toml $(VENV)/base.stamp
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@

$(VENV)/lint.stamp: pyproject.toml $(VENV)/base.stamp
	$(BIN)/python -m pip install --quiet --editable '.[lint]'
	@touch $@

$(VENV)/docs.stamp: pyproject.toml $(VENV)/base.stamp
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	@touch $@

train: $(VENV)/base.stamp
	$(BIN)/python -m engine.train $(TRAIN_FLAGS)

test: $(VENV)/test.stamp
	$(BIN)/python -m pytest $(TEST_FLAGS)

lint: $(VENV)/lint.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/test.stamp
	$(BIN)/python -m bench

docs: $(VENV)/docs.stamp
	$(BIN)/python docs/build.py

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .benchmarks
