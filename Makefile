# `make demo` and `make test` set everything up by themselves; a second run installs nothing.
.DEFAULT_GOAL := help
SHELL := /bin/bash

PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= robotics,dmc,myo,maniskill,video,optuna,dev
CONSTRAINTS ?= constraints.txt
TORCH := $(shell grep '^torch==' $(CONSTRAINTS))
TORCH_INDEX ?=
DEMO ?= runs/demo
PYTEST_ARGS ?=

# What is installed is named by the contents that decide it, not by file times (a clone or a copy changes those).
STAMP := $(VENV)/.installed-$(shell (echo $(EXTRAS); cat pyproject.toml $(CONSTRAINTS)) | cksum | tr ' ' -)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
QUIET := 2> >(grep -v '^WARNING: Location .* is ignored' >&2)

# EGL renders without a display. Where its library is missing everything but rendering works.
HAS_EGL := $(shell [ "$$(uname)" != Linux ] || ldconfig -p 2>/dev/null | grep -q libEGL.so.1 && echo yes)
export OMP_NUM_THREADS ?= 1
export MUJOCO_GL ?= $(if $(HAS_EGL),egl,disable)
export RAY_AUTH_MODE ?= disabled
export RAY_USAGE_STATS_ENABLED ?= 0
export RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO ?= 0

.PHONY: help setup gl demo test test-slow test-chaos test-ray-latest test-rliable lint types layers bench clean

help:  ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## *(.*)/  make \1\t\2/' | expand -t 24

setup: $(STAMP) gl  ## virtual environment with the tested versions (done by every other target)

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info[:2] == (3, 11) else "the tested versions are for Python 3.11, and $(PYTHON) is %d.%d: make PYTHON=python3.11" % sys.version_info[:2])'
	@[ -x $(BIN)/python ] || { echo "creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing $(TORCH) (alone and first; TORCH_INDEX=URL names PyTorch's index of CPU builds, where pip would take a CUDA one)"
	@$(PIP) install -q $(TORCH) -c $(CONSTRAINTS) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(QUIET)
	@echo "installing wmrl-ray[$(EXTRAS)] with $(CONSTRAINTS) (2 to 4 minutes the first time; 3.5 GB in all)"
	@$(PIP) install -q -e '.[$(EXTRAS)]' -c $(CONSTRAINTS) $(QUIET)
	@rm -f $(VENV)/.installed-*; touch $@

gl:
ifneq ($(HAS_EGL),yes)
	@echo "note: libEGL is missing, so nothing can be rendered (video, pictures of simulators); the rest works." >&2
	@echo "      Debian or Ubuntu: apt-get install libegl1 libopengl0 libgl1 libgl1-mesa-dri" >&2
endif

demo: setup  ## data, IQL-TD-MPC and BC on Ray, report: under 5 minutes on 2 cores
	@$(BIN)/wmrl data make pointmaze-umaze --steps 50000 --id wmrl/demo/pointmaze-umaze-v0 --overwrite
	@rm -rf $(DEMO)
	@$(BIN)/wmrl train demo-iql-tdmpc --run-dir $(DEMO)/iql-tdmpc
	@$(BIN)/wmrl train demo-bc --run-dir $(DEMO)/bc
	@$(BIN)/wmrl report $(DEMO)/iql-tdmpc $(DEMO)/bc -o $(DEMO)/report.html
	@$(BIN)/python -c 'import json, sys; scores = [json.load(open(f"$(DEMO)/{run}/result.json"))["eval/score_mean"] for run in ("iql-tdmpc", "bc")]; print("score: IQL-TD-MPC {:.1f}, BC {:.1f}, a random policy 0".format(*scores)); sys.exit(None if scores[0] > max(0, scores[1]) else "IQL-TD-MPC should be above both")'
	@echo "report: $(abspath $(DEMO)/report.html)"

test: setup  ## the default test suite (no slow, bench or gpu tests)
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

test-slow: setup  ## the slow tests only
	@$(BIN)/python -m pytest -m 'slow and not gpu' $(PYTEST_ARGS)

test-chaos: setup  ## kill -9, SIGSTOP, a full disk, damaged checkpoints (TABLE=FILE: adds the table to that file)
	@$(if $(TABLE),WMRL_CHAOS_TABLE=$(abspath $(TABLE))) $(BIN)/python -m pytest tests/chaos -m chaos $(PYTEST_ARGS)

test-ray-latest:  ## the Ray tests on the newest supported Ray, in an environment of its own (.venv-ray-latest)
	@$(MAKE) --no-print-directory setup VENV=.venv-ray-latest CONSTRAINTS=constraints-ray-latest.txt EXTRAS=robotics,dev
	@.venv-ray-latest/bin/python -m pytest -m 'ray and not slow and not gpu and not chaos' $(PYTEST_ARGS)

test-rliable:  ## the report's statistics against rliable's, in an environment of its own (.venv-rliable): it wants pandas < 3
	@test -d .venv-rliable || $(PYTHON) -m venv .venv-rliable
	@.venv-rliable/bin/pip install -q rliable 'pandas<3' pytest $(QUIET)
	@PYTHONPATH=. .venv-rliable/bin/python -m pytest -q -o addopts= --noconftest tests/report/test_stats.py -k rliable

lint: setup  ## ruff, rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: setup  ## pyright
	@$(BIN)/python -m pyright --pythonpath $(BIN)/python

layers: setup  ## who may import what (DESIGN's table)
	@$(BIN)/python -m pytest -q tests/test_layers.py

bench: setup  ## figures of tests/benchmarks on this machine (PEER=path of a nicklashansen/tdmpc checkout, optional)
	@$(BIN)/python -m tests.benchmarks.bench_replay
	@$(BIN)/python -m tests.benchmarks.bench_system
	@$(BIN)/python -m tests.benchmarks.bench_products
	@$(BIN)/python -m tests.benchmarks.bench_tdmpc $(if $(PEER),--peer $(PEER))

clean:  ## remove the environments, caches and build outputs (not runs/)
	rm -rf $(VENV) .venv-ray-latest build dist .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
