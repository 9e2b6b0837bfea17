# make demo | test | quick | hostile | check | format | notebooks | docs | bench | lowest | newest | audit | sbom |
# dependencies | dist | lock | hooks | clean; each installs first what it needs, which takes no time where nothing is
# missing.
# make quick runs the quick tests, make hostile all hostile files (the tests as a whole run a third of them); make lowest
# runs the quick tests with the lowest versions that pyproject.toml allows, make newest with the newest that there are,
# each in an environment of its own.
# make audit asks what is known of the locked versions (informative: it fails nothing), make sbom writes out/sbom.json,
# make dependencies writes the tables of docs/dependencies.md anew. make hooks has git run `make check` before each commit.
# make notebooks STORE=1 writes the outputs into the notebooks themselves, not into out/notebooks.
# BENCH="--only growth" or "--without-rivals" goes to benchmarks/bench.py.
# JOBS=1 runs the tests one after the other; each job takes up to 6 GB.
# VENV=PATH lets several clones share one environment; PYTHON=PATH chooses the interpreter (3.11 to 3.13).
PYTHON ?= python3
VENV ?= .venv
LOCK ?= requirements.lock
JOBS ?= 2
NOTEBOOKS ?= $(wildcard notebooks/*.ipynb)
EXECUTED ?= out/notebooks
BIN := $(VENV)/bin

.PHONY: demo test quick check format notebooks docs bench hostile lowest newest audit sbom dependencies dist lock hooks install clean

demo: install
	$(BIN)/python scripts/demo.py
	@echo "To go on: . $(BIN)/activate, then oip -h"

# Files of tests side by side: much of the time is that of TensorFlow, which starts and traces on one core.
test: install
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --durations 20

quick: install
	$(BIN)/python -m pytest -m "not slow"

hostile: install
	OIP_CORPUS=all $(BIN)/python -m pytest tests/test_hostile.py

check: install
	$(BIN)/ruff format --check src tests scripts benchmarks
	$(BIN)/ruff check src tests scripts benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff format src tests scripts benchmarks
	$(BIN)/ruff check --fix src tests scripts benchmarks

# nbconvert, since nbmake and `jupyter execute` store this run's times and versions, which would make every run a change;
# and nbmake writes in place only. Bars would be stored as they stood at first.
notebooks: install
	TQDM_DISABLE=1 $(BIN)/jupyter nbconvert --to notebook --execute --ExecutePreprocessor.timeout=900 \
	  --ClearMetadataPreprocessor.enabled=True --ClearMetadataPreprocessor.preserve_nb_metadata_mask=kernelspec \
	  $(if $(STORE),--inplace,--output-dir $(EXECUTED)) $(NOTEBOOKS)

# The variable silences an advertisement alone. With --quiet mkdocs would not count its warnings, and never be strict.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: install
	$(BIN)/python benchmarks/bench.py $(BENCH)

lowest:
	$(MAKE) quick VENV=.venv-lowest LOCK=requirements-lowest.lock

# Not from a lock: what a user gets who installs today.
newest:
	[ -x .venv-newest/bin/python ] || $(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(subst $(BIN),.venv-newest/bin,$(INDEX)); .venv-newest/bin/uv pip install --quiet --upgrade \
	  --python .venv-newest/bin/python --editable '.[dev]'
	.venv-newest/bin/python -m pytest -m "not slow"

# The lock has hashes for several Pythons and systems; those of this one are looked at.
audit: install
	@$(INDEX); $(BIN)/uv tool run --quiet --python $(BIN)/python pip-audit --requirement $(LOCK) --disable-pip --require-hashes \
	  || true
	@echo "audit: this is for information, and fails nothing; what has a skip reason above was not looked at"

sbom: install
	@mkdir -p out
	@$(INDEX); $(BIN)/uv tool run --quiet --python $(BIN)/python --from cyclonedx-bom cyclonedx-py environment \
	  --output-reproducible --output-format JSON -o out/sbom.json $(BIN)/python
	@echo "out/sbom.json"

dependencies: install
	$(BIN)/python scripts/dependency_tables.py

dist: install
	rm -rf dist
	$(BIN)/hatchling build
	$(BIN)/uv tool run --python $(BIN)/python twine check --strict dist/*

# Not uv.lock: it names the index, and the address of every file there, while a clone may have another index. These files
# hold versions and hashes alone, for all the Pythons and systems at once.
lock: install
	$(COMPILE) --output-file requirements.lock
	$(COMPILE) --output-file requirements-lowest.lock --resolution lowest-direct

COMPILE = $(INDEX); $(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 \
  --no-python-downloads --generate-hashes --no-annotate --custom-compile-command "make lock" --upgrade --quiet

hooks: install
	$(BIN)/pre-commit install

# Both calls end at once where all is there already. The lock pins what builds the project, too: no isolation. As a line
# of requirements "-e ." is built anew only after a change of pyproject.toml, or for another clone. Bytecode is made once:
# where PYTHONDONTWRITEBYTECODE is set, as in many containers, each process would compile torch and TensorFlow for itself.
install: $(BIN)/uv
	@$(INDEX); call="$(BIN)/uv pip install --python $(BIN)/python $$([ -t 2 ] || echo --quiet)"; \
	compile=$$(ls -d $(VENV)/lib/python3*/site-packages/torch/__pycache__ >/dev/null 2>&1 || echo --compile-bytecode); \
	$$call $$compile --require-hashes --requirements $(LOCK) && echo "-e ." | $$call --no-deps --no-build-isolation --requirements -

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "error: $(PYTHON) is $$($(PYTHON) --version 2>&1 || true): expected Python 3.11 to 3.13; run make PYTHON=/path/to/python3.12" >&2; \
	  exit 2; }
	@echo "installing into $(VENV): the first time about 9 GB, most of it torch with CUDA and TensorFlow, in a minute or more ..."
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	@sed -n '/^uv==/,/[^\\]$$/p' $(LOCK) | \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement /dev/stdin

# uv does not read pip's settings, so it is told which index and which certificates they name, if any.
INDEX = of_pip() { $(BIN)/python -m pip config list 2>/dev/null | sed -n "s/^global.$$1='\(.*\)'$$/\1/p"; }; \
  index=$${UV_DEFAULT_INDEX:-$${PIP_INDEX_URL:-$$(of_pip index-url)}}; \
  certificates=$${SSL_CERT_FILE:-$${PIP_CERT:-$$(of_pip cert)}}; \
  [ -z "$$index" ] || export UV_DEFAULT_INDEX="$$index"; \
  [ -z "$$certificates" ] || export SSL_CERT_FILE="$$certificates"

clean:
	rm -rf out .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
