# Everything runs in .venv, which the first target that needs it sets up. Only Python 3.11 or later is needed beforehand.

PYTHON ?= $(shell for python in python3.11 python3 python3.12 python3.13; do \
	$$python -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null && echo $$python && break; done)
# By a pin, before anything else and with it: a range would admit builds for other devices, several gigabytes large.
TORCH ?= torch==2.13.0
# The one that this PyTorch brings along where it uses a GPU. Others bring their own.
TRITON := $(if $(filter torch==2.13.0,$(TORCH)),$(if $(filter Linux,$(shell uname -s)),triton==3.7.1))
# Other packages in versions of your choice.
PINS ?=
PYTEST_ARGS ?=
GPU_ARGS ?=
# The oldest versions that pyproject.toml allows.
OLDEST := TORCH='torch==2.6.0' PINS='numpy==2.0.* numba==0.63.*'

VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install -qq --disable-pip-version-check --no-compile
PINNED := $(foreach pin,$(TORCH) $(PINS),'$(pin)')
UNFINISHED := $(VENV)-unfinished

.PHONY: help demo test unlinted oldest bench gpu soak lint style docs notebooks clean
.NOTPARALLEL:

help:
	@echo "make demo       the losses at work, beside PyTorch, on real data"
	@echo "make test       lint, types and every test"
	@echo "make oldest     every test with the oldest versions that are supported, in .venv-oldest"
	@echo "make bench      time and memory beside the rivals"
	@echo "make gpu        tests and times on a GPU, in 8 minutes; make gpu RUN=python3 takes the PyTorch of that Python"
	@echo "make soak       long randomised tests, every loss over 1 to 4 processes, unwritten memory as nan, other processors"
	@echo "make lint       lint and types alone"
	@echo "make docs       the documentation, in site/"
	@echo "make notebooks  run the lesson and write its notebooks anew"
	@echo "make clean      remove all that these made"

demo: $(VENV)/ready-demo
	@$(VENV)/bin/crossent demo

# The tests ask pyright as well, of which one processor is enough.
test: style unlinted

unlinted: $(VENV)/ready-dev
	@$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

oldest:
	@$(MAKE) --no-print-directory VENV=.venv-oldest $(OLDEST) unlinted

bench: $(VENV)/ready-bench
	@$(RUN) -m benchmarks

gpu: $(if $(filter $(VENV)/%,$(RUN)),$(VENV)/ready-dev)
	@$(RUN) -m benchmarks.gpu $(GPU_ARGS)

soak: $(VENV)/ready-dev
	@$(RUN) -m pytest -m soak $(PYTEST_ARGS)

lint: style
	@$(RUN) -m pyright

style: $(VENV)/ready-dev
	@$(RUN) -m ruff check
	@$(RUN) -m ruff format --check

docs: $(VENV)/ready-docs
	@NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build
	@echo "Written: site/index.html"

notebooks: $(VENV)/ready-docs
	@$(RUN) docs/_tools/notebooks.py

clean:
	rm -rf $(VENV) $(VENV)-oldest $(UNFINISHED) .pytest_cache .ruff_cache .hypothesis build dist demo-output bench-output site
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp for each extra of pyproject.toml. pip takes a package whose installation was cut off for installed, so after a
# set-up that did not finish the next one starts from nothing.
$(VENV)/ready-%: pyproject.toml $(if $(wildcard $(UNFINISHED)),again)
	@[ -n "$(PYTHON)" ] || { echo "crossent needs Python 3.11 or later: name it with make PYTHON=..."; exit 1; }
	@echo "Setting up $(VENV) with what crossent[$*] needs"
	@[ -x $(RUN) ] && [ ! -e $(UNFINISHED) ] || { touch $(UNFINISHED) && $(PYTHON) -m venv --clear $(VENV); }
	@touch $(UNFINISHED)
	@$(PIP) '$(TORCH)'
	@$(PIP) $(PINNED) $(if $(filter dev,$*),$(TRITON)) -e '.[$*]'
	@$(RUN) -m compileall -qq -j 0 $(VENV)/lib || true  # on all processors; pip takes one, and twice as long
	@touch $@
	@rm $(UNFINISHED)

.PHONY: again
again:
