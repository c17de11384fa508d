# Needs make and a Python >= 3.10 with venv; everything else is set up in .venv, once, and again when
# pyproject.toml or constraints.txt changes.
#
#   make demo    prune a small model and print the report
#   make test    the default tests          make slow   the long ones
#   make extras  those that need bitsandbytes and trl, which it installs
#   make lint    ruff, formatting, mypy     make ci     what CI runs
#
# `make test PYTHON=python3.12` picks the interpreter of a new .venv, `ARGS` passes options on: make test ARGS="-k trace"

PYTHON ?= python3
VENV   ?= .venv
WORKERS ?= 2
ARGS   ?=

BIN := $(VENV)/bin
# The dev tools apart: `make demo` should not download a type checker.
RUN_READY := $(VENV)/.ready-run
DEV_READY := $(VENV)/.ready-dev
EXTRAS_READY := $(VENV)/.ready-extras

# Constraints keep every install at the versions the project is tested with. Build isolation would fetch a second,
# unpinned setuptools for each build, so the pinned one of .venv is used.
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
EDITABLE    := --no-build-isolation --editable

.PHONY: demo test slow extras lint format wheel ci clean help
.DEFAULT_GOAL := help

help:
	@sed -n '4,9s/^# *//p' Makefile

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "graphprune needs Python 3.10 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(RUN_READY): pyproject.toml constraints.txt | $(BIN)/python
	@echo "setting up $(VENV): torch first (a few minutes on a new machine)"
	@# torch alone and first, at the version that constraints.txt names: unpinned, or chosen as a by-product of
	@# another package, it can be a newer release with gigabytes of CUDA packages behind it.
	$(PIP_INSTALL) setuptools torch
	$(PIP_INSTALL) $(EDITABLE) .
	@touch $@

$(DEV_READY): $(RUN_READY)
	$(PIP_INSTALL) $(EDITABLE) '.[dev]'
	@touch $@

$(EXTRAS_READY): $(DEV_READY)
	$(PIP_INSTALL) $(EDITABLE) '.[bitsandbytes,trl]'
	@touch $@

demo: $(RUN_READY)
	$(BIN)/graphprune quickstart $(ARGS)

test: $(DEV_READY)
	$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

slow: $(DEV_READY)
	$(BIN)/python -m pytest -n $(WORKERS) -m "slow and not gpu" $(ARGS)

# The files of which at least a part is skipped without the extras.
extras: $(EXTRAS_READY)
	$(BIN)/python -m pytest -n $(WORKERS) $(ARGS) \
	  $$(grep -rlE 'importorskip\("(bitsandbytes|trl)"|from tests\.quantised' tests --include='test_*.py')

lint: $(DEV_READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(DEV_READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(DEV_READY)
	$(BIN)/python -m build --no-isolation --outdir dist .

ci:
	.ci/run

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
