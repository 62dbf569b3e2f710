# `make demo` and `make test` set themselves up: they need Python 3.11 or newer and make, nothing else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo docs test lint release clean

demo: $(VENV)/.installed
	@echo '== geolearn demo: two scenes, chips, training, a bundle, a map (about 4 minutes on 2 cores)'
	rm -rf demo_output
	$(BIN)/python -m geolearn demo --out demo_output

test: $(VENV)/.installed-test
	@echo '== tests (about 15 minutes on 2 cores)'
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow and not gpu and not network'

docs: $(VENV)/.installed-docs
	@echo '== the documentation as a site: site/index.html'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lint: $(VENV)/.installed-test
	@echo '== ruff and mypy'
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

release: $(VENV)/bin/python
	@echo '== wheel and sdist, checked and tried in clean environments (needs the internet)'
	PYTHON=$(BIN)/python .ci/release

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		(echo 'geolearn needs Python 3.11 or newer; run make with PYTHON=/path/to/python3.11' && exit 1)
	@echo '== making a virtual environment in $(VENV)'
	@$(PYTHON) -m venv $(VENV) || (rm -rf $(VENV); \
		echo 'cannot make a virtual environment; on Debian: apt install python3-venv'; exit 1)

$(VENV)/.installed: setup.cfg | $(VENV)/bin/python
	@echo '== installing geolearn and what it needs (torch is large: some minutes the first time)'
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-test: setup.cfg $(VENV)/.installed
	@echo '== installing what the tests need'
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@

$(VENV)/.installed-docs: setup.cfg $(VENV)/.installed
	@echo '== installing what the documentation needs'
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) demo_output site
