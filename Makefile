# Each target sets up what it needs first; see scripts/setup.sh.
PYTHON := .venv/bin/python

.PHONY: help setup demo test check bench scaling soak audit clean

help:
	@echo "make demo    show the main job on embedded services, and leave nothing behind"
	@echo "make test    run the tests"
	@echo "make check   lint, types and the direction of imports"
	@echo "make bench   measure beside what is installed of s3fs, rclone, gcsfuse and Mountpoint"
	@echo "make scaling walk trees of 10,000 to 1,000,000 objects"
	@echo "make soak    an hour of random load and faults (MINUTES=60)"
	@echo "make audit   look the dependencies up in the databases of advisories"

setup:
	@scripts/setup.sh

demo: setup
	@$(PYTHON) -m optfs demo --once

test: setup
	@$(PYTHON) -m pytest

check: setup
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@MYPYPATH=scripts $(PYTHON) -m mypy
	@.venv/bin/lint-imports

bench: setup
	@$(PYTHON) -c 'import matplotlib' 2>/dev/null || { echo 'installing matplotlib, for the picture'; $(PYTHON) -m pip install --quiet matplotlib; }
	@$(PYTHON) scripts/bench.py --picture build/bench.png

scaling: setup
	@$(PYTHON) scripts/scaling.py

soak: setup
	@$(PYTHON) scripts/soak.py --minutes $(or $(MINUTES),60)

# What is ignored is explained in optfs/docs/threat-model.md.
audit: setup
	@$(PYTHON) -c 'import pip_audit' 2>/dev/null || { echo 'installing pip-audit'; $(PYTHON) -m pip install --quiet pip-audit; }
	@$(PYTHON) -m pip_audit --strict --progress-spinner off --ignore-vuln CVE-2025-69872 .

clean:
	@rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
