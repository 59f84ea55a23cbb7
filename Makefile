# Everything a fresh machine needs is Python >= 3.10 with its venv module: each target sets up .venv by itself.
# Another interpreter: make test PYTHON=python3.12        Arguments for the program: make demo ARGS=--json

PYTHON  ?= python3
WORKERS ?= auto
ARGS    ?=

VENV  := .venv
BIN   := $(VENV)/bin
READY := $(VENV)/.ready

# Every extra that pyproject.toml names, as pip takes them.
ALL := $(shell sed -nE '/^\[project.optional-dependencies\]/,/^\[project.scripts\]/s/^([a-z]+) = \[.*/\1/p' pyproject.toml | paste -sd, -)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help setup hooks demo test quick coverage doctest docs lint types check format bench peers fuzz lowest newest licences audit dist installed sbom publishable clean distclean

help: ## show this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1|\2/' | \
	    while IFS='|' read -r target text; do printf '%-18s %s\n' "$$target" "$$text"; done

setup: $(READY) ## create .venv with the pinned versions of constraints.txt (the other targets do it when needed)

# A stamp: made again whenever what is to be installed changes. An environment without a working pip, for instance one
# whose creation was interrupted, is made anew.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	    echo 'Varangian needs Python >= 3.10, and "$(PYTHON)" is not one. Name another: make PYTHON=python3.12' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo 'The venv module of "$(PYTHON)" is missing. On Debian and Ubuntu: apt-get install python3-venv' >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo 'Setting up $(VENV): a few minutes the first time.'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$(ALL)]'
	@touch $@

hooks: $(READY) ## run the quick checks before each commit
	$(BIN)/pre-commit install

demo: $(READY) ## distributed momentum against the usual formulation, under attack: a table and a figure
	@$(BIN)/varangian demo $(ARGS)

# One thread per worker process: the tests' tensors are small, so cores are better spent on more tests at once. Whatever
# the environment says, bytecode is kept in the clone: each of some hundred processes would compile the same sources.
TESTED := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=

