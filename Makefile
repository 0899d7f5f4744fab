# make install  makes the environment .venv with the command segret
# make demo     installs, trains a small model and draws what it sees (minutes, CPU)
# make test     installs, also what developers need, runs the tests
# make lint     installs the same, runs ruff, mypy and the check of the workflow's schema
# make docs     installs the same, builds the documentation into site/
# make clean    removes the environment; runs/ stays

PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/installed
DEVELOPER := $(VENV)/developer
PIP := $(VENV)/bin/python -m pip install --disable-pip-version-check
DEMO_ARGS ?=
SHELL := bash
# pip prints a line for each package; this shows the last one alone, and how many there were.
PROGRESS := awk '/^(Collecting|Processing|Installing)/ {n += !/^I/; printf "\r%-78.78s", n " packages: " $$0; fflush()} END {printf "\r%78s\r", ""}'

.PHONY: install demo test lint docs clean

install: $(INSTALLED)

demo: $(INSTALLED)
	rm -rf runs/demo
	$(VENV)/bin/segret demo $(DEMO_ARGS)

test: $(DEVELOPER)
	$(VENV)/bin/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(TEST_ARGS)

lint: $(DEVELOPER)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy segret_jax benchmarks examples train.py eval.py predict.py
	$(VENV)/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/ci.yml

docs: $(DEVELOPER)
	$(VENV)/bin/zensical build --clean --strict
	@echo "to read it: $(VENV)/bin/python -m http.server -d site, then open http://127.0.0.1:8000"

$(INSTALLED): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("segret_jax needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0] + "; say make PYTHON=python3.12")'
	@test -d $(VENV) && echo "updating $(VENV)" || echo "installing into $(VENV): some 75 packages, 1.4 GB; one to five minutes, only once"
	$(PYTHON) -m venv $(VENV)
	@set -o pipefail; $(PIP) -r requirements.txt -e . | $(PROGRESS)
	@# Without this, Python started in the folder above takes the checkout for an empty package.
	@echo "$(CURDIR)" > "$$($(VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/segret_jax_checkout.pth"
	@touch $(INSTALLED)
	@echo "installed; segment a photograph: $(VENV)/bin/segret predict PHOTO; what else there is: $(VENV)/bin/segret"

$(DEVELOPER): $(INSTALLED) requirements-dev.txt
	@echo "adding what tests and lint need to $(VENV): some 90 packages, 0.9 GB"
	@set -o pipefail; $(PIP) -r requirements-dev.txt | $(PROGRESS)
	@touch $(DEVELOPER)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .cache site
