# Every target sets up what it needs: .venv is made on first use and brought up to date when
# pyproject.toml or constraints.txt change. uv is used when it is there, else venv + pip.
#
#   make explorer ARGS="--port 8000"     make train ARGS="--stage joint --arm gear"
#   make reproduce BUDGET=quick          make test PYTHON=python3.12

PYTHON ?= python3
ARGS ?=
BUDGET ?= shipped

BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help setup hooks explorer lab notebooks test test-fast lint train reproduce wheel docs constraints clean

help:
	@echo "make explorer   the app, on the models that ship with the repository"
	@echo "make lab        the notebooks, in JupyterLab"
	@echo "make notebooks  run the notebooks anew and save them with their outputs"
	@echo "make test       lint, format check, types and tests"
	@echo "make test-fast  the same without browser, notebooks and training, in two minutes"
	@echo "make hooks      check what changes at every commit (pre-commit)"
	@echo "make train      gear-studio train shapes   (ARGS=... is passed on)"
	@echo "make reproduce  retrain the shipped models (BUDGET=shipped, long, quick or smoke)"
	@echo "make wheel      build the package into dist/: pip install dist/*.whl"
	@echo "make docs       build the documentation as a site into build/site, offline"
	@echo "make clean      remove the environment and tools' caches"

setup: $(READY)

explorer: $(READY)
	$(BIN)/python apps/explorer.py $(ARGS)

lab: $(READY)
	$(BIN)/jupyter lab $(wildcard notebooks) $(ARGS)

notebooks: $(READY)
	$(BIN)/python notebooks/execute.py $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A file's tests share what they train, so each file stays with one worker.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

test: lint
	$(PYTEST) $(ARGS)

test-fast: lint
	$(PYTEST) -m "not slow" $(ARGS)

hooks: $(READY)
	uv pip install --python $(BIN)/python -c constraints.txt -e '.[dev]' || $(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	$(BIN)/pre-commit install

train: $(READY)
	$(BIN)/gear-studio train shapes $(ARGS)

reproduce: $(READY)
	$(BIN)/gear-studio reproduce --budget $(BUDGET) $(ARGS)

wheel: $(READY)
	rm -rf dist
	$(BIN)/python -c "from setuptools.build_meta import build_wheel; print(build_wheel('dist'))"

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

# The stamp is written last, so an interrupted set-up is taken up again. A .venv whose interpreter is
# gone or too old is made anew. The pinned versions have wheels for Python 3.11 to 3.14.
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))

$(READY): pyproject.toml constraints.txt
	@$(BIN)/python -c '$(SUPPORTED)' 2>/dev/null || $(PYTHON) -c '$(SUPPORTED)' 2>/dev/null || { \
	  found=$$($(PYTHON) --version 2>&1) || found="not a Python that runs"; \
	  echo "$(PYTHON) is $$found, but Python 3.11 to 3.14 is needed." >&2; \
	  echo "Name another, for example: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; \
	  echo "With uv: uv python install 3.12 && make $(MAKECMDGOALS) PYTHON=\"\$$(uv python find 3.12)\"" >&2; \
	  exit 1; }
	@$(BIN)/python -c '$(SUPPORTED)' 2>/dev/null || rm -rf .venv
	@if command -v uv >/dev/null 2>&1; then set -ex; \
	  test -d .venv || uv venv --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')" .venv; \
	  uv pip install --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[test,docs]'; \
	else set -ex; \
	  test -d .venv || $(PYTHON) -m venv .venv; \
	  $(BIN)/python -m pip --version || $(BIN)/python -m ensurepip; \
	  $(BIN)/python -m pip install --upgrade pip; \
	  $(BIN)/python -m pip install -c constraints.txt -e '.[test,docs]'; \
	fi
	@touch $@

# Resolve anew, for every platform and Python at once (needs uv): one version each, markers dropped,
# since a constraint on a package that is not installed does nothing.
constraints:
	uv pip compile --quiet --upgrade --universal --fork-strategy fewest --python-version 3.11 --extra test --extra dev --extra docs \
	  --no-annotate --no-header --output-file .constraints.new pyproject.toml
	sed "/== 'emscripten'/d; s/ *;.*//" .constraints.new > constraints.txt
	rm .constraints.new

clean:
	rm -rf .venv .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
