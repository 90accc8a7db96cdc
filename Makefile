# `make repro` rebuilds everything, `make test` checks it; both set up .venv first. Python 3.11 or newer, git and make.
PYTHON ?= python3
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export VIRTUAL_ENV := $(CURDIR)/$(VENV)
READY := $(VENV)/ready
# One process more than cores: many tests wait for a server, a killed process, or DVC.
ON_ALL_CORES := --numprocesses $$(($$(getconf _NPROCESSORS_ONLN) + 1)) --maxprocesses 8 --dist loadfile --no-loadscope-reorder

.PHONY: help private-cache repro test test-durations test-slow test-all tiny-outputs tiny-emulated deps clean-repro golden peers docs docs-tools report seeds profile params mirror mlflow lint sbom

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 16

LOCKED := --quiet --require-hashes --no-deps
# "compat" writes the clone's path into a .pth file, which type checkers read; setuptools' default is an import hook, which they do not.
EDITABLE := --quiet --no-deps --no-build-isolation --config-settings editable_mode=compat

$(READY): requirements.lock requirements-torch.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed; try: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python tools/install_torch.py
	$(VENV)/bin/python -m pip install $(LOCKED) -r requirements.lock
	$(VENV)/bin/python -m pip install $(EDITABLE) -e .
	@$(MAKE) --no-print-directory private-cache
	@touch $(READY)

# DVC reads pickles from its site cache, by default a folder in /var/tmp that everyone on the machine can write to.
private-cache:
	@if [ -d .dvc ]; then install -d -m 700 .dvc/tmp/site && dvc config --local core.site_cache_dir "$(CURDIR)/.dvc/tmp/site"; fi

repro: $(READY)  ## run the pipeline (dvc repro) and show what it made
	@gpt2core params --check
	dvc repro
	gpt2core summary

report: $(READY)  ## everything that the pipeline made as one page, report/index.html
	@gpt2core report

seeds: $(READY)  ## run the pipeline with five seeds, record the spread: benchmarks/records/seeds.json
	@python scripts/seeds.py

test: $(READY)  ## every test that is not slow
	pytest -m "not slow" $(ON_ALL_CORES)

test-durations: $(READY)  ## the slowest 20 tests of make test
	pytest -m "not slow" $(ON_ALL_CORES) --durations=20 --quiet

test-slow: $(READY)  ## the slow tests alone
	pytest -m slow $(ON_ALL_CORES)

test-all: test test-slow  ## everything

tiny-outputs: $(READY)  ## rebuild the profile tiny in a clean clone and compare every output's hash
	python tools/tiny_outputs.py

tiny-emulated: $(READY)  ## the same under two emulated CPUs, an hour each (needs qemu-user)
	python tools/tiny_outputs.py --cpu EPYC --cpu Haswell-noTSX

deps: $(READY)  ## write the code that each stage depends on into dvc.yaml
	@python tools/stage_deps.py

clean-repro: $(READY)  ## make repro in a clean clone, then git status must print nothing
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
	git clone --quiet . "$$folder/gpt2core" && cd "$$folder/gpt2core" && \
	PYTHONPATH="$$PWD" GPT2CORE_DEVICE=cpu python -m dvc repro && changed=$$(git status --porcelain) && \
	echo "$${changed:-git status is clean after dvc repro in a clean clone}" && test -z "$$changed"

golden: $(READY)  ## record the golden loss curves anew, after an intended change of the training
	python -m tests.golden.curves

peers: $(READY)  ## transformers, TensorFlow, an S3 server: what some tests compare with or talk to
	$(VENV)/bin/python -m pip install $(LOCKED) -r requirements-peers.lock

docs-tools: $(READY)  ## MkDocs and jupytext, for docs and for the tests of the notebooks
	$(VENV)/bin/python -m pip install $(LOCKED) -r requirements-docs.lock

docs: docs-tools  ## the learner's path: run its chapters, make its pictures, build/site and build/notebooks (needs npm)
	npm ci --prefix docs --ignore-scripts --no-audit --no-fund --silent
	python tools/docs/chapters.py docs/learn
	python tools/docs/notebooks.py docs/learn build/notebooks
	python tools/docs/inside.py
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet

profile: $(READY)  ## make profile NAME=tiny: write params.yaml from profiles/NAME.yaml
	@gpt2core profile "$(NAME)" $(if $(FORCE),--force)

params: $(READY)  ## update an older params.yaml (FILE=profiles/MINE.yaml: another file); values and comments stay
	@gpt2core params $(FILE)

mirror: $(READY)  ## fetch the public inputs into mirror/, for GPT2CORE_MIRROR
	python scripts/mirror.py mirror

mlflow: $(READY)  ## look at all runs in the browser
	mlflow ui --backend-store-uri sqlite:///mlflow.db --host 127.0.0.1

sbom: $(READY)  ## list every installed package for security scanners: build/sbom.json (CycloneDX)
	@$(PYTHON) -m venv build/sbom
	@build/sbom/bin/python -m pip install --quiet cyclonedx-bom==7.5.0
	@build/sbom/bin/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml -o build/sbom.json $(VENV)
	@echo build/sbom.json

lint: $(READY)  ## style, common mistakes and types
	ruff check .
	ruff format --check .
	mypy
