# Two commands do everything on a fresh machine:  make demo   make test
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_OUT ?= diffnb-demo
DEMO_ARGS ?= # such as --train-seconds 10 --rows 2, for a short one
DIST ?= dist
DIFFNB_DATA ?= data
unexport PYTHONDONTWRITEBYTECODE # with it every interpreter compiles all of PyTorch that it imports again: seconds each time

.PHONY: demo test install dev check docs-check notebooks pages pytest test-browser coverage bench bench-quick readme dist clean

demo: install
	$(BIN)/diffnb demo --out $(DEMO_OUT) $(DEMO_ARGS)

test: dev check docs-check notebooks pytest

install: $(VENV)/.installed

dev: $(VENV)/.installed-dev

$(VENV)/.installed: settings.ini pyproject.toml setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing diffnb and PyTorch into $(VENV): some minutes, and up to some gigabytes where PyTorch brings CUDA"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.installed-dev: settings.ini pyproject.toml setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing diffnb, PyTorch and what development needs into $(VENV): some minutes, and up to some gigabytes where PyTorch brings CUDA"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@ $(VENV)/.installed

# diffnb/ is what the notebooks export, notebooks are clean, README.md is current, style holds
check: dev
	@date "+== %T $@"
	$(BIN)/python .ci/check.py

# the pages' texts are read; the site's pages are made as nbdev makes them, without Quarto, and every link and name in them leads somewhere; where
# Quarto has rendered them into _docs (`nbdev-docs`) and Chromium is installed, none is wider than the screen of a telephone
docs-check: dev
	@date "+== %T $@"
	$(BIN)/python .ci/texts.py
	$(BIN)/python .ci/docs.py
	if [ -n "$$DIFFNB_SITE" ] || [ -d _docs ]; then $(BIN)/python -m pytest -q -rs tests/test_site_width.py; fi

# cells marked slow are run where DIFFNB_SLOW is set; figures of pages are among them
notebooks: dev
	@date "+== %T $@"
	PATH="$(abspath $(BIN)):$$PATH" DIFFNB_QUICK=1 OMP_NUM_THREADS=1 $(BIN)/nbdev-test --n-workers 3 --do-print --timing $(if $(DIFFNB_SLOW),--flags slow)

# three processes, also on two cores: some tests wait for a browser or for processes of their own
pytest: dev
	@date "+== %T $@"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --durations=30 --durations-min=3

# the dashboard in a real browser, all that a visitor may do; `make test` has a short part of it where Chromium is installed
test-browser: dev
	DIFFNB_SLOW=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/apps/test_dashboard.py

# the same tests, and how many lines of the package they run, those of processes of their own not counted; fewer than the floor is a failure
coverage: dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --cov=diffnb --cov-report=term:skip-covered --cov-fail-under=90

# run pages again, with the looks that all figures share:  make pages PAGES="nbs/01_noise/01_sdes.ipynb"
PAGES ?= $(error name the pages to run: make pages PAGES="nbs/01_noise/01_sdes.ipynb")
pages: dev
	PATH="$(abspath $(BIN)):$$PATH" OMP_NUM_THREADS=1 $(BIN)/python .ci/execute.py $(PAGES)

# what the benchmark pages show, measured again: hours; the data sets are in the folder that DIFFNB_DATA names
bench: dev
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/all.py --data $(DIFFNB_DATA)

# a part of each, in minutes
bench-quick: dev
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/all.py --data $(DIFFNB_DATA) --quick

readme: dev
	$(BIN)/python .ci/readme.py

# a wheel and a source distribution, and whether they hold what they should
dist: dev
	rm -rf $(DIST)
	$(BIN)/python -m build --outdir $(DIST) .
	$(BIN)/python .ci/contents.py $(DIST)

clean:
	rm -rf $(VENV) build $(DIST) *.egg-info $(DEMO_OUT)
