# make demo   install into .venv and paint the main job: a contact sheet in demo/
# make test   everything that must hold before a change goes in
VENV    ?= .venv
PYTHON  ?= $(shell command -v python3.11 || command -v python3)
WORKERS ?= 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip

# One thread a process: two test workers of two threads each would only fight on two cores.
TEST_ENV := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
COVERED  := src/capriccio/attention/*,src/capriccio/guidance.py,src/capriccio/canvas.py,src/capriccio/draft.py,src/capriccio/phases.py,src/capriccio/plan.py

.PHONY: demo test lint types floors tests slow gpu clean

demo: $(VENV)/.installed
	$(BIN)/capriccio demo --out demo

test: lint types floors tests

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

floors: $(VENV)/.installed-dev
	$(BIN)/lint-imports

tests: $(VENV)/.installed-dev
	$(TEST_ENV) $(BIN)/pytest -q -n $(WORKERS) --cov --cov-report=
	$(BIN)/coverage report --include='$(COVERED)' --fail-under=95

slow: $(VENV)/.installed-dev
	HF_HUB_OFFLINE=1 $(BIN)/pytest -m "slow and not gpu"

gpu: $(VENV)/.installed-dev
	$(BIN)/pytest -m gpu

# torch comes first and exactly pinned: left to the other packages' looser demands, the installer fetches gigabytes.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install "$$(grep '^torch==' constraints.txt)"
	$(PIP) install -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf build dist demo .coverage .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
