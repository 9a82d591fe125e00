# `make demo` and `make test` set up what they need: a virtual environment from the pinned lock files.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SGLANG_ENV ?= .venv-sglang
S3_ENV ?= .venv-s3
TEST_PROCESSES ?= 2
PUBLISH_ENV ?= .venv-publish
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input install -qq

.PHONY: help demo browser test test-sglang fast lint schema lock clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 14

demo: $(VENV)/.installed  ## the main job: a study on the embedded simulator, about two minutes
	@$(BIN)/tuner run configs/quickstart.json --num-gpus 8

test: $(VENV)/.installed-dev $(S3_ENV)/.installed $(PUBLISH_ENV)/.installed  ## every test that this machine can run
	@MOTO_SERVER="$(abspath $(S3_ENV))/bin/moto_server" PUBLISH_PACKAGES="$(abspath $(PUBLISH_ENV))" \
		$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile

# torch's CPU build and no other: the plain name may bring gigabytes of CUDA.
test-sglang: $(VENV)/.installed-dev $(SGLANG_ENV)/.installed  ## the sglang adapter on a real SGLang without a GPU
	@SGLANG_PYTHON="$(abspath $(SGLANG_ENV))/bin/python" $(BIN)/python -m pytest --durations=0 tests/sglang

browser:  ## Chromium, for the tests that look at the web page (Debian, as root)
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
		|| { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium; } \
		|| { echo "Chromium is needed: apt-get install chromium, as root"; exit 1; }

fast: $(VENV)/.installed-dev  ## the tests that need no Ray and take no time
	@$(BIN)/python -m pytest -m "not ray and not slow"

lint: $(VENV)/.installed-dev  ## style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

schema: $(VENV)/.installed  ## the JSON schema of task files and the page of their keys, from the models
	@$(BIN)/tuner schema > tuner/task/task.schema.json
	@$(BIN)/tuner schema --table | awk 'NR == FNR { table = table $$0 "\n"; next } /^<!-- end of keys/ { old = 0 } \
		!old; /^<!-- keys/ { printf "\n%s\n", table; old = 1 }' - docs/task-file.md > docs/.task-file.md
	@mv docs/.task-file.md docs/task-file.md

lock: $(VENV)/.installed-dev  ## pin the newest versions that pyproject.toml allows
	@$(PIP) uv
	@$(BIN)/uv pip compile -q --upgrade $(LOCK_FLAGS) pyproject.toml -o requirements.lock
	@$(BIN)/uv pip compile -q --upgrade $(LOCK_FLAGS) pyproject.toml --extra dev -c requirements.lock -o requirements-dev.lock
	@$(BIN)/uv pip compile -q --upgrade $(LOCK_FLAGS) pyproject.toml benchmarks/gpu/requirements.txt \
		-c requirements-dev.lock -o benchmarks/gpu/requirements.lock

LOCK_FLAGS := --universal --python-version 3.11 --no-header --no-annotate --no-emit-index-url --no-emit-find-links

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or later is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python requirements.lock pyproject.toml
	@echo "Setting up $(VENV) (about a minute, once) ..."
	@$(PIP) -r requirements.lock
	@$(PIP) --no-deps --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.lock
	@$(PIP) -r requirements-dev.lock
	@touch $@

# A server that speaks S3, in an environment of its own: it pins other versions than we do.
$(S3_ENV)/.installed: tests/s3/requirements.txt
	@$(PYTHON) -m venv $(S3_ENV)
	@$(S3_ENV)/bin/python -m pip --disable-pip-version-check --no-input install -qq -r tests/s3/requirements.txt
	@touch $@

# Tools that studies are published to, beside the packages that they share with us (70 MB).
$(PUBLISH_ENV)/.installed: $(VENV)/.installed-dev tests/publish/requirements.txt
	@$(PIP) --no-deps --upgrade --target $(PUBLISH_ENV) -r tests/publish/requirements.txt
	@touch $@

$(SGLANG_ENV)/.installed: $(wildcard tests/sglang/*.txt)
	@echo "Setting up $(SGLANG_ENV) with SGLang for the CPU (some minutes and 1.7 GB, once) ..."
	@$(PYTHON) -m venv $(SGLANG_ENV)
	@$(SGLANG_PIP) torch==2.13.0+cpu \
		|| { echo "pip needs an index that has torch's builds for the CPU (PIP_EXTRA_INDEX_URL)"; exit 1; }
	@$(SGLANG_PIP) -r tests/sglang/requirements.txt
	@$(SGLANG_PIP) --no-deps -r tests/sglang/requirements-alone.txt
	@touch $@

SGLANG_PIP = $(SGLANG_ENV)/bin/python -m pip --disable-pip-version-check --no-input install -qq \
	-c tests/sglang/constraints.txt
