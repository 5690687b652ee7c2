# Verbs of the project. `make run` and `make test` are all that a newcomer needs.
PYTHON ?= python3
BIN := .venv/bin
PROTOS := $(wildcard protos/quire/v1/*.proto)
export OMP_WAIT_POLICY ?= passive

.PHONY: help run test clients check protos bench bench-gpu load fuzz clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/\t/'

run:  ## set up, serve the shipped model and stream a sample
	@$(PYTHON) deploy/bootstrap.py all
	@$(BIN)/quire serve --sample $(ARGS)

test:  ## set up and run the tests, two files at a time
	@$(PYTHON) deploy/bootstrap.py test
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(ARGS)

clients:  ## set up clients of other projects (LangChain, LiteLLM's proxy, Node) and run them against a live stack
	@$(PYTHON) deploy/bootstrap.py clients
	@$(BIN)/python -m pytest tests/clients $(ARGS)

check:  ## formatting, lint, types, import rules and contracts
	@$(PYTHON) deploy/bootstrap.py check
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/buf lint
	$(BIN)/buf breaking --against '.git#branch=main'
	$(BIN)/python deploy/check_generated.py

protos:  ## generate quire/v1 from protos/
	@$(PYTHON) deploy/bootstrap.py check
	$(BIN)/python -m grpc_tools.protoc -I protos --python_out=. --pyi_out=. --grpc_python_out=. $(PROTOS)

bench:  ## figures without a GPU: footprint, scheduler step and process, streaming rates, CPU serving; CASES=... picks some
	@$(PYTHON) deploy/bootstrap.py test
	@for each in $(or $(CASES),footprint scheduler_step scheduler_process stream_rate sse_rate cpu_serving); do \
	  echo; echo "== benchmarks/$$each.py"; $(BIN)/python benchmarks/$$each.py $(ARGS) || exit; done

bench-gpu:  ## every workload on one GPU beside its floor, in five commands; CASES=... picks some
	@$(PYTHON) deploy/bootstrap.py test
	@for each in $(or $(CASES),worker front-door structured start-and-peer other-shapes); do \
	  $(BIN)/python -m benchmarks.gpu $$each $(ARGS) || exit; done

load:  ## ab, wrk and Locust, each once against the shipped model; says which of them is missing
	@$(PYTHON) deploy/bootstrap.py check
	@$(BIN)/python -m pytest -s tests/bench/test_load_tools.py $(ARGS)

fuzz:  ## 20,000 malformed and boundary requests over HTTP and gRPC beside good ones; NUM=... sends another number
	@$(PYTHON) deploy/bootstrap.py test
	@QUIRE_NUM_FUZZ_REQUESTS=$(or $(NUM),20000) $(BIN)/python -m pytest -s --timeout 3600 tests/fuzz $(ARGS)

clean:  ## remove what was installed and built
	rm -rf .venv .venv-litellm build dist .pytest_cache .ruff_cache .hypothesis
