# Tidegate. `make help` lists the targets. Everything is built below .venv/, build/ and rust/target/.
SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMPS := build/stamps
RUST := $(shell find rust -name '*.rs' -not -path '*/target/*' -o -name 'Cargo.*' -not -path '*/target/*' 2>/dev/null)
ROOT := $(shell [ "$$(id -u)" -eq 0 ] || echo sudo)

# tests that share nothing run on every core, those that search what the machine wrote meanwhile by themselves; those with
# namespaces of their own, which mostly wait, three files at a time; those that use loop devices, load the kernel's network or
# take times, one by one
FREE := $(patsubst %,tests/system/test_%.py,device_keys enrolments identity_life key_drills tls_hardware tls_our_ca)
APART := tests/architecture tests/interop tests/power tests/properties tests/unit tests/vectors $(FREE)
ALONE := tests/power/test_vault_ext4.py
WAITING := $(patsubst %,tests/system/test_%.py,agent_firewall agent_vault tutorial \
    $(addprefix firewall_,bad_input bans commit filter guard learn link lockdown model mud names scratch transaction watch why))
TOGETHER := tests/system $(patsubst %,--ignore %,$(FREE) $(WAITING))

.PHONY: help demo test test-vm lint bench suricata-verify fuzz setup setup-test format clean
.DEFAULT_GOAL := help

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 18

demo: setup ## install what is needed, then show a protected device from end to end (root)
	@$(ROOT) $(BIN)/tidegate demo $(DEMO)

test: setup setup-test ## install what is needed, then run every test (root for the kernel's part)
	cd rust && cargo test --quiet --profile checked --workspace --exclude sensor-py
	cd rust && cargo run --quiet --profile checked -p capture --example fuzz_smoke -- 10
ifdef TESTS
	$(ROOT) $(BIN)/python -m pytest $(TESTS)
else
	$(ROOT) $(BIN)/python -m pytest -n auto --dist loadfile --ignore $(ALONE) $(APART)
	$(ROOT) $(BIN)/python -m pytest -n auto --dist load $(ALONE)
	$(ROOT) $(BIN)/python -m pytest -n 3 --dist loadfile $(WAITING)
	$(ROOT) $(BIN)/python -m pytest $(TOGETHER)
endif

test-vm: setup setup-test $(STAMPS)/guest-kernel ## run what needs another kernel, in guests in QEMU: some minutes (root)
	$(ROOT) $(BIN)/python -m pytest tests/vm/test_guest.py

lint: setup ## ruff, mypy --strict, import contracts, cargo fmt and clippy; warnings are errors
	$(BIN)/ruff format --check src tests bench
	$(BIN)/ruff check src tests bench
	$(BIN)/mypy
	$(BIN)/lint-imports
	cd rust && cargo fmt --all --check
	cd rust && cargo clippy --quiet --workspace --all-targets -- -D warnings

bench: setup setup-test ## run the benchmarks of all rooms, or of one: make bench NAME=ids (root)
	$(ROOT) $(BIN)/python -m bench.run $(NAME)

suricata-verify: setup ## judge the sensor by Suricata's public test suite: make suricata-verify DIR=... [ARGS="--only dns -j 2"]
	$(BIN)/python -m bench.suricata_verify $(DIR) $(ARGS)

fuzz: ## fuzz the sensor's parsers for a minute each with cargo-fuzz (needs a nightly toolchain)
	cd rust/fuzz && for target in $$(cargo +nightly fuzz list); do \
	    cargo +nightly fuzz run $$target -- -max_total_time=60 || exit 1; done

format: setup ## format Python and Rust
	$(BIN)/ruff format src tests bench
	$(BIN)/ruff check --fix src tests bench
	cd rust && cargo fmt --all

clean: ## remove everything that was built
	rm -rf $(VENV) build rust/target src/tidegate/ids/*.so

setup: $(STAMPS)/debian-demo $(STAMPS)/package
setup-test: $(STAMPS)/debian-test

$(STAMPS)/debian-%: requirements/debian-%.txt
	@mkdir -p $(STAMPS)
	requirements/install-debian $<
	@touch $@

$(STAMPS)/guest-kernel: requirements/guest-kernel | $(STAMPS)/debian-vm
	requirements/guest-kernel build/guest-kernel
	@touch $@

$(STAMPS)/venv: requirements/dev.txt | $(STAMPS)/debian-demo
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed" >&2; exit 1; }
	@command -v cargo >/dev/null || { echo "Rust is needed: install it with rustup (cargo is not on the PATH)" >&2; exit 1; }
	@echo "making the virtual environment $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@touch $@

$(STAMPS)/package: $(STAMPS)/venv pyproject.toml $(RUST)
	@echo "building tidegate with its Rust sensor"
	@PATH="$(abspath $(BIN)):$$PATH" $(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@
