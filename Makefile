# Everything lives in .venv, made afresh on a machine with nothing but Python 3.11 and make.
#   make train   environment + quick-start training through Ray
#   make test    environment + lint + test suite
# TORCH_INDEX=URL names a package index with CPU wheels of torch, which are smaller than the default CUDA ones.
PYTHON ?= python3.11
VARIANT ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
TORCH_INDEX ?=
PYTEST_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(VARIANT)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
export RAY_USAGE_STATS_ENABLED = 0

.PHONY: setup train test lint
setup: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11))' || \
	  { echo "shardwright needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 5; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the $(VARIANT) environment into $(VENV) (a few minutes the first time)"
	@$(PIP) --upgrade "pip>=24" "setuptools>=77"
	@$(PIP) -e '.[$(VARIANT),dev]'
	@if [ $(VARIANT) = cpu ]; then $(PIP) --no-deps torchrec==1.8.0; fi
	@$(BIN)/shardwright doctor
	@touch $@

train: setup
	@$(BIN)/shardwright train --config configs/quickstart.yaml

test: setup lint
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
