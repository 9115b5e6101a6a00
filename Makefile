# Kinotone. `make demo` and `make test` work on a fresh machine: each sets itself up first.
SHELL := bash
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# A run leaves its files here; `make demo` again resumes them.
RUNS   ?= runs/demo

# Python of the machine with the GPU, for the wheels that it may lack.
GPU_PYTHON ?= 3.12
GPU_WHEELS := $(addprefix --platform manylinux,_2_28_x86_64 _2_27_x86_64 _2_17_x86_64 2014_x86_64 1_x86_64)

.PHONY: help install demo ui test test-ci test-all lint format docs lock gpu-bundle clean

help:       ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | column -t -s "$$(printf '\t')"

install: $(STAMP)   ## set up .venv from requirements.lock (about a minute)

demo: $(STAMP)      ## the main job end to end: raw clips to a trained tiny model and a playable mp4
	@$(BIN)/kinotone demo --output $(RUNS)

ui: $(STAMP)        ## open the MLflow page of the demo's runs
	@test -f $(RUNS)/mlflow.db || { echo "make: $(RUNS)/mlflow.db is not there yet; run make demo first" >&2; exit 2; }; $(BIN)/mlflow ui --backend-store-uri sqlite:///$(RUNS)/mlflow.db

test: $(STAMP)      ## every test that takes seconds (≤ 15 minutes on 2 cores)
	@$(BIN)/python -m pytest -m "not slow and not ci"

test-ci: $(STAMP)   ## the end-to-end tests that CI adds to make test (≤ 20 minutes on 2 cores)
	@$(BIN)/python -m pytest -m "ci and not slow"

test-all: $(STAMP)  ## every test, also the slow ones
	@$(BIN)/python -m pytest

lint: $(STAMP)      ## ruff and pyright
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright

format: $(STAMP)    ## let ruff lay the code out
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

docs: $(STAMP)      ## build the documentation site into build/site; a broken link is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet && echo "Open build/site/index.html"

lock: $(STAMP)      ## resolve pyproject.toml again into requirements.lock (versions and hashes, no addresses)
	@$(BIN)/uv pip compile pyproject.toml --all-extras --python-version 3.11 --generate-hashes \
	  --no-header --no-annotate --no-emit-index-url --upgrade -o requirements.lock

gpu-bundle: $(STAMP) ## fetch what a machine with bare torch lacks to run benchmarks.gpu (wheels, 30 MiB)
	@rm -rf gpu-bundle; $(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes \
	  --only-binary=:all: --python-version $(GPU_PYTHON) --implementation cp $(GPU_WHEELS) \
	  -d gpu-bundle -r benchmarks/gpu/requirements.txt && du -sh gpu-bundle

clean:              ## remove the environment and every run
	rm -rf $(VENV) runs

# uv comes from the machine or, else, from the package index through the new environment's own pip.
# The stamp is written last, so a set-up that was cut off is done again. Bytecode is compiled here: where Python may not
# write it (PYTHONDONTWRITEBYTECODE), each of Ray's many processes would compile torch again, and a run start twice as slow.
$(STAMP): requirements.lock pyproject.toml
	@set -e; start=$$SECONDS; \
	command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) is missing; install it (Debian/Ubuntu: apt-get install python3.11 python3.11-venv), or name another 3.11 with PYTHON=…" >&2; exit 2; }; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' || { echo "make: $(PYTHON) is not Python 3.11 or 3.12; name one with PYTHON=…" >&2; exit 2; }; \
	command -v g++ >/dev/null || { echo "make: g++ is missing; DeepSpeed compiles with it (Debian/Ubuntu: apt-get install g++)" >&2; exit 2; }; \
	echo "Setting up $(VENV) (about 9 GB, a minute or two) …"; \
	$(PYTHON) -m venv $(VENV) || { echo "make: $(PYTHON) has no venv module; Debian/Ubuntu: apt-get install python3.11-venv" >&2; exit 2; }; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv; \
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --require-hashes -r requirements.lock; \
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .; \
	touch $(STAMP); echo "Set up in $$((SECONDS - start)) s."
