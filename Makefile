# Two commands do everything: `make demo` trains a model, `make test` runs the suite.
# Python 3.11 or 3.12; another interpreter: make demo PYTHON=python3.12

PYTHON ?= python3
PIP_OPTIONS ?=
BIN := .venv/bin
# demo, or where that run is there already, demo-2 and so on
NAME ?= $(shell n=; while [ -e runs/demo$$n ]; do n=$$(($${n:--1} - 1)); done; echo demo$$n)

CHAIN ?= $(shell n=; while [ -e runs/aligned$$n ]; do n=$$(($${n:--1} - 1)); done; echo aligned$$n)

.PHONY: demo demo-align test test-unit test-faults lint install clean

demo: install
	$(BIN)/raysft train gpt2-tiny-cpu --name $(NAME)

# From careless demonstrations to right answers: tuning, pairs, a reward model, PPO
demo-align: install
	$(BIN)/python benchmarks/careless.py runs/careless
	$(BIN)/raysft align align-demo --name $(CHAIN)

test: install
	$(BIN)/pytest

test-unit: install
	$(BIN)/pytest tests/unit

test-faults: install
	$(BIN)/pytest -n 0 tests/faults --ledger benchmarks/faults.md

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv build *.egg-info
