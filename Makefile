# Every target does all of its own set-up: a private .venv from requirements.lock, nothing outside.
SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SEEDS ?= 500

.PHONY: help setup test check demo bench bench-quick simulate soak interop lock clean

help:
	@echo "make demo         hospitals on this machine: record, share, vote, prove (under a minute)"
	@echo "make test         lint, types and the whole test suite"
	@echo "make check        lint, types, import directions and formats only"
	@echo "make simulate     seeded fault simulation of consensus, SEEDS=$(SEEDS)"
	@echo "make bench-quick  throughput and latency against this machine's limit (under a minute)"
	@echo "make bench        all measurements, several minutes"
	@echo "make soak         kill -9 in a loop under load"
	@echo "make interop      against a real PACS: Debian's Orthanc and dcmtk, installed where it may"
	@echo "make lock         renew requirements.lock from pyproject.toml"

setup: $(READY)

$(READY): requirements.lock pyproject.toml .ci/setup
	@sh .ci/setup $(VENV)
	@touch $(READY)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_architecture.py

test: check
	$(BIN)/python -m pytest -n 2 --dist loadgroup

demo: $(READY)
	$(BIN)/radledger demo

bench-quick: $(READY)
	$(BIN)/python -m tests.bench --quick

bench: $(READY)
	$(BIN)/python -m tests.bench

simulate: $(READY)
	$(BIN)/python -m tests.simulation --seeds $(SEEDS) --jobs 2
	$(BIN)/python -m tests.simulation --canary all

soak: $(READY)
	$(BIN)/python -m tests.soak

interop: $(READY)
	$(BIN)/python -m tests.interop

lock: $(READY)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header \
	    --python-version 3.11 --extra dev --output-file requirements.lock pyproject.toml

clean:
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
