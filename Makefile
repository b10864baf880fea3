# Sets up an environment in .venv, then trains, tests or lints in it. `make` lists the targets.
#
# The environment is exactly what a lock says, one lock per set of packages (docs/install.md). The
# Python decides which: TensorFlow 2.15 up to 3.11, TensorFlow 2.20 from 3.12 on; GAN_MRCNN_TF=2.20
# asks for the latter on 3.10 and 3.11. Where a GPU answers, CUDA's libraries and its compiler come
# from a lock of their own.

PYTHON ?= python3
GAN_MRCNN_TF ?=
# Whether CUDA is installed. Asked when that is at stake, since nvidia-smi may take a second.
GAN_MRCNN_CUDA ?= $(shell nvidia-smi -L 2>/dev/null | grep -q '^GPU ' && echo yes || echo no)
# pyenv's python3.12 starts only where that version is chosen as well.
ifneq ($(filter python3.%,$(PYTHON)),)
export PYENV_VERSION ?= $(PYTHON:python%=%)
endif
MODEL_DIR ?= runs/gland_demo
# The folder of the gland contest. Empty: train.py looks in its default place, and without data
# there it takes the embedded demo set.
DATA_DIR ?=

VENV ?= .venv
# --no-deps: a lock is complete. --use-pep517: some packages come as source only, and older pips
# build those through setup.py.
PIP_INSTALL := $(VENV)/bin/pip install -q --disable-pip-version-check --use-pep517 --no-deps
STAMP := $(VENV)/stamp
WITH_CUDA = $(filter yes,$(GAN_MRCNN_CUDA))
# PrRoIPool, compiled; where that fails, its version in plain TensorFlow serves.
POOL := custom_ops/prroi_pool
POOL_STAMP := $(VENV)/prroi_pool_stamp
# What the optional extras need: their tests are skipped without, and training wants none of it.
EXTRAS_STAMP := $(VENV)/extras_stamp
WHICH_TF = $(or $(GAN_MRCNN_TF),$$($(VENV)/bin/python -c \
    'import sys; print("2.15" if sys.version_info < (3, 12) else "2.20")'))
DATA_FLAG := $(if $(DATA_DIR),--data_dir '$(DATA_DIR)')
# As many processes as cores and memory allow (tests/conftest.py); the tests of a file stay together,
# since they share what takes long to make.
PYTEST := $(VENV)/bin/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder \
    --durations=10
PYTEST_FLAGS ?=
SHORT ?=
# `make wheel` compiles PrRoIPool for the TensorFlow of each of these.
WHEEL_PYTHONS ?= .venv/bin/python .venv-tf2.20/bin/python

.PHONY: help train test test-slow test-faults lint docs notebook wheel clean

help:
	@echo 'make train   set up, train on the demo set or DATA_DIR, evaluate into MODEL_DIR/eval'
	@echo 'make test    set up, run the tests'
	@echo 'make test-slow    the tests that take longer, such as training on every data set'
	@echo 'make test-faults  runs killed, disks filled, files damaged, some dozens of times: half an hour'
	@echo 'make test-faults SHORT=1   each kind of fault a few times: ten minutes'
	@echo 'make lint    set up, check the style and which part imports which'
	@echo 'make docs    the pages of docs/ as a site, in site/; make notebook  the notebook among them'
	@echo 'make wheel   dist/*.whl with PrRoIPool compiled for CUDA: installs where there is no compiler'
	@echo 'make clean   remove .venv and the caches; runs/ and data/ stay'
	@echo
	@echo 'PYTHON=python3.12   the Python for .venv, 3.9 to 3.13 (now $(PYTHON)); to change it, make clean first'
	@echo 'GAN_MRCNN_TF=2.20   TensorFlow 2.20 on Python 3.10 and 3.11, too, which have 2.15 otherwise'
	@echo 'GAN_MRCNN_CUDA=no   no CUDA, although there is a GPU; =yes  CUDA, although there is none'
	@echo 'VENV=DIR            another place for the environment than .venv (now $(VENV))'
	@echo 'DATA_DIR=DIR        the folder of the gland contest (now $(or $(DATA_DIR),not given))'
	@echo 'MODEL_DIR=DIR       checkpoints, logs and results (now $(MODEL_DIR))'
	@echo "PYTEST_FLAGS=...    for the tests: '-p randomly' for another order, '-n 1' for less memory"

train: $(STAMP) $(POOL_STAMP)
	$(VENV)/bin/python train.py --dataset gland $(DATA_FLAG) \
	    --config_file configs/gland_small.yaml --model_dir '$(MODEL_DIR)' --mode train_and_eval
	$(VENV)/bin/python evaluate.py --dataset gland $(DATA_FLAG) --model_dir '$(MODEL_DIR)'

