# Everything a person types. `make` alone lists the targets.
# One build profile (release) for running, testing and measuring: nothing is compiled twice.
.DEFAULT_GOAL := help
.PHONY: help setup embedded run run-services services test soak simulate fuzz bench bench-full bench-micro fmt lint deny

PYTHON ?= python3
CARGO ?= cargo
CASES ?= 5000
ROUNDS ?= 200
SEED ?=
SEEDS ?= 100000
TARGET ?= tokens
SECONDS ?= 600
TARGETS := $(notdir $(wildcard tests/corpus/*))

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: embedded ## Obtain PostgreSQL, ONNX Runtime, the embedding model and the services for tests into .local
	@$(PYTHON) scripts/services.py install

embedded:
	@$(PYTHON) scripts/setup.py

run: embedded ## Set up, build, start the server with two demo tenants, keep serving
	$(CARGO) build --release --bin bulkhead
	@$(PYTHON) scripts/demo.py

run-services: setup ## The same on all services instead of the embedded stores
	$(CARGO) build --release --bin bulkhead
	@$(PYTHON) scripts/services.py demo

services: embedded ## Start the services that the server can use beside its own stores, and print how to point it at them
	@$(PYTHON) scripts/services.py

test: setup ## Set up and run the whole suite
	@$(PYTHON) -m unittest discover --start-directory scripts --pattern 'test_*.py'
	$(CARGO) test --release --features laboratory -- $$($(PYTHON) scripts/services.py skips)
	@$(PYTHON) scripts/services.py api
	@$(PYTHON) scripts/services.py told
	@echo "make test: everything passed"

soak: setup ## Search long for faults: CASES inputs for each property, SEEDS interleavings, ROUNDS kills under load, SECONDS of each fuzz target
	PROPTEST_CASES=$(CASES) $(CARGO) test --release --features laboratory --test suite -- fuzzing:: any_body:: damaged_files::
	@$(MAKE) --no-print-directory simulate SEED=
	BULKHEAD_ROUNDS=$(ROUNDS) $(CARGO) test --release --features laboratory --test suite -- --nocapture crashes::storm::
	BULKHEAD_FLOOD=50000 $(CARGO) test --release --features laboratory --test suite -- --nocapture faults::
	for target in $(TARGETS); do $(MAKE) fuzz TARGET=$$target || exit 1; done

simulate: ## Replay the simulation of SEED with its history; without one, run SEEDS interleavings
	BULKHEAD_SEED=$(SEED) BULKHEAD_SEEDS=$(SEEDS) $(CARGO) test --release --features laboratory --test suite -- --nocapture \
		simulation::no_interleaving_

fuzz: ## Fuzz TARGET by coverage for SECONDS, on the stable toolchain; wants a C++ compiler
	RUSTC_WORKSPACE_WRAPPER=$(CURDIR)/fuzz/rustc.sh $(CARGO) build --release --package bulkhead-fuzz --bin $(TARGET)
	mkdir -p .local/fuzz/$(TARGET)
	target/release/$(TARGET) -max_total_time=$(SECONDS) -artifact_prefix=tests/corpus/$(TARGET)/ \
		.local/fuzz/$(TARGET) tests/corpus/$(TARGET)

bench: embedded ## Measure the server against its raw parts, in less than 20 minutes
	$(CARGO) run --release --features laboratory --bin bulkhead -- bench

bench-full: embedded ## The same, as large as the targets say
	$(CARGO) run --release --features laboratory --bin bulkhead -- bench --full

bench-micro: embedded ## Functions that run for every chunk or question, each by itself
	$(CARGO) bench --profile release --features laboratory --bench hot

fmt: ## Format the sources
	$(CARGO) fmt

lint: ## Formatting, clippy and rustdoc, with warnings denied
	$(CARGO) fmt --check
	$(CARGO) clippy --release --all-targets --features laboratory -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --release --no-deps --features laboratory

deny: ## Licences, sources and known vulnerabilities of the dependencies
	@$(PYTHON) scripts/deny.py
	@$(PYTHON) scripts/deny.py advisories
