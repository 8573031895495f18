# make demo: set up and run the main job.   make test: set up and run all checks.
#
# Everything is installed into .venv. PYTHON picks the interpreter (3.11 or newer); TORCH what pip
# is asked for, e.g. TORCH="torch --index-url ..." for a build that fits your GPU (see README).

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
TORCH ?= torch
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt

.PHONY: demo test chaos lint types unit setup dev format clean
.DEFAULT_GOAL := demo

demo: $(VENV)/.installed
	$(BIN)/loradash demo --output demo-output

test: lint types
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: $(VENV)/.installed-dev
	$(BIN)/mypy

unit: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 tests/unit tests/contract

# Kills RunPod workers at random while they train, and compares the weights: CHAOS="--seed 8 --kills 20".
chaos: $(VENV)/.installed-dev
	$(BIN)/python -m tests.chaos $(CHAOS)

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: $(VENV)/.installed
dev: $(VENV)/.installed-dev

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "loradash needs Python 3.11 or newer (PYTHON=$(PYTHON))"; exit 1; }
	@if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then $(PYTHON) -m venv $(VENV); \
		else $(PYTHON) -m venv --without-pip $(VENV) && $@ tools/install_pip.py \
			|| { rm -rf $(VENV); exit 1; }; fi

# torch comes first: asked for by other packages, pip may pick a build for other hardware.
$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) $(TORCH)
	$(PIP) -e '.[diffusers]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -e '.[diffusers,dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist demo-output .mypy_cache .ruff_cache .pytest_cache .hypothesis
