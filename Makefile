# Every target sets up what it needs: `make demo` or `make test` on a fresh clone is enough.
# Without a GPU, spare yourself CUDA's gigabytes: make TORCH_INDEX=https://download.pytorch.org/whl/cpu demo

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
DEMO ?= build/demo
CLUSTER ?= $(abspath build/slurm)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
STAMP := $(VENV)/.installed
export GOMP_SPINCOUNT ?= 30000

.PHONY: help setup demo demo-cluster test test-all test-cluster test-long check format clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP)  ## a virtual environment with everything

# torch first and pinned: a dependency's open range would pull the newest CUDA build.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info < (3, 14), "Cinevox needs Python 3.11 to 3.13"'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(PIP) --editable '.[simulate,dashboards,remote,dev]'
	touch $@

demo: $(STAMP)  ## phantoms -> simulated CBCT -> shards -> vid2vid -> report, in minutes
	rm -rf $(DEMO)
	$(BIN)/cinevox cohort experiment=demo output=$(DEMO)/cohort
	$(BIN)/cinevox simulate experiment=demo input=$(DEMO)/cohort output=$(DEMO)/simulated
	$(BIN)/cinevox preprocess experiment=demo input=$(DEMO)/simulated output=$(DEMO)/shards
	$(BIN)/cinevox train experiment=demo input=$(DEMO)/shards output=$(DEMO)/run
	$(BIN)/cinevox translate experiment=demo checkpoint=$(DEMO)/run input=$(DEMO)/shards output=$(DEMO)/translated
	$(BIN)/cinevox evaluate experiment=demo input=$(DEMO)/translated output=$(DEMO)/scores
	$(BIN)/cinevox report experiment=demo input=$(DEMO)/scores output=$(DEMO)/report
	@echo
	@echo "The report: $(abspath $(DEMO))/report/report.html"

# A worker that dies is not replaced: with loadfile the run would then wait for ever.
test: $(STAMP)  ## needs nothing but Python
	$(BIN)/python -m pytest -n 2 --max-worker-restart 0 --dist loadfile --no-loadscope-reorder -m "not real and not browser and not slurm and not long"

test-all: test  ## and what needs real volumes, a browser or SLURM
	$(BIN)/python -m pytest -m "(real or browser or slurm) and not long"

test-cluster: $(STAMP)  ## on a small SLURM of its own on this machine (root; installs SLURM where it is absent)
	CINEVOX_INSTALL_SLURM=1 $(BIN)/python -m pytest -m "slurm and not long"

demo-cluster: $(STAMP)  ## the demo as SLURM jobs, to look at (root)
	slurm/test-cluster.sh start $(CLUSTER)
	SLURM_CONF=$(CLUSTER)/slurm.conf $(BIN)/cinevox submit experiment=demo cluster=local output=$(DEMO)-cluster
	@echo
	@echo "Look:  SLURM_CONF=$(CLUSTER)/slurm.conf $(BIN)/cinevox status $(DEMO)-cluster"
	@echo "End:   slurm/test-cluster.sh stop $(CLUSTER)"

test-long: $(STAMP)  ## minutes each, by hand
	$(BIN)/python -m pytest -m long

check: $(STAMP)  ## format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)  ## put the code into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove what was built here
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
