# Everything happens inside .venv; only python3 >= 3.11 and make are needed to begin with.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PYTEST := JAX_COMPILATION_CACHE_DIR=$(CURDIR)/.cache/jax $(BIN)/python -m pytest

.PHONY: help demo test test-slow test-gpu lint lock clean

help:
	@echo "make demo       the main job: grasps for an arm that the policy never saw, sampled, judged and executed"
	@echo "make test       lint, types and the default tests        make test-slow  the tests that take longer"
	@echo "make test-gpu   the tests that need an accelerator       make lint       lint and types alone"
	@echo "make lock       pin newer versions (needs uv)            make clean      remove the environment and the caches"

demo: $(VENV)/.ready
	$(BIN)/python -m experiments.demo

test: lint
	$(PYTEST) --numprocesses 2 --dist loadfile

test-slow: $(VENV)/.ready-dev
	$(PYTEST) -m "slow and not gpu"

test-gpu: $(VENV)/.ready-dev
	$(PYTEST) -m gpu

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.ready: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"diffopt needs Python >= 3.11; {sys.executable} is {v[0]}.{v[1]}; try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --requirement requirements.txt
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready requirements-dev.txt
	$(PIP) install --quiet --requirement requirements-dev.txt
	@touch $@

COMPILE := uv pip compile --universal --python-version 3.11 --fork-strategy fewest --no-emit-index-url --no-header --no-annotate --quiet

lock:
	printf "hatchling\neditables\n" | $(COMPILE) pyproject.toml - --extra experiments --output-file requirements.txt
	$(COMPILE) pyproject.toml --all-extras --constraint requirements.txt --output-file requirements-dev.txt

clean:
	rm -rf $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis
