# Everything runs in .venv, which the first target that needs it sets up. Only Python 3.11 or later is needed beforehand.

PYTHON ?= $(shell for python in python3.11 python3 python3.12 python3.13; do \
	$$python -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null && echo $$python && break; done)
# Installed by this pin before anything else: a range would admit builds for other devices, several gigabytes large.
TORCH ?= torch==2.13.0
PYTEST_ARGS ?=

VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install -qq --disable-pip-version-check
UNFINISHED := .venv-unfinished

.PHONY: help demo test bench soak lint docs notebooks clean
.NOTPARALLEL:

help:
	@echo "make demo       the losses at work, beside PyTorch, on real data"
	@echo "make test       lint, types and every test"
	@echo "make bench      time and memory beside the rivals"
	@echo "make soak       long randomised tests"
	@echo "make lint       lint and types alone"
	@echo "make docs       the documentation, in site/"
	@echo "make notebooks  run the lesson and write its notebooks anew"
	@echo "make clean      remove all that these made"

demo: $(VENV)/ready-demo
	@$(VENV)/bin/crossent demo

test: lint
	@$(RUN) -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

bench: $(VENV)/ready-bench
	@$(RUN) -m benchmarks

soak: $(VENV)/ready-dev
	@$(RUN) -m pytest -m soak $(PYTEST_ARGS)

lint: $(VENV)/ready-dev
	@$(RUN) -m ruff check
	@$(RUN) -m ruff format --check
	@$(RUN) -m pyright

docs: $(VENV)/ready-docs
	@NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build
	@echo "Written: site/index.html"

notebooks: $(VENV)/ready-docs
	@$(RUN) docs/_tools/notebooks.py

clean:
	rm -rf $(VENV) $(UNFINISHED) .pytest_cache .ruff_cache .hypothesis build dist demo-output bench-output site
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp for each extra of pyproject.toml. pip takes a package whose installation was cut off for installed, so after a
# set-up that did not finish the next one starts from nothing.
$(VENV)/ready-%: pyproject.toml $(if $(wildcard $(UNFINISHED)),again)
	@[ -n "$(PYTHON)" ] || { echo "crossent needs Python 3.11 or later: name it with make PYTHON=..."; exit 1; }
	@echo "Setting up .venv with what crossent[$*] needs"
	@[ -x $(RUN) ] && [ ! -e $(UNFINISHED) ] || { touch $(UNFINISHED) && $(PYTHON) -m venv --clear $(VENV); }
	@touch $(UNFINISHED)
	@$(PIP) '$(TORCH)'
	@$(PIP) -e '.[$*]'
	@touch $@
	@rm $(UNFINISHED)

.PHONY: again
again:
