# Two commands are enough:  make train  and  make test.  Each works alone on a fresh machine (Python 3.11+, pip).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TRAIN_FLAGS ?=
TEST_FLAGS ?= -n 2 --dist worksteal --durations=25

# CUDA kernels are tested on a GPU, else on the emulator where it lies beside this repository; its packages are installed only then.
EMULATOR := $(wildcard ../shared/cupy_on_cpu/__init__.py)
CUDA_TESTS = $(BIN)/python -m pytest tests/cuda $(TEST_FLAGS)
CUDA_PACKAGES := cupy-cuda13x==14.2.0 nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cuda-crt

.PHONY: help train test test-cpu test-cuda lint bench gpu docs clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1#/p' $(MAKEFILE_LIST) | awk -F'#' '{printf "make %-10s %s\n", $$1, $$2}'

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

$(VENV)/cuda.stamp: $(VENV)/base.stamp
	$(BIN)/python -m pip install --quiet $(CUDA_PACKAGES)
	@touch $@

train: $(VENV)/base.stamp  ## train on built-in tiles in minutes (TRAIN_FLAGS: options of engine.train)
	$(BIN)/python -m engine.train $(TRAIN_FLAGS)

test: test-cpu test-cuda  ## every test that this machine can run (TEST_FLAGS: options of pytest)

test-cpu: $(VENV)/test.stamp  ## those of the CPU
	$(BIN)/python -m pytest $(TEST_FLAGS)

# Processes of their own: the device is set up before anything imports CuPy. Every test runs with bounds checked, those marked `trace` again with
# races and counters, and whole training runs with numbers only.
test-cuda: $(VENV)/test.stamp $(if $(EMULATOR),$(VENV)/cuda.stamp)  ## those of CUDA, on a GPU or on the emulator
	@if $(BIN)/python -m bench.emulation; then \
	  AREOGRAD_EMULATE=check $(CUDA_TESTS) -m "not whole" && \
	  AREOGRAD_EMULATE=trace $(CUDA_TESTS) -m trace && \
	  AREOGRAD_EMULATE=fast $(CUDA_TESTS) -m whole; \
	else echo "CUDA tests: skipped"; fi

lint: $(VENV)/lint.stamp  ## ruff, mypy and clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(shell find kernels -name "*.cu" -o -name "*.cuh")

bench: $(VENV)/test.stamp  ## race the kernels against other frameworks
	$(BIN)/python -m bench

gpu: $(VENV)/test.stamp $(if $(EMULATOR),$(VENV)/cuda.stamp)  ## check everything on a real GPU in ten minutes, or rehearse it on the emulator
	PYTHON=$(abspath $(BIN))/python bash bench/gpu_check.sh

docs: $(VENV)/docs.stamp  ## build the documentation, build/site/index.html
	$(BIN)/python docs/build.py

clean:  ## remove the environment and everything that was built
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .benchmarks
