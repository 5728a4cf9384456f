# Two commands do everything on a fresh machine:  make demo   make test
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_OUT ?= diffnb-demo

.PHONY: demo test install dev check docs-check notebooks pytest readme clean

demo: install
	$(BIN)/diffnb demo --out $(DEMO_OUT)

test: dev check docs-check notebooks pytest

install: $(VENV)/.installed

dev: $(VENV)/.installed-dev

$(VENV)/.installed: settings.ini pyproject.toml setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.installed-dev: settings.ini pyproject.toml setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@ $(VENV)/.installed

# diffnb/ is what the notebooks export, notebooks are clean, README.md is current, style holds
check: dev
	$(BIN)/python .ci/check.py

# the site's pages are made as nbdev makes them, without Quarto, and every link and name in them leads somewhere
docs-check: dev
	$(BIN)/python .ci/docs.py

notebooks: dev
	PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 $(BIN)/nbdev-test --n-workers 2 --do-print

pytest: dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

readme: dev
	$(BIN)/python .ci/readme.py

clean:
	rm -rf $(VENV) build dist *.egg-info $(DEMO_OUT)
