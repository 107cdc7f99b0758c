# Every task of this repository; `make` lists them. The environment lives in .venv and is made on first use.
#
# Each stamp in .venv stands for one installed set of packages, so that `make demo` fetches what users need
# and no more, and nothing is installed twice. pip 25.1 is the first that knows dependency groups.

PYTHON = python3
VENV = .venv
BIN = $(VENV)/bin

# make demo
INPUT =
LIBRARY_KEY =
GROUPBY =
LABELS_KEY =
OUT = demo

# make test ARGS="-k segment", make bench BENCH=scale, make tutorials DATA=folder/of/sections
ARGS =
BENCH = *
DATA = $(or $(STXTOOLS_DATASETDIR),../shared/data)

export INPUT LIBRARY_KEY GROUPBY LABELS_KEY OUT DATA
.DEFAULT_GOAL := help
.PHONY: help env demo test lint format contracts types docs site tutorials bench models paper clean
.DELETE_ON_ERROR:
.NOTPARALLEL:

help: ## list the tasks
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --- environment -----------------------------------------------------------------------------------------------

$(VENV)/.stamp-venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "stxtools needs Python 3.11 or later; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	@touch $@

# pip, with the pins of the development environment where they hold: see the top of that file
PIP_INSTALL = $(BIN)/python -m pip install --quiet --progress-bar off \
  $$($(BIN)/python -c 'import sys; print("-c constraints/dev.txt" * (sys.version_info[:2] == (3, 11)))')

$(VENV)/.stamp-run: pyproject.toml constraints/dev.txt | $(VENV)/.stamp-venv
	@echo "Installing stxtools and its dependencies into $(VENV) (some minutes at first) ..."
	$(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/.stamp-%: $(VENV)/.stamp-run
	$(PIP_INSTALL) --group $*
	@touch $@

env: $(VENV)/.stamp-lint $(VENV)/.stamp-test ## create .venv with all that lint and tests need

# --- use -------------------------------------------------------------------------------------------------------

# The default folder is the demo's own, so that a new run may replace what is in it.
ifeq ($(OUT) $(filter --resume,$(ARGS)),demo )
DEMO_FLAGS = --overwrite
endif

demo: $(VENV)/.stamp-run ## run all steps: [INPUT=section.h5ad or a folder] [LIBRARY_KEY=] [GROUPBY=] [LABELS_KEY=] [OUT=demo] [ARGS=]
	@MPLBACKEND=Agg $(BIN)/python -m stxtools run \
	  $${INPUT:+--input "$$INPUT"} $${LIBRARY_KEY:+--library-key "$$LIBRARY_KEY"} \
	  $${GROUPBY:+--groupby "$$GROUPBY"} $${LABELS_KEY:+--labels-key "$$LABELS_KEY"} --out "$$OUT" \
	  $(DEMO_FLAGS) $(ARGS)

# --- checks ----------------------------------------------------------------------------------------------------

test: $(VENV)/.stamp-test ## run the tests, a process for each core: [ARGS="-k segment -n 0"], with coverage: [ARGS=--cov]
	MPLBACKEND=Agg $(BIN)/python -m pytest -n auto --dist worksteal --durations=10 $(ARGS)

lint: $(VENV)/.stamp-lint ## check style and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(VENV)/.stamp-lint ## mend style and format where it can be done safely
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

contracts: $(VENV)/.stamp-lint ## check who may import whom
	$(BIN)/lint-imports

types: $(VENV)/.stamp-lint ## check the type annotations
	$(BIN)/mypy

# --- documentation and benchmarks ------------------------------------------------------------------------------

docs: $(VENV)/.stamp-docs ## build the documentation into docs/_build/html; a warning is an error
	rm -rf docs/_build/html
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --fresh-env --quiet --builder html docs docs/_build/html
	@echo "The documentation is in docs/_build/html/index.html"

site: docs $(VENV)/.stamp-site ## build the documentation and test it in headless Chromium
	$(BIN)/python -m pytest -q tests/test_site.py $(ARGS)

tutorials: $(VENV)/.stamp-docs ## execute the notebooks in place: [DATA=folder of the real sections]
	@if ! ls "$$DATA"/*.h5ad > /dev/null 2>&1; then \
	  echo "No real section (*.h5ad) in '$$DATA': the tutorials are left as they are. Name a folder with DATA=."; \
	  exit 0; \
	fi; \
	MPLBACKEND=module://matplotlib_inline.backend_inline STXTOOLS_DATASETDIR="$$(cd "$$DATA" && pwd)" \
	  $(BIN)/jupyter nbconvert --to notebook --execute --inplace \
	  --ExecutePreprocessor.kernel_name=python3 --ExecutePreprocessor.timeout=1800 tutorials/*.ipynb \
	  && $(BIN)/python docs/shrink_figures.py tutorials/*.ipynb

bench: $(VENV)/.stamp-run ## run the benchmarks, or one: [BENCH=name]
	@set -e; found=; for main in benchmarks/$(BENCH)/__main__.py; do \
	  [ -f "$$main" ] || continue; found=1; echo "== $$main"; $(BIN)/python "$${main%/__main__.py}" $(ARGS); \
	done; \
	[ -n "$$found" ] || { echo "There is no benchmark benchmarks/$(BENCH)/__main__.py." >&2; exit 1; }

models: $(VENV)/.stamp-run ## make the models that come with the package: [DATA=folder of the real sections]
	$(BIN)/python benchmarks/models --data "$$DATA"

paper: $(VENV)/.stamp-run ## run the method's experiments into docs/paper: [QUICK=1] [DATA=folder of the real sections]
	MPLBACKEND=Agg STXTOOLS_DATASETDIR="$$(cd "$$DATA" 2> /dev/null && pwd || echo "$$DATA")" $(BIN)/python benchmarks/paper $(if $(QUICK),--quick) $(ARGS)

clean: ## remove the environment and everything built or cached
	rm -rf $(VENV) build dist docs/_build docs/generated htmlcov .coverage .coverage.* coverage.xml
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find stxtools tests docs benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
