# Each target is complete on a fresh clone. `make setup` does nothing when nothing has changed.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test test-slow lint bench

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/python -m uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/raydistill demo

test: setup
	$(BIN)/python -m pytest -m "not slow" -n 2 --durations 20

test-slow: setup
	$(BIN)/python -m pytest -m slow -n 2 --durations 20

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python experiments/benchmarks/startup.py
	$(BIN)/python experiments/benchmarks/methods.py
