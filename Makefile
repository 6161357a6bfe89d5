# The commands of the project; `make help` lists them. Each creates the virtual environment if it is missing.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
TORCH ?= auto
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
LOWEST := .venv-lowest
RUN ?= outputs/quickstart
PYTEST_WORKERS ?= 2
ARGS ?=
DEVICE ?= cuda
# The quickstart's 16 prompts are split among 4, 2 or 1 processes, depending on the number of cores.
CORES := $(shell $(PYTHON) -c 'import os; print(len(os.sched_getaffinity(0)))' 2>/dev/null || echo 1)
PROCESSES ?= $(shell echo $$(( $(CORES) >= 4 ? 4 : $(CORES) >= 2 ? 2 : 1 )))
LAUNCH = OMP_NUM_THREADS=$$(( $(CORES) / $(PROCESSES) )) \
	$(BIN)/python -m torch.distributed.run --standalone --nproc-per-node $(PROCESSES)

.PHONY: help demo quickstart install doctor test test-lowest bench guidance-bench gpu-bundle gpu-check lint report weights lock clean

help: ## list these commands
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/p' Makefile | expand -t 24

demo: $(READY) ## serve the small trained generator of checkpoints/ with its page, and open it (ARGS="--port 8080")
	$(BIN)/python -m amortized.commands.main serve --open --store outputs/served $(ARGS)

quickstart: $(READY) ## train on 16 prompts, evaluate, print the path of the report; resumes if interrupted
	$(LAUNCH) train.py configs/quickstart.yaml trainer.prompts_per_process=$$(( 16 / $(PROCESSES) ))
	$(LAUNCH) evaluate.py outputs/quickstart
	@echo "The report: file://$(CURDIR)/outputs/quickstart/evaluation/index.html"
	@echo 'Next: . $(BIN)/activate && amortized generate outputs/quickstart "a red cube"'

install: ## install into .venv, or update it (TORCH=cpu or TORCH=cuda chooses the build of torch)
	$(INSTALL)

doctor: $(READY) ## check this machine and print how to fix what is missing (ARGS=CONFIG for a run)
	$(BIN)/python -m amortized.doctor $(ARGS)

# One thread per worker: the workers already occupy all cores.
test: $(READY) ## run the tests (ARGS="-m slow" for the long ones)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(PYTEST_WORKERS) $(ARGS)

test-lowest: $(LOWEST)/.installed ## run the tests with the lowest versions that pyproject.toml allows
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -q -n $(PYTEST_WORKERS) $(ARGS)

bench: $(READY) ## run the benchmarks
	$(BIN)/python -m benchmarks $(ARGS)

guidance-bench: $(READY) ## compare guidance methods, with many runs each (a day on two cores; resumes if interrupted)
	$(BIN)/python -m benchmarks.guidance $(ARGS)

# Both run without the environment too: a GPU machine without a package index cannot create it.
gpu-bundle: ## download the wheels that a bare GPU machine lacks, into gpu-bundle/wheels
	$(PYTHON) -m benchmarks.bundle download

gpu-check: ## the first 8 minutes on a GPU, in outputs/gpu-check/report.md (DEVICE=cpu runs the same steps without one)
	$(if $(wildcard $(READY)),$(BIN)/python,$(PYTHON)) -m benchmarks.gpu_check --device $(DEVICE) $(ARGS)

lint: $(READY) ## check style and types
	$(BIN)/ruff check .
	$(BIN)/pyright

report: ## print the path of the report of RUN=outputs/quickstart, and open it on a desktop
	@page="$(RUN)/evaluation/index.html"; \
	if [ ! -f "$$page" ]; then \
		echo "error: there is no report $$page; run 'make quickstart' or 'amortized evaluate $(RUN)'" >&2; exit 1; \
	fi; \
	echo "file://$$(realpath "$$page")"; \
	if [ -n "$${DISPLAY:-}$${WAYLAND_DISPLAY:-}" ] && command -v xdg-open >/dev/null; then xdg-open "$$page"; fi

weights: $(READY) ## retrain the small models of checkpoints/ (hours on a CPU; resumes if interrupted)
	$(BIN)/python -m corpora.shapes.recipe $(ARGS)

# --universal: one lock for every platform and Python; locked versions stay as long as they fit.
lock: $(READY) ## update requirements.lock from pyproject.toml (ARGS=--upgrade for the newest versions)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/python -m uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 \
		--no-annotate --no-sources --custom-compile-command "make lock" --output-file requirements.lock $(ARGS)

clean: ## remove caches and build products; runs and the virtual environment stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)*/*' -prune -exec rm -rf {} +

# TORCH: auto takes torch without CUDA if there is no NVIDIA driver and TORCH_INDEX can be reached.
define INSTALL
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "error: Python 3.11 or newer is needed, but '$(PYTHON)' is not; name one with make PYTHON=python3.12" >&2; \
		exit 1; }
	@$(PYTHON) -m amortized.doctor.install $(VENV) --torch $(TORCH) --torch-index $(TORCH_INDEX)
endef

$(READY): requirements.lock pyproject.toml
	$(INSTALL)

# Direct requirements at their lower bounds, indirect ones as new as possible.
$(LOWEST)/.installed: pyproject.toml
	@echo "Installing into $(LOWEST) (about 7 GB, some minutes, once) ..."
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --disable-pip-version-check --quiet uv
	$(LOWEST)/bin/uv pip install --python $(LOWEST)/bin/python --resolution lowest-direct --editable ".[dev]"
	@touch $@
