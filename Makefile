# Everything a contributor or a curious stranger needs. `make help` lists it.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

unexport PYTHONDONTWRITEBYTECODE  # some set it; here hundreds of processes import the same modules

.PHONY: help install demo test chaos lint results lock clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

install: .venv/installed  ## create .venv and install everything at pinned versions

.venv/installed: requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no python3 on the PATH; install Python 3.11 or newer" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@touch $@

demo: install  ## from nothing to a trained, served model, in a few minutes
	$(BIN)/textvae-jobs demo

test: install  ## the whole test suite, in two processes
	$(BIN)/python -m pytest -n 2 --dist loadgroup

chaos: install  ## the long tests: 300 kills over 200 jobs, every crash point, a storm over Ray, benchmarks
	TEXTVAE_CHAOS=all $(BIN)/python -m pytest -s tests/chaos tests/cluster/test_lost_attempts.py \
		tests/cluster/test_two_nodes.py tests/test_end_to_end.py tests/test_benchmark_train.py

lint: install  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

results: install  ## the table of results, from the records in docs/results
	$(BIN)/python benchmarks/results.py

lock:  ## write requirements.lock anew from the open ranges of pyproject.toml
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet 'torch==2.13.0' '.[dev]' hatchling editables
	sed -n '/^#/p' requirements.lock > requirements.lock.new
	.venv-lock/bin/python -m pip freeze | grep -v '^textvae-jobs' | sed -E 's/^(torch==[0-9.]+)\+.*/\1/' >> requirements.lock.new
	mv requirements.lock.new requirements.lock && rm -rf .venv-lock

clean:  ## remove what install and demo made
	rm -rf .venv demo .pytest_cache .mypy_cache .ruff_cache
