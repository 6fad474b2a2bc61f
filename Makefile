# Two commands for a newcomer: `make demo` and `make test`. Both make .venv first; both are safe to run again.
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export HF_HUB_OFFLINE := 1
# A process for each core, each with one thread: the networks of the tests are too small for two to share one.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 8 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all types check format clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP) ## make .venv with all extras and the command contextanyone

$(STAMP): pyproject.toml requirements.txt constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e ".[dev]"  # an import compiles what it needs
	@touch $(STAMP)

demo: $(STAMP) ## a picture and two prompts become a video, on a plain CPU
	@mkdir -p outputs
	@$(BIN)/contextanyone generate \
	  --reference assets/examples/red_hair_striped_shirt.png \
	  --first "A person with long red hair in a striped white shirt and blue trousers." \
	  --later "The same person is dancing at the beach at sunset." \
	  --seed 7 --out outputs/demo.mp4

test: $(STAMP) ## the fast test suite, a process for each core
	$(PYTEST) -m "not nightly"

test-all: $(STAMP) ## every test that this machine can run
	$(PYTEST)

types: $(STAMP) ## mypy --strict; nodes/ as a package of the repository, as ComfyUI loads it
	$(BIN)/mypy -p contextanyone_core -p training -p benchmarks -p evaluation -p data_pipeline
	@mkdir -p $(VENV)/types && ln -sfn "$(CURDIR)" $(VENV)/types/pack
	MYPYPATH=$(VENV)/types:stubs $(BIN)/mypy -p pack.nodes

check: types ## ruff, mypy --strict and the house's own rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP) ## let ruff put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove what make made, outputs included
	rm -rf $(VENV) outputs
