# Two commands do everything on a fresh machine with Python 3.11+, make and git: `make quickstart`, `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Three processes on two cores, since long tests wait more than they compute, in the order of tests/conftest.py; the one
# that is done first takes over what another has not begun.
SIDE_BY_SIDE := -n 3 --dist worksteal
READY := $(VENV)/.ready
DOCS_VENV := .venv-docs
DOCS_READY := $(DOCS_VENV)/.ready

# Tests start many processes. Where this is set, each would compile every module again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: quickstart leaderboard docs test test-fast test-all lint format bench clean

quickstart: $(READY)
	$(BIN)/puregrid run quickstart --store results
	$(BIN)/puregrid report quickstart --store results --out results/report.html

# Every line of the bundled sweep; what is committed in results is not computed again.
leaderboard: $(READY)
	$(BIN)/puregrid run leaderboard --store results
	$(BIN)/puregrid leaderboard leaderboard --store results --out site/leaderboard

# The site of the documentation in site/docs, with the leaderboard if `make leaderboard` has written one. It reads the
# docstrings without importing puregrid, so that its environment is a small one of its own.
docs: $(DOCS_READY)
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/python -m mkdocs build --strict
	@echo "open site/docs/index.html"

test: $(READY)
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not nightly"

# None of these waits, so that a third process would only import everything once more.
test-fast: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-all: $(READY)
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) --hypothesis-profile nightly

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
	$(BIN)/python benchmarks/compiled.py
	$(BIN)/python benchmarks/purify_overhead.py
	$(BIN)/python benchmarks/exact_gradient.py
	$(BIN)/python benchmarks/attack_overhead.py
	$(BIN)/python benchmarks/pgd_peers.py

# The build backend is the locked setuptools: an isolated build would fetch one without a hash.
$(READY): pyproject.toml $(wildcard requirements/*)
	@echo "Setting up $(VENV) with the locked versions of requirements/; this takes some minutes, once."
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	requirements/install.sh $(BIN)/python development --quiet
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

$(DOCS_READY): requirements/docs.txt
	test -d $(DOCS_VENV) || $(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/python -m pip install --quiet --require-hashes --no-deps -r requirements/docs.txt
	@touch $@

clean:
	rm -rf $(VENV) $(DOCS_VENV) site results .mypy_cache .ruff_cache .pytest_cache .hypothesis
