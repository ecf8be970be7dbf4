# What there is to do here: `make` lists it. Everything fetched or built lies under .mlx/ and target/.
# MLX_VARIANT=cuda12 or cuda13 takes the CUDA build of MLX on Linux.

SHELL := /bin/bash
BATCH ?= fixtures/example.jsonl
OUT ?= out.jsonl
MODEL ?= .mlx/models/smollm2/SmolLM2-135M-Instruct.gguf
BENCH_ARGS ?=
FUZZ_SECONDS ?= 60

.PHONY: help setup model build run test lint docs fuzz fuzz-answers bench bench-llama-cpp check-gguf gpu-check clean

help: ## Show this list
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /  make \1\t/' | expand -t 24

setup: ## Install what a build needs and fetch MLX (Linux; nothing to do on macOS)
	@scripts/setup.sh build

model: ## Fetch the example model, SmolLM2-135M-Instruct
	@scripts/setup.sh model

build: setup ## Build target/release/mlxbatch
	@cargo build --release --locked

run: build model ## Run the example batch through the example model into out.jsonl
	target/release/mlxbatch run $(BATCH) -o $(OUT) --model $(MODEL)

test: setup model ## Run the whole test suite
	cargo test --locked

lint: setup ## Check formatting and lints, warnings as errors
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings

docs: setup ## Write the man pages anew from the flags
	MLXBATCH_BLESS=1 cargo test --locked --test docs

fuzz: setup ## Fuzz every parser of files that others wrote, for FUZZ_SECONDS each
	FUZZ_SECONDS=$(FUZZ_SECONDS) cargo test --release --locked --test fuzz_corpus -- --nocapture --test-threads 2

# NUM_TRIALS and SEED in the environment say how many trials instead, and from which seed on.
fuzz-answers: setup ## Hold random conversations to each prompt by itself, for FUZZ_SECONDS a kind of model
	$(if $(NUM_TRIALS),,FUZZ_SECONDS=$(FUZZ_SECONDS)) cargo test --locked --test fuzz_answers -- --nocapture --test-threads 1

bench: build ## Compare with mlx-lm on the same conversations (BENCH_ARGS: see benches/compare.py --help)
	@scripts/setup.sh build model reference
	python3 benches/compare.py --stock $(BENCH_ARGS)

bench-llama-cpp: build ## Compare with llama.cpp's server (BENCH_ARGS as above; --gguf names another model)
	@scripts/setup.sh model llama-cpp
	python3 benches/compare.py --against llama.cpp $(BENCH_ARGS)

check-gguf: build ## Compare published GGUF files: weights with gguf-py's, 30 answers each with mlx-lm's
	@scripts/setup.sh build model gguf-models reference
	.mlx/reference/bin/python scripts/check_gguf.py

# MLX_VARIANT says which: with cpu, the default, it only shows that the check itself works.
gpu-check: build ## Try what a first hour with a GPU should: tests on it, then mlx-lm beside mlxbatch (MLX_VARIANT=cuda12)
	@scripts/setup.sh build model reference
	python3 benches/gpu_check.py --python .mlx/reference$(if $(filter-out cpu,$(MLX_VARIANT)),-$(MLX_VARIANT))/bin/python $(BENCH_ARGS)

clean: ## Remove what was built and fetched
	rm -rf target .mlx .cargo/config.toml
