# Two commands do everything on a fresh machine with Python 3.11+, make and git: `make quickstart`, `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two processes with half of the tests each, in the order of tests/conftest.py; the one that is done first takes over
# what the other has not begun.
SIDE_BY_SIDE := -n 2 --dist worksteal
READY := $(VENV)/.ready

# Tests start many processes. Where this is set, each would compile every module again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: quickstart test test-fast lint format bench clean

quickstart: $(READY)
	$(BIN)/puregrid run quickstart --store results
	$(BIN)/puregrid report quickstart --store results --out results/report.html

test: $(READY)
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

test-fast: $(READY)
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not slow"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	$(BIN)/python benchmarks/engine_overhead.py
	$(BIN)/python benchmarks/noise.py
	$(BIN)/python benchmarks/purify_overhead.py
	$(BIN)/python benchmarks/exact_gradient.py
	$(BIN)/python benchmarks/attack_overhead.py
	$(BIN)/python benchmarks/pgd_peers.py

# torch first: an installed one that fits keeps pip from looking for another build. torchattacks, a peer in tests and
# benchmarks, pins a requests of 2020 that it does not need here.
$(READY): pyproject.toml constraints.txt
	@echo "Setting up $(VENV) with the versions of constraints.txt; this takes some minutes, once."
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps torchattacks
	@touch $@

clean:
	rm -rf $(VENV) results .mypy_cache .ruff_cache .pytest_cache .hypothesis
