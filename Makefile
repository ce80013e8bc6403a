# Recipes for people and CI. `make dev` and `make test` are all a newcomer needs.

CARGO ?= cargo
# Which kubectls the end-to-end tests run, oldest first; tests/kubectls.sh says where they come from.
KUBECTLS ?= path
# The fuzzer's driver, and seconds for each target: to look for something, and to see that nothing is badly off.
CARGO_FUZZ ?= 0.13.2
FUZZ_SECONDS ?= 600
FUZZ_SMOKE_SECONDS ?= 3
FUZZ_TARGETS ?= $(notdir $(basename $(wildcard fuzz/fuzz_targets/*.rs)))

# Where `make bench` builds.
TARGET = $(abspath $(or $(CARGO_TARGET_DIR),target))

.PHONY: help dev check test soak e2e lint fmt bench instructions deny presubmit fuzz fuzz-smoke

help: ## Show the recipes
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

dev: ## Run the embedded cluster with podgate in front
	$(CARGO) run -- dev

check: ## Type-check everything
	$(CARGO) check --all-targets

test: ## Run all tests, those with a real kubectl and a real player included (fetched when not there)
	kubectls="$$(tests/kubectls.sh $(KUBECTLS))" && asciinema="$$(tests/asciinema.sh)" && \
		PODGATE_KUBECTLS="$$kubectls" PODGATE_ASCIINEMA="$$asciinema" $(CARGO) test

soak: ## Run the tests that take minutes: 300 large outputs over links that jitter and break, 10,000 clients that vanish
	kubectls="$$(tests/kubectls.sh $(KUBECTLS))" && PODGATE_KUBECTLS="$$kubectls" \
		$(CARGO) test --test suite -- --ignored --nocapture badlink
	$(CARGO) test --test floods -- --ignored --nocapture

# Only one given to make: whoever has KUBECONFIG in the environment wants it for other things.
E2E_CLUSTER = $(if $(filter command,$(firstword $(origin KUBECONFIG))),PODGATE_E2E_KUBECONFIG='$(abspath $(KUBECONFIG))')

e2e: ## Prove that every client reaches every kind of node (ONLY="words" picks cells; KUBECONFIG=FILE takes that cluster)
	clients="$$(tests/e2e/setup.sh)" && eval "$$clients" && $(E2E_CLUSTER) $(CARGO) test --features e2e --test e2e -- $(ONLY)

lint: ## Format check, clippy without warnings, banned crates
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets --all-features -- -D warnings
	tests/banned-crates.sh

fmt: ## Format
	$(CARGO) fmt

bench: ## Measure podgate beside kube-apiserver, and searches over 10,000 recordings (two hours; ROWS="words" picks rows)
	$(if $(PODGATE_BINARY),,$(CARGO) build --release --bin podgate --target-dir $(TARGET))
	PODGATE_BINARY="$(or $(PODGATE_BINARY),$(TARGET)/release/podgate)" \
		$(CARGO) bench --profile quick --bench gateway --target-dir $(TARGET) -- $(ROWS)
	$(if $(ROWS),,$(CARGO) bench --profile quick --bench recordings)

instructions: ## Count instructions of the codecs and the splice: over a tenth more than it was is an error
	tests/valgrind.sh
	$(CARGO) bench --profile quick --bench instructions

deny: ## Licences, bans and advisories (needs cargo-deny and, for advisories, its database)
	$(CARGO) deny check

fuzz: ## Look for bytes of a peer that break a property, FUZZ_SECONDS a target (needs a C++ compiler; fetches cargo-fuzz)
	$(CARGO) fuzz --version 2>/dev/null | grep -qF $(CARGO_FUZZ) || $(CARGO) install --locked cargo-fuzz@$(CARGO_FUZZ)
	cd fuzz && for target in $(FUZZ_TARGETS); do \
	  mkdir -p found/$$target && nice $(CARGO) fuzz run --sanitizer none $$target found/$$target corpus/$$target \
	    -- -max_total_time=$(FUZZ_SECONDS) -timeout=10 -rss_limit_mb=2048 || exit; \
	done

fuzz-smoke: ## The same for seconds, without the fuzzer: known inputs, changed at random
	$(CARGO) check --manifest-path fuzz/Cargo.toml --locked --no-default-features --features testing
	PODGATE_FUZZ_SECONDS=$(FUZZ_SMOKE_SECONDS) $(CARGO) test --lib testing::fuzz -- --nocapture

presubmit: lint test fuzz-smoke instructions ## What CI runs
