# Every target installs what it needs on a Debian machine, as root. Elsewhere, and as another user, it says what is
# missing; `run`, `check` and `package` go on where nothing is.
#
#   make run       the daemon, with this machine's own runtimes, JSON lines on stdout
#   make demo      a private Docker, containerd and Kafka; what Quaymaster publishes of them, for a minute
#   make test      all tests, with real runtimes and brokers
#   make check     format, lints, documentation
#   make deny      licences, sources and duplicates of dependencies (builds cargo-deny, where it is missing: minutes)
#   make faults    1,000 SIGKILLs and all other faults, with figures: half an hour to an hour (QUAYMASTER_FAULTS_MINUTES=5,
#                  QUAYMASTER_FAULTS_SEED=…)
#   make fuzz      every decoder of foreign bytes, 10 minutes each (QUAYMASTER_FUZZ_SECONDS=…)
#   make bench     measurements, as ratios
#   make package   a Debian package of the release build, in target/debian
#   make install   what a build needs
#   make install-lab   the runtimes and brokers that tests, demo and bench start in folders of their own

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help

LAB := tests/lab/lab
CARGO_VERSION_MIN := 1.90
# What the daemon gets besides `run`, as in `make run ARGS='--bus kafka://localhost:9092'`.
ARGS ?=

.PHONY: help run demo test faults fuzz check deny bench package install install-lab cargo build

help:
	@sed -n 's/^#   //p' Makefile

run: build
	@exec target/release/quaymaster run $(ARGS)

demo: build
	@$(LAB) install containerd2 docker kafka consumers
	tests/lab/demo

# Each part has some three times what it takes on two cores: one that hangs is to be told by its name.
test: install install-lab
	cargo test --locked --no-run
	timeout -k 30 5m cargo test --locked --lib --bins
	timeout -k 30 8m cargo test --locked --test it --test reconcile
	# One lab after another: each has runtimes and brokers of its own, and there may be two cores for all.
	timeout -k 30 24m cargo test --locked --test sink -- --test-threads=1
	timeout -k 30 40m cargo test --locked --test e2e -- --test-threads=1
	timeout -k 30 20m cargo test --locked --test faults -- --test-threads=1

faults: install install-lab
	cargo test --locked --test faults --test e2e --bench quaymaster --no-run
	CI=true timeout -k 30 47m cargo test --locked --test faults -- --ignored --nocapture --test-threads=1
	CI=true timeout -k 30 8m cargo test --locked --test e2e -- --ignored --nocapture --test-threads=1
	# The first send with 1 GiB owed. Slower than `benches/run recovery`, which is built for speed; the goals hold all the same.
	timeout -k 30 5m cargo test --locked --bench quaymaster -- recovery

fuzz: install
	# One thread for each, so that all end after the time of one; they find nothing that a lone one would not.
	QUAYMASTER_FUZZ_SECONDS=$${QUAYMASTER_FUZZ_SECONDS:-600} nice -n 19 cargo test --locked --lib fuzz_ -- --nocapture --test-threads=64

check: install
	cargo fmt --all --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps --document-private-items

# Advisories need a database from the network, and are asked for by hand: `cargo deny check advisories`.
deny: install
	@if ! cargo deny --version >/dev/null 2>&1; then
	  nice -n 15 cargo install --locked cargo-deny --root target/tools --target-dir target/cargo-deny
	fi
	PATH="$$PWD/target/tools/bin:$$PATH" cargo deny check bans licenses sources

bench: build install-lab
	@if [[ ! -x benches/run ]]; then echo 'make: there is no benches/run' >&2; exit 1; fi
	benches/run

package: build
	@$(LAB) install deb
	deploy/debian/build --binary target/release/quaymaster --out target/debian

build: install
	cargo build --release --locked

install: cargo
	@$(LAB) install build

install-lab:
	@$(LAB) install

cargo:
	@version=$$(cargo --version 2>/dev/null | sed -n 's/^cargo \([0-9.]*\).*/\1/p' || true)
	if [[ -z $$version ]]; then
	  echo 'make: no cargo on the PATH: install Rust $(CARGO_VERSION_MIN) or later (https://rustup.rs)' >&2
	  exit 69
	fi
	if [[ $$(printf '%s\n' $(CARGO_VERSION_MIN) "$$version" | sort -V | head -n 1) != $(CARGO_VERSION_MIN) ]]; then
	  echo "make: cargo $$version is too old: Rust $(CARGO_VERSION_MIN) or later is needed (rustup update)" >&2
	  exit 69
	fi
