# Each target sets up .venv by itself on a fresh clone; the second time it is there at once.
.DEFAULT_GOAL := help
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
# a terminal sees uv's own progress bar; a log file sees our two lines only
QUIET := $(if $(MAKE_TERMOUT),,--quiet)

# else every process compiles torch and Lightning anew, which takes longer than most tests
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install demo test test-studies test-oldest lint docs smoke soak reproduce bench clean

help:
	@echo 'make demo     train, test and profile a small model on handwritten digits (about a minute)'
	@echo 'make test     the test suite'
	@echo 'make test-studies  tests that repeat claims of studies'
	@echo 'make test-oldest  the test suite with the lowest versions of what this package needs'
	@echo 'make lint     ruff and mypy'
	@echo 'make docs     build the site into site/'
	@echo 'make smoke    every method against its baseline at toy size'
	@echo 'make soak     a minute of requests against the server, with failures'
	@echo 'make reproduce  the table of results: five seeds of everything that a CPU can do (hours)'
	@echo 'make bench    run the shorter side-by-side studies of benchmarks/'
	@echo 'make install  only set up .venv'
	@echo 'make clean    remove .venv and everything that was built'

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@if [ -z '$(PYTHON)' ] || ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
		echo 'error: Python 3.11 or newer is needed and was not found; install it or run: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11' >&2; exit 1; fi
	@echo '· setting up .venv ($(PYTHON), uv)'
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	@[ -x $(BIN)/uv ] || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv 2>$(VENV)/pip.log || { cat $(VENV)/pip.log >&2; exit 1; }
	@echo '· installing the project (the first time takes about a minute)'
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install $(QUIET) --python $(BIN)/python -e '.[dev]' -c constraints.txt
	@touch $@

demo: install
	@$(BIN)/python -m lightning_efficient.cli.demo

test: install
	@$(BIN)/python -m pytest -n 2 --dist worksteal

test-studies: install
	@$(BIN)/python -m pytest -n 2 -m study

# OLDEST=dev has torchao, and so the lowest torch that goes with it; --exact takes out what is left of the other one
OLDEST ?= test
test-oldest: install
	@echo '· setting up .venv-oldest ($(PYTHON), the lowest versions that pyproject.toml allows)'
	@[ -x .venv-oldest/bin/python ] || $(PYTHON) -m venv --without-pip .venv-oldest
	@echo '*' > .venv-oldest/.gitignore
	@VIRTUAL_ENV=$(CURDIR)/.venv-oldest $(BIN)/uv pip install $(QUIET) --exact --upgrade --resolution lowest-direct --python .venv-oldest/bin/python -e '.[$(OLDEST)]'
	@.venv-oldest/bin/python -m pytest -n 2 --dist worksteal --ignore tests/benchmarks

lint: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

docs: install
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo 'site/index.html'

smoke: install
	@$(BIN)/python benchmarks/reproduce.py --profile smoke

soak: install
	@$(BIN)/python benchmarks/serving_soak.py --seconds 60

reproduce: install
	@$(BIN)/python benchmarks/reproduce.py --profile cpu

bench: install
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --python $(BIN)/python -e '.[bench]' -c constraints.txt
	@for study in startup callback_overhead mac_counters risk_coverage recurrent_cells fptt_memory disk_landscape disk_step selective_thresholds online_abstention global_layer routing_thresholds routed_latency; do $(BIN)/python benchmarks/$$study.py || exit 1; done

clean:
	@rm -rf $(VENV) .venv-oldest site dist build runs .mypy_cache .ruff_cache .pytest_cache .hypothesis
