# make run     train on digits in a fresh environment: the first thing to try
# make test    every check: lint, format, types, layers, tests
# make lint    all of them but the tests
# make matrix  the tests under every Python of PYTHONS that is found
# make audit   attack every promise at full size; prints one table
# make bench   time one training step beside plain SGD and Opacus (a quarter of an hour)
# make compare  Opacus against dplip on Fashion-MNIST at epsilon 3, three seeds (DPLIP_DATA names the data's folder)
# make clean   remove the environment, caches and build products (runs/ stays)

PYTHON ?= python3
VENV ?= .venv
PYTHONS ?= python3.10 python3.11 python3.12 python3.13
CONSTRAINTS ?= -c constraints.txt
BIN = $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS)

.DEFAULT_GOAL := run
.PHONY: run test tests lint matrix audit fuzz bench compare clean

run: $(VENV)/.installed
	$(BIN)/dplip train --data digits --epsilon 8 --out runs/digits

# One thread per worker: small tests gain nothing from more, and two workers would fight over the cores.
test: lint tests

tests: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# Some versions of constraints.txt are not for Python 3.10: it takes the newest that are.
matrix:
	@for python in $(PYTHONS); do \
		version=$$($$python -c 'import sys; print("%d.%d" % sys.version_info[:2])') || { echo "$$python: not found, not run"; continue; }; \
		test $$version = 3.10 && constraints= || constraints="-c constraints.txt"; \
		$(MAKE) tests VENV=.venv-$$version PYTHON=$$python CONSTRAINTS="$$constraints" || exit 1; \
	done

audit: $(VENV)/.installed-dev
	$(BIN)/python tests/attacks/audit_all.py

# Nightly: 2e5 inputs of the readers by atheris, which sees the branches that they take, about 4e4 by hypothesis.
fuzz: $(VENV)/.installed-dev
	$(INSTALL) -e '.[fuzz]'
	$(BIN)/python tests/attacks/fuzz_readers.py --runs 50000
	DPLIP_FUZZ=4000 $(BIN)/python -m pytest -q tests/attacks/test_fuzz.py

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/suite.py --json runs/suite.json --markdown runs/suite.md

compare: $(VENV)/.installed-dev
	$(BIN)/python examples/compare_opacus.py --data fashion-mnist --epsilon 3 --seeds 3

clean:
	rm -rf .venv .venv-* build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Both installs are editable, so that a changed source file needs no new install and neither undoes the other.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing dplip into $(VENV) (a minute or two)"
	$(INSTALL) torch
	$(INSTALL) -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "installing the tools that the checks need"
	$(INSTALL) -e '.[dev]'
	touch $@
