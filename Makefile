# `make help` lists what there is to do; `make demo` needs nothing but Python and sets up the rest.
#
# Everything is installed into .venv. PYTHON picks the interpreter (3.11 or newer); TORCH what pip
# is asked for, e.g. TORCH="torch --index-url ..." for a build that fits your GPU (see README).

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3.14 || command -v python3)
TORCH ?= torch
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt

.PHONY: help demo test unit contract lint types format chaos cluster setup dev clean
.DEFAULT_GOAL := demo

help: ## List the targets (this text)
	@awk 'BEGIN { FS = ":.*## " } /^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed ## Set up, train a LoRA in minutes, and show before and after (the default)
	$(BIN)/loradash demo --output demo-output

test: lint types ## Set up and run every check and test, as CI does
	$(BIN)/python -m pytest -n 3 --dist worksteal

lint: $(VENV)/.installed-dev ## ruff, its formatting, and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: $(VENV)/.installed-dev ## mypy: strict for src, checked for tests, bench and tools
	$(BIN)/mypy

unit: $(VENV)/.installed-dev ## The quick tests, in about a minute: no server, no engine
	$(BIN)/python -m pytest -n 3 --dist worksteal -m "not server" tests/unit

contract: $(VENV)/.installed-dev ## The contract tests, also over real S3 servers and databases
	$(BIN)/python -m pytest -n 3 --dist worksteal tests/contract

# Compares the weights with those of an undisturbed training.
chaos: $(VENV)/.installed-dev ## Kill workers at random while they train; CHAOS="--seed 8 --kills 20"
	$(BIN)/python -m tests.chaos $(CHAOS)

# Several servers on one PostgreSQL and one bucket; takes some ten minutes.
cluster: $(VENV)/.installed-dev ## Kill servers and their database while they train; CLUSTER="--seed 8 --kills 20"
	$(BIN)/python -m tests.cluster $(CLUSTER)

format: $(VENV)/.installed-dev ## Mend what ruff can mend, and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: $(VENV)/.installed ## Install what users need into .venv
dev: $(VENV)/.installed-dev ## Install what developers need, too

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

clean: ## Remove what was installed and built
	rm -rf $(VENV) build dist demo-output .mypy_cache .ruff_cache .pytest_cache .hypothesis
