# Targets for everything that a user does; `make help` lists them.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
# Both check every hash of requirements.lock. uv compiles bytecode only if Python may not write it at the first import.
PIP := $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off --no-deps
UV := $(BIN)/uv pip install --python $(BIN)/python --no-deps $(if $(PYTHONDONTWRITEBYTECODE),--compile-bytecode)
export PATH := $(abspath $(BIN)):$(PATH)
# tests start many processes: threads that spin while they wait would slow down the others. A test that kills its worker
# is a failure; xdist would run it again without end. `auto`: see tests/conftest.py
PYTEST := OMP_WAIT_POLICY=passive python -m pytest --max-worker-restart 0 --durations 20
# no usage statistics are sent
export DO_NOT_TRACK := true
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true
# results are stored by the name of the processor
BENCH := OMP_WAIT_POLICY=passive python -m pytest benchmarks/suite --benchmark-columns=median,iqr,rounds --benchmark-sort=fullname
MACHINE ?= $(shell sed -n '/^model name/{s/.*: //;s/[^A-Za-z0-9]\+/-/g;p;q}' /proc/cpuinfo)
RESULT = benchmarks/results/$(MACHINE).json

.DEFAULT_GOAL := help
.PHONY: help env repro flow ui sample stack stack-status stack-down system test test-fast check bench bench-compare gpu-check lint docs format params lock clean clean-all

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(VENV)/installed: requirements.lock pyproject.toml
	@echo "Making the environment in $(VENV) from requirements.lock, 7 GB: about a minute with uv, 4 to 6 minutes with pip"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	@$(PYTHON) -m venv $(VENV)
	@sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > $(VENV)/uv.txt
	@$(PIP) --quiet --require-hashes -r $(VENV)/uv.txt && $(UV) --require-hashes -r requirements.lock \
		|| { echo "uv failed, for the reason above; pip installs the packages now"; $(PIP) --require-hashes -r requirements.lock; }
	@$(PIP) --quiet --no-build-isolation -e .
	@$(BIN)/python -m pip check
	@touch $@

env: $(VENV)/installed ## make the Python environment from the lock file

repro: env ## run the whole pipeline (dvc repro), recorded in MLflow: 20 to 35 minutes the first time
	@echo "Running the stages of dvc.yaml that changed; stages that are up to date are skipped"
	@tokenbridge repro $(OVERRIDES)

flow: env ## run the pipeline as a Prefect flow; OVERRIDES="train.epochs=2" changes settings
	@python -m flows.retrain $(OVERRIDES)

ui: env ## show the runs in MLflow's pages, on http://127.0.0.1:5000
	@tokenbridge ui

sample: env ## draw a picture of new samples: samples.png
	@tokenbridge sample --out samples.png

stack: env ## start the team's servers without Docker: PostgreSQL, S3, MLflow, Prefect, a worker
	@python docker/stack.py up

stack-status: env ## show the state of each server
	@python docker/stack.py status

stack-down: env ## stop the servers; their data stay
	@python docker/stack.py down

system: env ## install the programs that tests need (PostgreSQL, Chromium, Slurm), as root and with apt-get
	@python -m tests.support.programs

test: env system ## run every test, also with whole pipelines and real servers: 25 to 40 minutes
	@$(PYTEST) -n auto --dist loadscope

test-fast: env ## run the tests that need no server and no download: 4 to 8 minutes
	@$(PYTEST) -n 2 --dist worksteal -m "not pipeline and not cluster"

check: lint test-fast ## run what a commit needs: style, types, fast tests

bench: env ## measure speed, memory and operations beside a plain baseline: about 10 minutes; results in docs/performance.md
	@$(BENCH) --benchmark-json=$(RESULT)
	@python -m benchmarks.report

bench-compare: env ## measure again; fail where a median is over 15 % slower than the stored one of this machine
	@$(BENCH) --benchmark-compare=$(RESULT) --benchmark-compare-fail=median:15%

gpu-check: ## check this code and its speed on one CUDA GPU, in 10 minutes at most: docs/gpu.md; without .venv, by PYTHON
	@$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m benchmarks.gpu_check

lint: env ## check style, spelling and types
	@pre-commit run --all-files
	@mypy

docs: env ## build the documentation as a site: site/index.html; fails on a dead link
	@zensical build --clean --strict

format: env ## apply the formatter
	@ruff check --fix .
	@ruff format .

params: env ## compose params.yaml from conf/
	@tokenbridge params $(OVERRIDES)

lock: env ## write requirements.lock from pyproject.toml; OPTIONS=--upgrade renews the pinned versions
	@uv pip compile --universal --python-version 3.11 --extra dev --generate-hashes --no-header --no-annotate \
		$(OPTIONS) -o requirements.lock pyproject.toml

clean: ## remove work in progress and caches; models, data and runs stay
	@[ ! -d .work ] || find .work/ -mindepth 1 -delete # it may be a link to another disk
	@rm -rf .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis dvc_plots site

clean-all: ## remove everything that is not in git: environment, data, models, runs
	@echo "This deletes $(VENV), unfinished work, data, models, reports, DVC's cache and all MLflow runs of this folder."
	@read -p "Type yes to continue: " answer && [ "$$answer" = yes ]
	@$(MAKE) --no-print-directory clean
	@rm -rf $(VENV) data models reports .dvc/cache .dvc/tmp .spool .prefect mlartifacts mlflow.db*
