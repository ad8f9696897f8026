# Two commands: `make demo` and `make test`. Each sets everything up by itself; only Python 3.11+ is needed.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
WORKERS ?= 2

.PHONY: help demo test test-all test-lmms lint format bench clean

help: ## this text
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	@echo "installing piip and its dependencies into $(VENV) (a few minutes the first time) ..."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $(STAMP)

demo: $(STAMP) ## train a nano PIIP on made-up photographs of digits and write runs/demo/report.html
	$(BIN)/piip demo --out runs/demo

test: $(STAMP) ## the default test suite (under ten minutes on two cores)
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow and not gpu"

test-all: $(STAMP) ## every test, the slow ones too
	$(BIN)/python -m pytest -n $(WORKERS)

test-lmms: ## lmms-eval's bridge, in an environment of its own (.venv-lmms): it wants older libraries
	$(PYTHON) -m venv $(VENV)-lmms
	@echo "installing piip and lmms-eval into $(VENV)-lmms (a few minutes the first time) ..."
	$(VENV)-lmms/bin/python -m pip install --quiet --disable-pip-version-check -e '.[test,lmms]'
	$(VENV)-lmms/bin/python -m pytest tests/bridges/test_lmms_eval.py

lint: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## let ruff rewrite the sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## forward, training step and memory of PIIP-TSB on this machine
	$(BIN)/python -m benchmarks

clean: ## remove the environment and what was built
	rm -rf $(VENV) $(VENV)-lmms build *.egg-info
