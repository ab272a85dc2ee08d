# Everything that set-up makes lives in .venv: delete that folder to start over.
PYTHON ?=
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
# Programs are run as modules: a script's first line names this folder, and a shell reads it.
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input

# A name on PATH may be an empty shim, or lack venv, so each candidate is asked to run.
SUITABLE := import ensurepip, platform, sys, venv; sys.exit( \
	not (3, 11) <= sys.version_info[:2] <= (3, 13) or \
	f"{sys.platform}-{platform.machine()}" not in ("linux-x86_64", "linux-aarch64", "darwin-arm64"))
FIND_PYTHON = \
	for python in $(or $(PYTHON),python3.13 python3.12 python3.11 python3); do \
		"$$python" -c '$(SUITABLE)' 2>/dev/null && break; python=; \
	done; \
	if test -z "$$python"; then \
		echo "Waymark needs Python 3.11, 3.12 or 3.13 with venv, on Linux (x86-64, arm64) or macOS (arm64):" \
			"$(if $(PYTHON),$(PYTHON) is not one,none is on PATH), so name one with make PYTHON=/path/to/python." >&2; \
		exit 1; \
	fi

.PHONY: help setup run ui test test-all test-cluster bench torture check lock schema reference docs

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s  %s\n", $$1, $$2 }' Makefile

setup: $(VENV)/installed ## install the locked packages and Waymark into .venv

run: setup ## train with the defaults: make run ARGS="model=cnn steps=2000"
	@$(BIN)/python -m waymark run $(ARGS)

ui: setup ## open the MLflow UI on the recorded runs
	@$(BIN)/python -m waymark ui $(ARGS)

test: setup ## run the tests: make test ARGS="-k resume"
	@$(BIN)/python -m pytest $(ARGS)

test-all: setup ## the tests that take longer, after make test: make test-all ARGS="--seed 7"
	@$(BIN)/python -m pytest -m long $(ARGS)

test-cluster: setup ## two Ray nodes, one of which is killed; four processes on a new store, 20 times
	@$(BIN)/python -m pytest -n 0 -m cluster -s $(ARGS)

bench: setup ## measure speed: half an hour, with nothing else running; MNIST_NPZ names MNIST
	@$(BIN)/python -m benchmarks

torture: setup ## attack real runs for an hour: make torture ARGS="--kills 25 --seed 1"
	@$(BIN)/python -m benchmarks.torture $(ARGS)

check: setup ## lint, check the formatting and the types
	@$(BIN)/python -m ruff check
	@$(BIN)/python -m ruff format --check
	@$(BIN)/python -m mypy

lock: ## renew requirements.lock; one package only: make lock ARGS="--upgrade-package rich"
	@$(FIND_PYTHON); set -e; \
	tools=$$(mktemp -d); trap 'rm -rf "$$tools"' EXIT; \
	"$$python" -m venv "$$tools"; \
	"$$tools/bin/python" -m pip --disable-pip-version-check install --quiet uv; \
	"$$tools/bin/uv" pip compile pyproject.toml --quiet --python "$$tools/bin/python" \
		--universal --python-version 3.11 --extra dev --generate-hashes --no-emit-index-url \
		--exclude-newer "7 days" --custom-compile-command "make lock" \
		--output-file requirements.lock $(or $(ARGS),--upgrade)

schema: setup ## write the SQL that new stores are made from, after an upgrade of MLflow
	@# MLflow's migrations go through sets: without a fixed order each time would be another text.
	@PYTHONHASHSEED=0 $(BIN)/python -m tests.support.schema

docs: setup ## build the documentation as a site: dist/site/index.html
	@$(BIN)/python -m mkdocs build --quiet

reference: setup ## write the tables of docs/configuration.md, after a change of a setting
	@$(BIN)/python -m tests.support.reference

# The last line of each recipe marks it done, so an interrupted set-up runs again: from an empty .venv,
# because pip takes a half-copied package for an installed one.
$(VENV)/locked: requirements.lock
	@$(FIND_PYTHON); \
	echo "Installing the locked packages into $(VENV) with $$python: once, for some minutes."; \
	"$$python" -m venv --clear $(VENV)
	@# One package is published as source only; its build tool comes first, from the lock as well.
	@awk '/^[^ #]/ { keep = /^setuptools==/ } keep' requirements.lock > $(VENV)/build.txt
	@$(PIP) install --quiet --require-hashes -r $(VENV)/build.txt
	@# --compile, whatever the user's pip is set to: without bytecode TensorFlow starts 2-3 times slower.
	@$(PIP) install --quiet --require-hashes --compile --no-build-isolation --use-pep517 -r requirements.lock
	@touch $@

$(VENV)/installed: $(VENV)/locked pyproject.toml
	@rm -rf $(VENV)/lib/python3*/site-packages/waymark*.dist-info $(VENV)/lib/python3*/site-packages/_waymark*.pth # pip cannot replace a half-written one
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@$(PIP) check
	@touch $@