test: $(READY) ## run the tests (WORKERS=0 in one process, ARGS='-k median' for some of them)
	$(TESTED) $(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

quick: $(READY) ## run the tests but for those marked slow, while you work: what is left notices most faults
	$(TESTED) $(BIN)/python -m pytest -n $(WORKERS) -m "not slow" $(ARGS)

coverage: $(READY) ## run the tests, and say which lines and branches of the package they reach (build/coverage)
	@rm -rf build/coverage && mkdir -p build/coverage
	$(TESTED) COVERAGE_FILE=$(CURDIR)/build/coverage/data $(BIN)/python -m coverage run -m pytest -n $(WORKERS) $(ARGS)
	@$(BIN)/python -m coverage combine --quiet
	@$(BIN)/python -m coverage html --quiet
	@$(BIN)/python -m coverage report

doctest: $(READY) ## run the examples in docstrings
	$(BIN)/python -m pytest -q --doctest-modules src

lint: $(READY) ## ruff: mistakes and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## pyright: types
	$(BIN)/pyright

# Warnings are errors; nothing is fetched. The page of all pages is build/site/index.html.
docs: $(READY) ## make the site: build/site/index.html
	rm -rf build/site
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -c docs . build/site -d build/doctrees -b html -W --keep-going -q $(ARGS)
	$(BIN)/python docs/links.py build/site

check: lint types doctest docs test ## all that must pass before a change is merged

format: $(READY) ## rewrite the sources as ruff wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

fuzz: $(READY) ## mutated files for every reader (ARGS='--seconds 600')
	$(BIN)/python benchmarks/fuzz.py $(ARGS)

# Both ends of what pyproject.toml allows, each in an environment of its own; PYTHON=python3.10 and PYTHON=python3.13
# make them the ends of the supported Pythons as well. matplotlib 3.8 is older than what pyparsing 3.3 warns of, and
# warnings are errors here. EXTRAS=all for all extras.
EXTRAS ?= dev
WITH   := $(if $(filter all,$(EXTRAS)),$(ALL),$(EXTRAS))

.venv-lowest/.with-$(WITH): pyproject.toml
	$(PYTHON) -m venv --clear .venv-lowest
	grep -oE '"[A-Za-z0-9_.-]+(\[[a-z]+\])?>=[0-9.]+' pyproject.toml | tr -d '"' | sed -E 's/\[[a-z]+\]//; s/>=/==/' | \
	    sort -u >.venv-lowest/lowest.txt
	echo 'pyparsing<3.3' >>.venv-lowest/lowest.txt
	.venv-lowest/bin/python -m pip install --quiet --constraint .venv-lowest/lowest.txt --editable '.[$(WITH)]'
	@touch $@

.venv-newest/.with-$(WITH): pyproject.toml
	$(PYTHON) -m venv --clear .venv-newest
	.venv-newest/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager --editable '.[$(WITH)]'
	@touch $@

lowest: .venv-lowest/.with-$(WITH) ## run the tests with the lowest versions that pyproject.toml allows
newest: .venv-newest/.with-$(WITH) ## run the tests with the newest versions that can be had
lowest newest:
	.venv-$@/bin/python -m pip list
	$(TESTED) .venv-$@/bin/python -m pytest -n $(WORKERS) $(ARGS)

licences: $(READY) ## write docs/project/licences.md from what is installed
	$(BIN)/python docs/project/licences.py >docs/project/licences.md

.venv-audit/.ready:
	$(PYTHON) -m venv --clear .venv-audit
	.venv-audit/bin/python -m pip install --quiet pip-audit
	@touch $@

# --strict: a package that PyPI says nothing about is a failure, and not passed over.
audit: $(READY) .venv-audit/.ready ## ask PyPI for known vulnerabilities of what is installed
	.venv-audit/bin/pip-audit --strict --skip-editable --progress-spinner off \
	    --path "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" $(ARGS)

.venv-dist/.ready:
	$(PYTHON) -m venv --clear .venv-dist
	.venv-dist/bin/python -m pip install --quiet build twine check-wheel-contents cyclonedx-bom
	@touch $@

# From the working tree: what is not committed yet is in them too, and what git does not know is a fault.
dist: .venv-dist/.ready ## build wheel and source archive in dist/, and look at what they hold and say
	rm -rf dist
	.venv-dist/bin/python -m build
	.venv-dist/bin/twine check --strict dist/*.whl dist/*.tar.gz
	.venv-dist/bin/check-wheel-contents dist/*.whl
	.venv-dist/bin/python docs/project/release.py archives

# ARGS=--constraints installs the versions of constraints.txt and not the newest.
installed: ## try the wheel of dist/ in a fresh environment of PYTHON, outside of the clone
	$(PYTHON) docs/project/release.py installed $(ARGS)

# The versions of constraints.txt. Neither the environment that is looked at nor what looks is part of it.
sbom: .venv-dist/.ready ## write docs/project/sbom.cdx.json: the bill of materials of a plain installation
	$(PYTHON) -m venv --clear --without-pip .venv-sbom
	.venv-dist/bin/python -m pip --python .venv-sbom/bin/python install --quiet --constraint constraints.txt .
	rm .venv-sbom/lib/*/site-packages/varangian-*.dist-info/direct_url.json # where this clone lies is nobody's business
	.venv-dist/bin/cyclonedx-py environment --output-reproducible --spec-version 1.6 --output-format JSON \
	    --output-file docs/project/sbom.cdx.json .venv-sbom
	rm -rf .venv-sbom

publishable: ## name what must be filled in before dist/ can be published, and fail if anything is
	$(PYTHON) docs/project/release.py publishable

# Not .venv: ByzPy asks for an older torch than krum does, so that it comes without what it asks for. krum needs Python
# 3.12. Sections that benchmarks/peers.json has are measured anew; ARGS=--missing goes on after an interruption.
.venv-peers/.ready: benchmarks/peers.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null || { \
	    echo 'Other libraries need Python >= 3.12, and "$(PYTHON)" is not one. Name another: make peers PYTHON=python3.12' >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv-peers
	.venv-peers/bin/python -m pip install --quiet --constraint constraints.txt --requirement benchmarks/peers.txt --editable '.[flower]'
	.venv-peers/bin/python -m pip install --quiet --no-deps byzpy==0.1.4
	@touch $@

peers: .venv-peers/.ready ## other libraries beside ours: benchmarks/peers.json, tables and a figure (PYTHON=python3.12)
	.venv-peers/bin/python benchmarks/peers.py $(ARGS)

bench: $(READY) ## a training step, every rule, and the engines, each beside something plain in the same run
	@for script in simulator rules engines; do \
	    echo "== $$script"; $(BIN)/python benchmarks/$$script.py $(ARGS) || exit 1; \
	done

clean: ## remove caches and built archives (results and .venv stay)
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis
	find src tests benchmarks examples -type d -name __pycache__ -prune -exec rm -rf {} +

distclean: clean ## clean, and remove the environments
	rm -rf $(VENV) .venv-lowest .venv-newest .venv-audit .venv-dist .venv-sbom .venv-peers
