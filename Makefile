# `make demo` runs the main job, `make test` the gate, `make test-slow` what takes too long for it. All set up .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
EXTRAS ?= llm,wandb,dev

.PHONY: demo test test-slow docs setup clean
.DELETE_ON_ERROR:

setup: $(VENV)/.ready

# torch goes first and alone: asked for by name and version, pip takes a local CPU build where there is one.
$(VENV)/.ready: pyproject.toml constraints.txt setup.py
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "steca-gym needs Python 3.11 or newer, got %s; run make PYTHON=/path/to/python3.11" % sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints.txt)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@

demo: setup
	$(BIN)/steca demo

test: setup
	$(BIN)/python -m tests.gate

test-slow: setup
	$(BIN)/python -m tests.gate --slow

# The site in site/, which needs no network to read.
docs: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist *.egg-info site
