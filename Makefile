# Everything a newcomer needs: `make demo` and `make test` on a machine with only Python (>= 3.11) and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export JAX_PLATFORMS ?= cpu
# Large temporaries stay mapped instead of being faulted in anew at every step: a fifth of the time of a step on a CPU.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=8000000000:glibc.malloc.top_pad=268435456:glibc.malloc.arena_max=1

.PHONY: help install demo test lint clean

help:
	@echo "make demo   set up, make episodes, train a world model, write demo/index.html (minutes)"
	@echo "make test   set up and run the tests"
	@echo "make lint   style, format and types"
	@echo "make clean  remove what the above made"

# The stamp's prerequisites say when to install again: the package's dependencies, and nothing else.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

install: $(VENV)/.installed

demo: $(VENV)/.installed
	$(BIN)/jaxwm train configs/rssm_bounce.yaml --run demo/run
	$(BIN)/jaxwm report demo/run --out demo/index.html

# Tests compile much and run little.
test: export XLA_FLAGS := $(XLA_FLAGS) --xla_backend_optimization_level=0
test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf demo data runs $(VENV)
