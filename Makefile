# Each command sets up .venv by itself, from the versions in constraints.txt.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && echo $$p && break; done)
VENV = .venv
INSTALL = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: train test benchmark clean

train: $(VENV)/.train
	$(VENV)/bin/rlloss-train $(ARGS)

test: $(VENV)/.test
	$(VENV)/bin/python -m pytest $(ARGS)

benchmark: $(VENV)/.benchmark
	$(VENV)/bin/python scripts/benchmark.py $(ARGS)

clean:
	rm -rf $(VENV)

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "rlloss needs Python 3.11, 3.12 or 3.13 with venv; name one with make PYTHON=..."; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.train: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing into $(VENV), once; this takes a few minutes"
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.train
	$(INSTALL) --editable ".[test]"
	@touch $@

$(VENV)/.benchmark: $(VENV)/.train
	$(INSTALL) --editable ".[benchmark]"
	@touch $@
