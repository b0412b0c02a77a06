# Uses the active virtual environment, or makes .venv when there is none.
VENV := $(if $(VIRTUAL_ENV),$(VIRTUAL_ENV),.venv)
PYTHON := $(VENV)/bin/python

.PHONY: demo test lint install

demo: install
	$(PYTHON) precompute.py
	$(PYTHON) train.py --adapter mlp16
	$(PYTHON) eval.py

test: install
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m pytest -n 2

install: $(VENV)/.periscope-installed

$(VENV)/.periscope-installed: pyproject.toml
	test -x $(PYTHON) || python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet -e ".[test]"
	touch $@
