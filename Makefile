# Recipes for people and CI. `make dev` and `make test` are all a newcomer needs.

CARGO ?= cargo
# Which kubectls the end-to-end tests run, oldest first; tests/kubectls.sh says where they come from.
KUBECTLS ?= path

.PHONY: help dev check test soak lint fmt bench deny presubmit

help: ## Show the recipes
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

dev: ## Run the embedded cluster with podgate in front
	$(CARGO) run -- dev

check: ## Type-check everything
	$(CARGO) check --all-targets

test: ## Run all tests, those with a real kubectl included (fetched when none is installed)
	kubectls="$$(tests/kubectls.sh $(KUBECTLS))" && PODGATE_KUBECTLS="$$kubectls" $(CARGO) test

soak: ## Run the tests that take minutes: 300 large outputs over links that jitter and break
	kubectls="$$(tests/kubectls.sh $(KUBECTLS))" && PODGATE_KUBECTLS="$$kubectls" \
		$(CARGO) test --test suite -- --ignored --nocapture badlink

lint: ## Format check, clippy without warnings, banned crates
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings
	tests/banned-crates.sh

fmt: ## Format
	$(CARGO) fmt

bench: ## Measure podgate against its node endpoint, side by side
	$(CARGO) bench --profile quick --bench gateway

deny: ## Licences, bans and advisories (needs cargo-deny and, for advisories, its database)
	$(CARGO) deny check

presubmit: lint test ## What CI runs
