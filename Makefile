# FOCAL: every command of the README. `make` alone lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help

# Where real data lies. A folder shared beside the checkout wins over ./data; FOCAL_DATA=/path overrides both.
FOCAL_DATA ?= $(if $(wildcard ../shared/data/.),../shared/data,data)
export FOCAL_DATA := $(abspath $(FOCAL_DATA))

bin := .venv/bin
trainings := retina severity pathology xray

.PHONY: help setup native demo $(trainings:%=train-%) finetune-retina reproduce attack bench gpu-check gpu-wheels test test-slow fuzz crash lint types check clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@printf '\n  data: FOCAL_DATA=%s\n' '$(FOCAL_DATA)'

setup: ## make .venv with everything in it (PYTHON=/path chooses the interpreter; TORCH=cpu: no GPU)
	@bash scripts/setup.sh

native: ## compile the native kernels again, in place (setup does it too)
	@$(bin)/python -m focal.ckks.native

demo: setup ## the main job on generated images: nothing is downloaded
	$(bin)/focal demo

train-retina: ## ODIR-5K, 8 eye diseases
train-severity: ## RetinaMNIST, 5 severity grades
train-pathology: ## H&E colon tiles, benign or adenocarcinoma
train-xray: ## PneumoniaMNIST, chest X-ray
$(trainings:%=train-%): train-%: setup
	$(bin)/focal train --config $*

finetune-retina: setup ## ODIR-5K again, the lower segment learns too (interactive protocol)
	$(bin)/focal train --config finetune-retina

BUDGET ?= 60

reproduce: setup ## the paper's tables on public data (BUDGET=minutes); after `make attack`, leaks beside them
	$(bin)/focal reproduce --budget $(BUDGET) --out experiments/results

attack: setup ## what each party's view is worth to an attacker, FOCAL's and others'
	$(bin)/focal attack --out experiments/results/attacks

bench: setup ## speed, size and accuracy against their targets
	$(bin)/focal bench all

gpu-wheels: setup
	@bash scripts/gpu-check.sh wheels

gpu-check: ## institutions on this machine's GPU, figures to docs/gpu.md; skipped without one (WHEELS=folder: no network)
	@bash scripts/gpu-check.sh

# A file's tests stay with one worker, whole runs come first (tests/conftest.py). The reason of every skip is said, and the slowest few.
pytest := OMP_NUM_THREADS=1 $(bin)/pytest -n 2 --dist loadfile --no-loadscope-reorder -rs --durations=5

test: setup ## the quick tests: tests/unit and tests/runs
	$(pytest) tests/unit tests/runs -m "not slow"

test-slow: setup ## the others: attacks, lost custodians, stalled links, pulled plugs, long trainings
	$(pytest) -m slow

fuzz: setup ## two million mutated messages against every decoder
	OMP_NUM_THREADS=1 $(bin)/python tests/support/fuzz.py

crash: setup ## kill -9 of random parties at random moments, 100 times
	OMP_NUM_THREADS=1 $(bin)/python tests/support/crash.py --kills 100

lint: setup ## ruff
	$(bin)/ruff check .

types: setup ## mypy
	$(bin)/mypy

check: lint types test test-slow ## what CI runs

clean: ## remove caches and build leftovers; runs/ and .venv stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis lightning_logs
	find . -path ./.venv -prune -o -path ./runs -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +
