# `make help` lists the targets. Everything runs in .venv, made from requirements.lock.
PYTHON ?= python3
BIN := .venv/bin
# One thread a process: two processes with two threads each on two cores run fifty times slower.
export OMP_NUM_THREADS ?= 1
ARGS ?=
# Where a GPU is, the packages may come with the machine, and there is no .venv.
GPU_PYTHON := $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
# Each test has limits of its own; this ends a run that does not even come to its limits.
HANGS := -o faulthandler_timeout=1200 -o faulthandler_exit_on_timeout=true
# Files in the order of their names: by default those of few tests come last, and whole sweeps are in those.
SPREAD := -n 2 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help setup sweep test test-fast test-gpu test-long faults test-cluster test-bounds fuzz wheel check lint types layers size tiny-model bench clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: .venv/ready  ## set up .venv from the lock

.venv/ready: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11 ...") if sys.version_info < (3, 11) else None'
	@echo "Setting up .venv from requirements.lock: some 5 GB on disk, more with CUDA; 2 to 10 minutes."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch .venv/ready

sweep: setup  ## set up, then run: python -m orchestrator sweep=lr_grid
	$(BIN)/python -m orchestrator sweep=lr_grid $(ARGS)

check: lint types layers  ## what CI runs first: lint, types, layers, tests
	$(BIN)/python -m pytest $(SPREAD) -m "not faults and not cluster and not gpu and not long and not fuzz" $(ARGS)

test: check  ## set up, then lint, types, layers and tests

test-fast: setup  ## the quick tests only
	$(BIN)/python -m pytest $(SPREAD) -m "not slow and not faults and not cluster and not gpu and not long and not fuzz" $(ARGS)

test-gpu:  ## what needs a GPU; without .venv in the environment of PYTHON=python3 (8 minutes)
	$(GPU_PYTHON) -m pytest tests/gpu -rfEs -m gpu --durations=20 -o faulthandler_timeout=300 $(ARGS)

faults: setup  ## kills, full disks, dead trackers: whole sweeps, both engines (ARGS="--kills 20")
	$(BIN)/python -m pytest tests/faults -rf -m faults $(ARGS)

test-long: setup  ## what CI runs beside: 90 architectures, older run folders, every optimizer (20 minutes)
	$(BIN)/python -m pytest tests -n 2 --dist loadscope -m long $(ARGS)

test-cluster: setup  ## what CI runs then: several devices and machines, Slurm, object storage (SYSTEM=1: with apt)
	SYSTEM=$(SYSTEM) tests/cluster/install.sh
	$(BIN)/python -m pytest tests -rfEs -m cluster $(HANGS) $(ARGS)

test-bounds: setup  ## the quick tests and a sweep of each engine on the lowest versions allowed (20 minutes)
	tools/test_bounds.sh $(ARGS)

fuzz: setup  ## 10,000 different data files and command lines, 50 of each trained in both engines (40 minutes)
	SWEEPS_FUZZ=90 $(BIN)/python -m pytest tests/fuzz -n 2 --dist load $(ARGS)

wheel: setup  ## build dist/sft_sweeps-*.whl
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist .

lint: setup  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup  ## mypy
	$(BIN)/mypy

layers: setup  ## import-linter
	$(BIN)/lint-imports

size:  ## lines of code by folder
	$(PYTHON) -m tools.size

tiny-model: setup  ## pretrain the embedded model again (8 minutes)
	OMP_NUM_THREADS=2 $(BIN)/python -m tools.tiny_model

bench: setup  ## the measurements in benchmarks/
	$(BIN)/python -m benchmarks.lr_grid
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.end_to_end

clean:  ## remove what was built; run folders stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
