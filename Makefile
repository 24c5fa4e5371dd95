# Every target sets itself up: it needs Python >= 3.11 with venv, nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt

.PHONY: demo test lint bench wheel clean

demo: $(VENV)/.demo
	$(BIN)/pimcal demo

test: $(VENV)/.test
	$(BIN)/pytest -n auto --dist worksteal

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.test
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/dispatch.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/data_memory.py
	$(BIN)/python benchmarks/calibration.py
	$(BIN)/python benchmarks/aihwkit.py
	$(BIN)/python benchmarks/link.py
	$(BIN)/python benchmarks/recalibration.py

wheel: $(BIN)/python
	$(INSTALL) build
	$(BIN)/python -m build --wheel --outdir dist

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pimcal needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing pimcal and PyTorch into $(VENV) (the download is large)"
	$(INSTALL) --editable '.[demo]'
	touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing pimcal, PyTorch and the test tools into $(VENV) (the download is large)"
	$(INSTALL) --editable '.[all,test,zoo]'
	touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) dist build
