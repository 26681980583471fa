# The two commands are `make run` and `make test`. CI runs `make test` too (.ci/run), so the steps stand here only.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.NOTPARALLEL:
.SUFFIXES:
.DEFAULT_GOAL := help

# Where rustup puts cargo, and where `cargo install` puts cargo-deny: shells without a login do not look there.
export PATH := $(or $(CARGO_HOME),$(HOME)/.cargo)/bin:$(PATH)

CARGO_DENY_VERSION := 0.20.2
TARGET_DIR := $(abspath $(or $(CARGO_TARGET_DIR),target))
LOGS := $(TARGET_DIR)/test-logs

# COMMAND:PACKAGE for everything that builds the C libraries below us (zlib-ng, SQLite, jemalloc, zstd).
BUILD_NEEDS := cc:gcc make:make cmake:cmake pkg-config:pkg-config

.PHONY: help
help: ## Show this
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

.PHONY: run
run: build ## Build what is missing and run the demo (ARGS="--listen-addr 127.0.0.1:9090" adds flags)
	@exec "$(TARGET_DIR)/release/llm-proxy" demo $(ARGS)

.PHONY: build
build: build-needs ## Build the release binary
	@cargo build --release --locked --bin llm-proxy

# --- what CI runs ---------------------------------------------------------------------------------------------------

.PHONY: test
test: test-needs fmt-check lint deny debug-build sdk-tests cargo-tests fuzz-tests ## Install what the tests need and run all of them
	@.ci/closing-lines "$(LOGS)"

.PHONY: fmt-check
fmt-check:
	cargo fmt --all --check

.PHONY: lint
lint: build-needs ## Clippy, every warning an error
	cargo clippy --workspace --all-targets --locked -- -D warnings

.PHONY: deny
deny: cargo-deny ## Licences, banned crates, sources
	cargo deny --locked check bans licenses sources

# All targets at once: another selection would choose other features and build half the tree a second time.
.PHONY: debug-build
debug-build: build-needs
	cargo build --workspace --all-targets --locked

# Two at a time: scenarios measure latencies, and more of them at once would measure each other.
.PHONY: cargo-tests
cargo-tests: debug-build
	@mkdir -p "$(LOGS)"
	RUST_TEST_THREADS=2 cargo test --workspace --locked --no-fail-fast 2>&1 | tee "$(LOGS)/cargo.log"

.PHONY: sdk-tests
sdk-tests: debug-build sdk-needs ## The official SDKs, direct and through the proxy
	@mkdir -p "$(LOGS)"
	LLM_PROXY_BIN_DIR="$(TARGET_DIR)/debug" python3 tests/sdk/run.py 2>&1 | tee "$(LOGS)/sdk.log"

.PHONY: fuzz-tests
fuzz-tests: build-needs ## The fuzz targets, each for a moment
	@mkdir -p "$(LOGS)"
	cargo fmt --manifest-path tests/fuzz/Cargo.toml --check
	.ci/fuzz 120 6000 2>&1 | tee "$(LOGS)/fuzz.log"

# --- for a person ---------------------------------------------------------------------------------------------------

.PHONY: fmt
fmt: ## Format the code
	cargo fmt --all

.PHONY: torture
torture: test-needs debug-build ## In full, for hours: docs/torture.md tells what, and what it last found
	TORTURE_KILLS=$${TORTURE_KILLS:-200} cargo test --workspace --locked --test crash -- --nocapture
	H1_MUTANTS=$${TORTURE_MUTANTS:-100000} H1_ANSWER_MUTANTS=$${TORTURE_MUTANTS:-100000} \
		cargo test --workspace --locked --test h1_corpus --test h1_answers -- --nocapture
	TORTURE_KILL_ROUNDS=$${TORTURE_KILL_ROUNDS:-200} \
		cargo test --workspace --locked --test kill_matrix -- --nocapture --test-threads=1
	TORTURE_SINK_DOWN_EVENTS=$${TORTURE_SINK_DOWN_EVENTS:-100000} \
		cargo test --workspace --locked --test sink_down -- --nocapture --test-threads=1
	TORTURE_POWER_CUTS=$${TORTURE_POWER_CUTS:-2000} \
		cargo test --workspace --locked --lib -- --nocapture power_cut io_faults
	TORTURE_SILENCE_SECONDS=$${TORTURE_SILENCE_SECONDS:-590} cargo test --workspace --locked --test silence -- --nocapture
	.ci/fuzz $${TORTURE_FUZZ_SECONDS:-600} -1

.PHONY: bench
bench: bench-needs ## This proxy beside a bare Pingora proxy (ARGS="--quick" takes other flags: benches/README.md)
	cargo build --release --locked -p llm-proxy -p llm-proxy-load -p llm-proxy-benches --bins
	"$(TARGET_DIR)/release/side-by-side" $(or $(ARGS),--cpu --callgrind --json "$(TARGET_DIR)/bench.json")

.PHONY: bench-journal
bench-journal: build-needs ## The journal beside plain writes of the same bytes, and the cost of an append (ARGS="-- throughput" takes a part)
	cargo bench --locked -p llm-proxy-benches --bench journal $(ARGS)

.PHONY: advisories
advisories: cargo-deny ## Known faults of our dependencies; fetches the database, so it needs the network
	cargo deny --locked check advisories

# --- what the steps need --------------------------------------------------------------------------------------------

.PHONY: build-needs
build-needs: rust
	@.ci/need $(BUILD_NEEDS)

.PHONY: test-needs
test-needs: build-needs sdk-needs cargo-deny
	@.ci/need curl:curl openssl:openssl h2load:nghttp2-client chromium:chromium /usr/sbin/haproxy:haproxy redis-server:redis-server

.PHONY: sdk-needs
sdk-needs:
	@.ci/need python3:python3 python3-venv:python3-venv
	if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
		echo "node and npm are missing: install Node.js 20 or later, then run this again" >&2
		exit 1
	fi

.PHONY: bench-needs
bench-needs: build-needs
	@.ci/need valgrind:valgrind taskset:util-linux

.PHONY: rust
rust:
	@if ! command -v cargo >/dev/null; then
		echo "cargo is missing: install Rust 1.94 or later with rustup, then run this again" >&2
		exit 1
	fi

# Into cargo's own folder, outside the checkout: once for a machine, some minutes.
.PHONY: cargo-deny
cargo-deny: rust
	@if [ "$$(cargo deny --version 2>/dev/null)" != "cargo-deny $(CARGO_DENY_VERSION)" ]; then
		.ci/need $(BUILD_NEEDS)
		cargo install cargo-deny --locked --version $(CARGO_DENY_VERSION)
	fi
