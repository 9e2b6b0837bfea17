# make demo | test | check | notebooks | bench | lowest | dist | lock | clean; each installs first what it needs, once.
# make lowest runs the quick tests with the lowest versions that pyproject.toml allows, in an environment of its own.
# BENCH="--only growth" or "--without-rivals" goes to benchmarks/bench.py.
# VENV=PATH lets several clones share one environment; PYTHON=PATH chooses the interpreter (3.11 to 3.13).
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
STAMP := $(VENV)/.oip_torch-installed
KEY = $(shell cat pyproject.toml $(CONSTRAINTS) | cksum) $(CURDIR)

COMPILE = $(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --no-python-downloads \
  --no-header --no-annotate --no-emit-index-url --upgrade

.PHONY: demo test check format notebooks bench lowest dist lock install clean

demo: install
	$(BIN)/python scripts/demo.py
	@echo "To go on: . $(BIN)/activate, then oip -h"

test: install
	$(BIN)/python -m pytest

check: install
	$(BIN)/ruff format --check src tests scripts benchmarks
	$(BIN)/ruff check src tests scripts benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff format src tests scripts benchmarks
	$(BIN)/ruff check --fix src tests scripts benchmarks

notebooks: install
	$(BIN)/python scripts/run_notebooks.py

bench: install
	$(BIN)/python benchmarks/bench.py $(BENCH)

lowest:
	$(MAKE) install VENV=.venv-lowest CONSTRAINTS=constraints-lowest.txt
	.venv-lowest/bin/python -m pytest -m "not slow"

dist: install
	$(BIN)/python -m pip install --quiet twine
	rm -rf dist
	$(BIN)/hatchling build
	$(BIN)/twine check --strict dist/*

lock: install
	$(BIN)/python -m pip install --quiet uv
	{ head -n 1 constraints.txt; $(COMPILE); } > constraints.new
	mv constraints.new constraints.txt
	{ head -n 1 constraints-lowest.txt; $(COMPILE) --resolution lowest-direct; } > constraints.new
	mv constraints.new constraints-lowest.txt

# The stamp names the files' checksum and the clone, so that only a change installs anew, and a shared environment
# follows the clone that uses it. A terminal sees pip at work; a log does not want its hundreds of lines.
install:
	@[ "$$(cat $(STAMP) 2>/dev/null)" = "$(KEY)" ] && exit 0; set -e; \
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "error: $(PYTHON) is $$($(PYTHON) --version 2>&1 || true): expected Python 3.11 to 3.13; run make PYTHON=/path/to/python3.12" >&2; \
	  exit 2; }; \
	[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV); \
	echo "installing into $(VENV): the first time about 9 GB, most of it torch with CUDA and TensorFlow, in 3 minutes or more ..."; \
	if [ -t 1 ]; then quiet=; else quiet=--quiet; fi; \
	$(BIN)/python -m pip install $$quiet --disable-pip-version-check --constraint $(CONSTRAINTS) --editable '.[dev]'; \
	echo "$(KEY)" > $(STAMP)

clean:
	rm -rf out .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
