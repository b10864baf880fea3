# Sets up an environment in .venv, then trains, tests or lints in it. `make` lists the targets.
#
# Python 3.11 installs requirements.lock, the exact set that was tested. Some of its pins have no
# build for 3.9 and 3.10: there pip, brought up to date because the one that comes with them does
# not get to the end of it, resolves the ranges of setup.py. Tests were made with 3.11.

PYTHON ?= python3
MODEL_DIR ?= runs/gland_demo
# The folder of the gland contest. Empty: train.py looks in its default place, and without data
# there it takes the embedded demo set.
DATA_DIR ?=

VENV := .venv
# --use-pep517: some packages come as source only, and older pips build those through setup.py.
PIP_INSTALL := $(VENV)/bin/pip install -q --disable-pip-version-check --use-pep517
STAMP := $(VENV)/stamp
# PrRoIPool, compiled; where that fails, its version in plain TensorFlow serves.
POOL := custom_ops/prroi_pool
POOL_STAMP := $(VENV)/prroi_pool_stamp
DATA_FLAG := $(if $(DATA_DIR),--data_dir '$(DATA_DIR)')

.PHONY: help train test test-slow test-faults lint clean

help:
	@echo 'make train   set up, train on the demo set or DATA_DIR, evaluate into MODEL_DIR/eval'
	@echo 'make test    set up, run the tests'
	@echo 'make test-slow  the tests that take longer, such as training on every data set'
	@echo 'make test-faults  runs killed, disks filled, files damaged, some dozens of times: half an hour'
	@echo 'make lint    set up, run ruff'
	@echo 'make clean   remove .venv and the caches; runs/ and data/ stay'
	@echo
	@echo 'PYTHON=python3.11   the Python for .venv, 3.9 to 3.11 (now $(PYTHON)); to change it, make clean first'
	@echo 'DATA_DIR=DIR        the folder of the gland contest (now $(or $(DATA_DIR),not given))'
	@echo 'MODEL_DIR=DIR       checkpoints, logs and results (now $(MODEL_DIR))'

train: $(STAMP) $(POOL_STAMP)
	$(VENV)/bin/python train.py --dataset gland $(DATA_FLAG) \
	    --config_file configs/gland_small.yaml --model_dir '$(MODEL_DIR)' --mode train_and_eval
	$(VENV)/bin/python evaluate.py --dataset gland $(DATA_FLAG) --model_dir '$(MODEL_DIR)'

test: $(STAMP) $(POOL_STAMP)
	$(VENV)/bin/python -m pytest -q

test-slow: $(STAMP) $(POOL_STAMP)
	$(VENV)/bin/python -m pytest -q -m slow

test-faults: $(STAMP) $(POOL_STAMP)
	$(VENV)/bin/python -m pytest -q -m faults

lint: $(STAMP)
	$(VENV)/bin/ruff check .

# A .venv that is there already is kept, and its own Python decides what is installed.
$(STAMP): setup.py requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 9) <= sys.version_info[:2] <= (3, 11))' \
	    || { echo "$(PYTHON) is missing or is not Python 3.9, 3.10 or 3.11, which TensorFlow 2.15" \
	    "needs: install one and say so, as in: make PYTHON=python3.11" >&2; exit 1; }
	@test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV) \
	    || { echo "$(PYTHON) cannot make a virtual environment: install its venv module" \
	    "(on Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@echo 'Installing into $(VENV): some minutes, over 1 GB.'
	@if $(VENV)/bin/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then \
	    $(PIP_INSTALL) -r requirements.lock && $(PIP_INSTALL) --no-deps -e .; \
	else \
	    $(PIP_INSTALL) -U pip && $(PIP_INSTALL) -e '.[serving,test]'; \
	fi
	@touch $@

$(POOL_STAMP): $(STAMP) $(POOL)/build.py $(wildcard $(POOL)/cc/*)
	@echo 'Compiling PrRoIPool: half a minute.'
	@$(VENV)/bin/python $(POOL)/build.py || echo 'PrRoIPool will run in plain TensorFlow, slower.'
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build *.egg-info
	rm -f $(POOL)/*.so $(POOL)/*.failed.txt
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
