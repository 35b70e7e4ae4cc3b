# Every target does its own set-up: it creates .venv when missing and installs what it needs, once per setup.py.
PYTHON ?= python3
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
XM_VENV := .venv-launch
BEAM_VENV := .venv-beam

.DEFAULT_GOAL := help
.PHONY: help demo test drill lint bench docs launch beam clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/.installed-core  ## simulated data to the recall table: a few minutes on two CPU cores
	$(BIN)/python -m user_llm.main --config=configs/simulated.py --workdir=runs/demo

# glibc maps every large buffer afresh at each step by default; keeping the pages saves 10-50 % of a CPU step.
demo: export MALLOC_MMAP_MAX_ = 0
demo: export MALLOC_TRIM_THRESHOLD_ = 100000000000
demo: export MALLOC_ARENA_MAX = 1
demo: export MALLOC_TOP_PAD_ = 67108864

# Most of a test's time is XLA compiling on one core. A file's tests share compiled programs: they stay together.
test: $(VENV)/.installed-test $(XM_VENV)/.installed $(BEAM_VENV)/.installed  ## run all tests, two files at a time (JOBS=2)
	$(XM_VENV)/bin/python -m pytest --noconftest -p no:cacheprovider tests/launch/test_xm_launch.py
	$(BEAM_VENV)/bin/python -m pytest --noconftest -p no:cacheprovider tests/builders/test_beam.py
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

# With LLVM's optimisations, which `make test` leaves out: here are the programs that users run.
drill: export JAX_DISABLE_MOST_OPTIMIZATIONS = 0
drill: $(VENV)/.installed-test $(BEAM_VENV)/.installed  ## run the long drills that `make test` leaves out
	$(BEAM_VENV)/bin/python -m pytest --noconftest -p no:cacheprovider -m drill tests/builders/test_beam.py
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m drill

lint: $(VENV)/.installed-test  ## check the code with ruff, and its types with mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.installed-test  ## measure data pipeline and encoder step, side by side with their peers
	$(BIN)/python -m benchmarks

docs: $(VENV)/.installed-docs  ## build the site into docs/_build/html; a dead link fails, and the tutorial is run
	$(BIN)/python -m sphinx -W -n --keep-going docs docs/_build/html

launch: $(XM_VENV)/.installed  ## set up .venv-launch, the environment of launch/xm_launch.py (XManager)

beam: $(BEAM_VENV)/.installed  ## set up .venv-beam, the environment of user-llm build --engine=beam

clean:  ## remove caches and build leftovers; environments and runs/ stay
	rm -rf build dist docs/_build *.egg-info .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -path './.venv*' -prune -o -type d -name __pycache__ -exec rm -rf {} +

$(VENV)/.created $(XM_VENV)/.created $(BEAM_VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "user-llm needs Python 3.11 or later, but '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Name another interpreter: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	test -x $(@D)/bin/pip || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade 'pip>=26'  # older ones backtrack for minutes
	@touch $@

$(VENV)/.installed-core: setup.py $(VENV)/.created
	$(BIN)/python -m pip install --quiet -e .
	@touch $@

$(VENV)/.installed-test: setup.py $(VENV)/.created
	$(BIN)/python -m pip install --quiet -e '.[test]'
	@touch $@ $(VENV)/.installed-core

$(VENV)/.installed-docs: setup.py $(VENV)/.created
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	@touch $@

$(XM_VENV)/.installed: launch/requirements.txt $(XM_VENV)/.created
	$(XM_VENV)/bin/python -m pip install --quiet -r launch/requirements.txt
	@touch $@

# The command of the clone, with none of what user-llm itself needs.
$(BEAM_VENV)/.installed: tfds_builders/requirements.txt setup.py $(BEAM_VENV)/.created
	$(BEAM_VENV)/bin/python -m pip install --quiet -r tfds_builders/requirements.txt
	$(BEAM_VENV)/bin/python -m pip install --quiet --no-deps -e .
	@touch $@
