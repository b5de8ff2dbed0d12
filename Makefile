# Everything installs into .venv, once; a change of pyproject.toml or constraints.txt installs again.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := qwen3_ray cluster tests examples benchmarks

.PHONY: setup serve fmt lint type imports test test-fault test-4b gpu-test gpu-check protos protos-check check bench bench-peers bench-check clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@echo "Installing into $(VENV) (about three minutes, once)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --progress-bar on -c constraints.txt -e '.[dev]'
	@touch $@

serve: $(STAMP)
	$(BIN)/qwen3-ray serve $(ARGS)

fmt: $(STAMP)
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

lint: $(STAMP)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)

type: $(STAMP)
	$(BIN)/mypy

imports: $(STAMP)
	$(BIN)/lint-imports

test: $(STAMP)
	$(BIN)/pytest $(ARGS)

test-fault: $(STAMP)
	$(BIN)/pytest -m fault $(ARGS)

test-4b: $(STAMP)
	$(BIN)/python -m benchmarks.check_4b $(ARGS)

gpu-test: $(STAMP)
	$(BIN)/pytest -m gpu tests/gpu $(ARGS)

gpu-check: $(STAMP)
	$(BIN)/python -m benchmarks.gpu_check $(ARGS)

bench: $(STAMP)
	$(BIN)/python -m benchmarks.bench $(ARGS)

bench-peers: $(STAMP)
	$(BIN)/python -m benchmarks.peers.install $(ARGS)

bench-check: $(STAMP)
	$(BIN)/python -m benchmarks.bench_check $(ARGS)

protos: $(STAMP)
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. protos/v1/generate.proto protos/v1/link.proto

protos-check: protos
	git diff --exit-code -- protos

check: lint type imports protos-check
	$(MAKE) test

clean:
	rm -rf $(VENV) build *.egg-info
