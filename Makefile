# `make demo` and `make test` do all the set-up themselves; `make help` lists the rest.
#   PYTHON=python3.12   the interpreter (default: the first of python3, python3.14 ... python3.11 in range)
#   PIP_ARGS='...'      passed to pip install, for example the index of a CPU or CUDA build of torch
#   DEMO_ARGS, PYTEST_ARGS   passed to the demo and to pytest

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup demo test lint unit demo-test format clean

export PYTHON PIP_ARGS
# Another environment that happens to be active is none of ours.
unexport VIRTUAL_ENV PYTHONHOME PYTHONPATH
# Nothing is fetched from a model hub, ever.
export HF_HUB_OFFLINE := 1
export TRANSFORMERS_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

BIN := .venv/bin
PYTEST_ARGS ?= -n auto --maxprocesses 4

help: ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1#\2/p' Makefile | awk -F'#' '{printf "%-18s %s\n", $$1, $$2}'
	@echo "  options: PYTHON=python3.12  PIP_ARGS='...'  DEMO_ARGS='--seeds 5'  PYTEST_ARGS='-k name'"

setup: ## make or mend .venv, at the pinned versions
	@sh tools/setup.sh

demo: setup ## set up, then run the demo
	$(BIN)/laplace-lora demo $(DEMO_ARGS)

test: lint unit demo-test ## set up, then all checks, the tests and the demo at reduced size

lint: setup ## ruff, mypy and the import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

unit: setup ## the tests; one thread each, as many processes as cores (at most 4)
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

demo-test: setup ## the demo at reduced size, end to end; its report stays in build/demo-test
	rm -rf build/demo-test
	$(BIN)/laplace-lora demo --small --out build/demo-test

format: setup ## rewrite the sources as ruff wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove .venv, reports and caches
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find src tests tools -type d -name __pycache__ -prune -exec rm -rf {} +