test: $(STAMP) $(POOL_STAMP) $(EXTRAS_STAMP)
	$(PYTEST) $(PYTEST_FLAGS)

test-slow: $(STAMP) $(POOL_STAMP) $(EXTRAS_STAMP)
	$(PYTEST) -m slow $(PYTEST_FLAGS)

test-faults: $(STAMP) $(POOL_STAMP)
	GAN_MRCNN_SHORT_FAULTS='$(SHORT)' $(PYTEST) -m faults $(PYTEST_FLAGS)

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check -q .
	$(VENV)/bin/lint-imports --no-cache

# A link that leads nowhere, or a docstring that cannot be read, is an error.
docs: $(STAMP) $(EXTRAS_STAMP)
	$(VENV)/bin/mkdocs build -q --strict
	@echo 'site/index.html opens from disk; its search wants a server: python3 -m http.server -d site'

# docs/quickstart.ipynb from its page, which is where it is changed.
KERNEL := {"name": "python3", "display_name": "Python 3", "language": "python"}
notebook: $(STAMP) $(EXTRAS_STAMP)
	$(VENV)/bin/jupytext -q --to ipynb --update --update-metadata '{"kernelspec": $(KERNEL)}' \
	    docs/quickstart.md

# An environment that is there already is kept, and its own Python decides what is installed.
$(STAMP): setup.py $(wildcard requirements-tf*.lock requirements-cuda-*.lock)
	$(if $(filter-out yes no,$(GAN_MRCNN_CUDA)),$(error GAN_MRCNN_CUDA is $(GAN_MRCNN_CUDA); \
	    set it to yes or no, or leave it out))
	@test -x $(VENV)/bin/pip \
	    || $(PYTHON) -c 'import sys; sys.exit(not (3, 9) <= sys.version_info[:2] <= (3, 13))' \
	    || { echo "$(PYTHON) is missing or is not Python 3.9 to 3.13, for which there is" \
	    "TensorFlow: install one and say so, as in: make PYTHON=python3.12" >&2; exit 1; }
	@test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV) \
	    || { echo "$(PYTHON) cannot make a virtual environment: install its venv module" \
	    "(on Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@echo 'Installing into $(VENV): some minutes, about $(if $(WITH_CUDA),6 GB with CUDA,3 GB).'
	@export GAN_MRCNN_TF=$(WHICH_TF) && $(PIP_INSTALL) -r requirements-tf$$GAN_MRCNN_TF.lock \
	    $(if $(WITH_CUDA),-r requirements-cuda-tf$$GAN_MRCNN_TF.lock) && $(PIP_INSTALL) -e .
	@touch $@

$(POOL_STAMP): $(STAMP) $(POOL)/build.py $(wildcard custom_ops/*/cc/*)
	@echo 'Compiling PrRoIPool and NMS: half a minute, two with the kernels for CUDA.'
	@$(VENV)/bin/python $(POOL)/build.py || echo 'PrRoIPool and NMS will run in plain TensorFlow, slower.'
	@touch $@

$(EXTRAS_STAMP): $(STAMP) $(wildcard requirements-extras-*.lock)
	@tf=$(WHICH_TF); python=$$($(VENV)/bin/python -c 'import sys; print("3.%d" % sys.version_info[1])'); \
	case "$$tf $$python" in \
	    '2.15 3.11' | '2.20 3.12' | '2.20 3.13') \
	        echo 'Installing what the extras need, for their tests and the site: 1 GB.' \
	        && $(PIP_INSTALL) -r requirements-extras-tf$$tf.lock;; \
	    *) echo "No lock of the extras for TensorFlow $$tf on Python $$python: their tests are skipped.";; \
	esac
	@touch $@

# Libraries and builds of earlier sources would go into the wheel, too.
wheel:
	@for python in $(WHEEL_PYTHONS); do test -x $$python || { echo "$$python is missing: make lint" \
	    "VENV=DIR PYTHON=... makes it, and WHEEL_PYTHONS='...' names others" >&2; exit 1; }; done
	rm -rf build $(POOL)/*.so
	for python in $(WHEEL_PYTHONS); do $$python $(POOL)/build.py --cuda yes --folder $(POOL) || exit; done
	$(firstword $(WHEEL_PYTHONS)) -m pip wheel -q --no-deps -w dist .
	@ls dist/*.whl

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build dist site *.egg-info
	rm -f $(POOL)/*.so $(POOL)/*.failed.txt
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
