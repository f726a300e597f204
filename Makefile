# Every target works on a fresh machine with Python 3.11+: it creates .venv and installs pinned versions first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo test test-all coverage bench docs lint types clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt torch
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e '.[all,dev,docs]'
	touch $@

demo: install
	$(BIN)/tokengym demo

test: lint types
	$(BIN)/python -m pytest -n auto -m "not slow and not gpu"

test-all: lint types
	$(BIN)/python -m pytest -n auto

# Of the fast tests; lines that only slow tests or GPUs reach count as missed.
coverage: install
	$(BIN)/python -m pytest -n auto -m "not slow and not gpu" --cov --cov-report=term:skip-covered

# The peers need releases of their own: TRL 1.16.0 for GRPO, and 1.12.0, the last one with PPO.
bench: install .venv-trl/.installed .venv-trl-ppo/.installed
	$(BIN)/tokengym bench speed --trl-python .venv-trl/bin/python --trl-ppo-python .venv-trl-ppo/bin/python \
		--history benchmarks/results/speed.jsonl

.venv-trl/.installed: PEERS = trl==1.16.0 transformers==5.23.0 accelerate==1.15.0
.venv-trl-ppo/.installed: PEERS = trl==1.12.0 'transformers==5.17.*'
.venv-trl/.installed .venv-trl-ppo/.installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --disable-pip-version-check -q -c constraints.txt torch
	$(@D)/bin/pip install --disable-pip-version-check -q $(PEERS)
	touch $@

# Not --quiet, which would hide from strict mode the warnings that it stops at.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/basedpyright --warnings

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache
