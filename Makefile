# Each target makes its own .venv first: Python >= 3.11, make, and pip's own variables
# (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS) are all it needs.

PYTHON ?= python3
SECONDS ?= 600
SEED ?= 0
BIN := .venv/bin

.DELETE_ON_ERROR:
.PHONY: demo test check fuzz reliability bench-export compare-tools clean

demo: .venv/ready-demo
	$(BIN)/vntools demo

test: .venv/ready-test
	$(BIN)/pytest

check: .venv/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --target build/typed .
	$(BIN)/pyright --pythonpath $(BIN)/python

fuzz: .venv/ready-fuzz
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS) --seed $(SEED)

reliability: .venv/ready-test
	$(BIN)/python docs/errors.py
	$(BIN)/python docs/measure_reliability.py
	$(BIN)/python docs/measure_reliability.py --write-docs

bench-export: .venv/ready-test
	$(BIN)/python docs/bench_export.py

compare-tools: .venv/ready-compare
	$(BIN)/python docs/compare_tools.py
	$(BIN)/python docs/compare_tools.py --write-docs

clean:
	rm -rf .venv build .pytest_cache .ruff_cache .hypothesis

.venv/ready-%: pyproject.toml constraints.txt setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -c constraints.txt -e '.[$*]'
	touch $@
