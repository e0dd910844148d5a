# `make demo` runs the main job, `make test` the gate, `make test-slow` what takes too long for it. All set up .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
EXTRAS ?= llm,wandb,dev

# What requirements.lock covers: everything of the gate but the worlds of other makers, some of which are GPL.
LOCKED := llm wandb openenv ray browser terminal review docs dev supply

.PHONY: demo test test-slow docs setup clean lock licences audit sbom
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

# Exact versions with the digests of their files, for every platform: of the base install, and of all the gate uses.
lock: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[supply]'
	$(BIN)/uv pip compile $(LOCK_OPTIONS) -o requirements-base.lock pyproject.toml
	$(BIN)/uv pip compile $(LOCK_OPTIONS) $(addprefix --extra ,$(LOCKED)) -o requirements.lock pyproject.toml

LOCK_OPTIONS := --quiet --universal --python-version 3.11 --generate-hashes --no-header -c constraints.txt

# docs/licences.md, from what is installed in .venv.
licences: setup
	$(BIN)/python -m tests.licences

# Known vulnerabilities of the locked versions; asks an advisory service on the network.
audit: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[supply]'
	$(BIN)/pip-audit --strict --disable-pip --require-hashes -r requirements-base.lock
	$(BIN)/pip-audit --strict --disable-pip --require-hashes -r requirements.lock

# The bill of materials of a release, in dist/.
sbom: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[supply]'
	mkdir -p dist
	$(BIN)/cyclonedx-py requirements requirements.lock --pyproject pyproject.toml --output-reproducible --of JSON -o dist/steca-gym.cdx.json

clean:
	rm -rf $(VENV) build dist *.egg-info site
