# Every target prepares .venv by itself: Python 3.11 and make are all that a fresh clone needs.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
QUICK := not slow and not chaos and not browser
STAMP := $(VENV)/.installed

.PHONY: help demo check test slow browser chaos simulate bench wheel clean
.DEFAULT_GOAL := help

help:   ## list the targets
	@grep -E '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## */\1\t/' | expand -t 10

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[test,dev]'
	touch $@

demo: $(STAMP)   ## train on glyphs with two workers, measure, index, search, draw
	$(BIN)/raydml demo

check: $(STAMP)   ## ruff, mypy --strict, import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -q tests/unit/test_imports.py

# Two files at a time; then, one after another, those that start Ray.
test: $(STAMP)   ## every test but the slow ones and chaos
	failed=0; \
	$(BIN)/pytest -q -n 2 --dist loadfile -m "$(QUICK) and not ray" tests || failed=1; \
	$(BIN)/pytest -q -m "$(QUICK) and ray" tests || failed=1; \
	exit $$failed

slow: $(STAMP)   ## the slow tests
	$(BIN)/pytest -q -m slow tests

browser: $(STAMP)   ## the page in Debian's Chromium, which is installed where this may; pictures in build/browser
	$(BIN)/pip install --quiet -c constraints.txt playwright
	$(BIN)/pytest -q -s -m browser tests/browser

chaos: $(STAMP)  ## sixty faults in one run of real processes, 250 kills of one who writes a collection, 60 kills of a server
	$(BIN)/pytest -q -s -m chaos tests

simulate: $(STAMP)   ## a million simulated schedules of the membership protocol
	$(BIN)/python -m raydml.membership.simulator 1000000

bench: $(STAMP)   ## training speed against a hand-written loop
	$(BIN)/python benchmarks/training.py

wheel: $(STAMP)   ## dist/raydml-VERSION-py3-none-any.whl, which `ray up` installs on every host
	rm -rf build
	$(BIN)/pip wheel --quiet --no-deps -w dist .

clean:   ## remove everything that make made
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
