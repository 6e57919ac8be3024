# make run    everything on this machine: local broker, worker, live sources, live table; Ctrl-C ends it
# make test   formatting, types, import rules and the whole test suite on a real Apache Kafka
# make install   only the virtual environment .venv

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test install check clean

install: $(VENV)/.installed

run: $(VENV)/.installed
	@$(BIN)/polarstream up

test: $(VENV)/.installed-test check
	$(BIN)/python -m pytest

check: $(VENV)/.installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not ((3, 11) <= sys.version_info[:2] < (3, 14)))' || \
	  { echo "polarstream needs Python 3.11, 3.12 or 3.13; this is $$($(PYTHON) -V): make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "no venv module: apt install python3-venv, then make again"; exit 1; }

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo "installing polarstream into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[all]'
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(BIN)/python
	@echo "installing polarstream and its test tools into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[all,test]'
	@touch $@ $(VENV)/.installed
