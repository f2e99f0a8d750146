# Every command of the project. `make` alone lists them.
SHELL := bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
export VENV

# Models come from the installed wheel, a local folder or ModelScope: no test and no demo asks another hub.
export HF_HUB_OFFLINE ?= 1

$(STAMP): pyproject.toml client/pyproject.toml requirements.lock scripts/setup.sh
	@scripts/setup.sh
	@touch $@

.PHONY: help setup demo serve test check faults soak long-job bench format docs site lock clean

help: ## show this list
	@echo "Twolane: embeddings and reranking, small requests at once, large corpora as jobs."
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

##@ Try it
demo: $(STAMP) ## the whole product on real text, start to end, about a minute
	@$(BIN)/python -m stack.demo

serve: $(STAMP) ## the stack on 127.0.0.1:8000 until Ctrl-C (PORT= changes it)
	@$(BIN)/python -m stack.serve

##@ Prove it
test: $(STAMP) ## all tests but the slow ones (PROCESSES=2 at a time: many of them wait for leases and processes)
	@$(BIN)/python -m pytest -n $(or $(PROCESSES),2) --dist loadfile -m "not slow and not gpu"

check: $(STAMP) ## format, lint, types, import rules, unit and property tests: under a minute
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/zensical build --strict
	@$(BIN)/check-jsonschema --quiet --builtin-schema vendor.compose-spec docker-compose.yml deploy/compose.*.yml
	@$(BIN)/python -m pytest -q -n $(or $(PROCESSES),2) --dist loadfile tests/unit tests/properties -m "not slow and not gpu"

faults: $(STAMP) ## every fault test (processes killed, frozen, cut off, fed duplicates) and all other slow tests
	@$(BIN)/python -m pytest -n $(or $(PROCESSES),2) --dist loadfile tests/faults -m "not gpu"
	@$(BIN)/python -m pytest tests --ignore=tests/faults -m "slow and not gpu"

soak: $(STAMP) ## random faults under load, then the audit (MINUTES=2; SEED= draws the same faults again)
	@$(BIN)/python -m tests.support.soak --minutes $(or $(MINUTES),2) $(if $(SEED),--seed $(SEED))

long-job: $(STAMP) ## one job of TEXTS=200000 on the real model through kills of workers and server, then the audit
	@$(BIN)/python -m tests.support.long_job $(if $(TEXTS),--texts $(TEXTS))

bench: $(STAMP) ## measure, print the tables, write benchmarks/results
	@$(BIN)/python -m benchmarks

##@ Work on it
setup: $(STAMP) ## the virtual environment with everything locked (PYTHON=, TORCH=cpu|default, TORCH_INDEX_URL=)

format: $(STAMP) ## rewrite the code in the house format
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

docs: $(STAMP) ## write .env.example, docs/settings.md and docs/errors.md again from the code
	@$(BIN)/python -m config.reference
	@$(BIN)/python -m app.ops.error_reference

site: $(STAMP) ## the documentation site, into build/site (SERVE=1 shows it on 127.0.0.1:8001 and follows changes)
	@$(BIN)/zensical $(if $(SERVE),serve --dev-addr 127.0.0.1:8001,build --strict)

lock: $(STAMP) ## resolve the dependencies again (UPGRADE=1 takes newer versions)
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --all-extras --no-emit-index-url --no-emit-find-links \
	    --custom-compile-command "make lock" $(if $(UPGRADE),--upgrade) --output-file requirements.lock pyproject.toml client/pyproject.toml
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --group clients --no-emit-index-url --no-emit-find-links \
	    --custom-compile-command "make lock" $(if $(UPGRADE),--upgrade) --output-file tests/clients.lock
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --group clients-cohere5 --no-emit-index-url --no-emit-find-links \
	    --custom-compile-command "make lock" $(if $(UPGRADE),--upgrade) --output-file tests/clients-cohere5.lock

clean: ## remove caches and build results; .venv and data stay
	@rm -rf build dist *.egg-info client/build client/*.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .cache
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
