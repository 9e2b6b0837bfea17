# make demo | test | check | notebooks | bench | lock | clean; each installs first what it needs, once.
# BENCH="--only growth" or "--without-rivals" goes to benchmarks/bench.py.
# VENV=PATH lets several clones share one environment; PYTHON=PATH chooses the interpreter (3.10 to 3.13).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.oip_torch-installed
KEY = $(shell cat pyproject.toml constraints.txt | cksum) $(CURDIR)

.PHONY: demo test check format notebooks bench lock install clean

demo: install
	$(BIN)/python scripts/demo.py

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

lock: install
	$(BIN)/python -m pip install --quiet uv
	{ head -n 1 constraints.txt; $(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.10 \
	  --no-python-downloads --no-header --no-annotate --no-emit-index-url --upgrade; } > constraints.new
	mv constraints.new constraints.txt

# The stamp names the files' checksum and the clone, so that only a change installs anew, and a shared environment
# follows the clone that uses it.
install:
	@[ "$$(cat $(STAMP) 2>/dev/null)" = "$(KEY)" ] && exit 0; set -e; \
	$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "error: $(PYTHON) is $$($(PYTHON) --version 2>&1 || true): expected Python 3.10 to 3.13; run make PYTHON=/path/to/python3.12" >&2; \
	  exit 2; }; \
	[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV); \
	echo "installing into $(VENV) (a few minutes the first time) ..."; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'; \
	echo "$(KEY)" > $(STAMP)

clean:
	rm -rf out .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
