.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
SCRIPTS = $(shell grep -rlI '^#!.*bash' .ci tests)
.PHONY: help demo test faults check-history bench lint chart fmt crds tools control-plane image cluster cluster-down e2e

help: ## Show the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## /  make \1\t/p' Makefile | expand -t 22

demo: tools control-plane ## Watch the main job on a real Kubernetes and a real Redis; LEASEHOLD_DEMO=node|control-plane chooses; KEEP=1 keeps it
	@KEEP='$(KEEP)' LEASEHOLD_DEMO='$(LEASEHOLD_DEMO)' tests/demo/run

test: tools control-plane ## Run all tests
	cargo test --locked -- --skip failpoints::
	@echo 'Now the controller is killed, and overtaken, at each of its writes: some minutes.'
	cargo test --locked --test integration failpoints:: -- --nocapture

faults: tools control-plane ## Break everything, one fault a row, under contention; LEASEHOLD_SEED and LEASEHOLD_FAULTS choose
	@LEASEHOLD_SEED="$${LEASEHOLD_SEED:-$$(date +%s)}" \
	  cargo test --locked --test integration faults::campaign::all_faults -- --ignored --nocapture

check-history: ## Judge a history that a failed run has kept: FILE=...
	@LEASEHOLD_HISTORY='$(FILE)' cargo test --quiet --locked --test integration faults::check_saved -- --ignored --nocapture

bench: tools control-plane ## Measure against the raw floors of the same Redis
	cargo bench --locked

lint: ## Check format, lints, licences, layers, scripts, and that crds/ and docs/api.md are up to date
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	@command -v cargo-deny >/dev/null || { echo 'Installing cargo-deny (some minutes, once).'; cargo install --locked cargo-deny; }
	RUSTDOCFLAGS='-D warnings' cargo doc --quiet --locked --no-deps --lib
	cargo deny --locked check bans licenses sources
	cargo test --quiet --locked --test integration layering::
	@for script in $(SCRIPTS); do bash -n "$$script"; done
	@! command -v shellcheck >/dev/null || shellcheck --external-sources --source-path=SCRIPTDIR $(SCRIPTS)
	@! command -v gofmt >/dev/null || { files=$$(gofmt -l tests/cluster) && test -z "$$files" || { echo "gofmt -w $$files"; exit 1; }; }
	@new=$$(mktemp -d) && trap 'rm -rf "$$new"' EXIT && cargo run --quiet --locked -- crd --out "$$new/crds" --reference "$$new/api.md" \
	  && { diff -r crds "$$new/crds" && diff docs/api.md "$$new/api.md" \
	    || { echo 'crds/ or docs/api.md is not what the code says: make crds' >&2; exit 1; }; }
	@diff -r crds charts/leasehold/files/crds || { echo 'the chart has other definitions: make crds' >&2; exit 1; }

fmt: ## Format the code
	cargo fmt
	@! command -v gofmt >/dev/null || gofmt -w tests/cluster

chart: ## Lint and test the chart, against the schemas too (its tools are built once, which takes some minutes)
	@tests/chart/run

crds: ## Generate crds/ and docs/api.md from the code, and the chart's copy of crds/
	cargo run --quiet --locked -- crd --out crds --reference docs/api.md
	cp crds/*.yaml charts/leasehold/files/crds/

tools: ## Install what the tests need, or name it
	@tests/cluster/tools.sh

image: ## Make the image without Docker: leasehold.tar
	@tests/cluster/node/leasehold-image.sh leasehold.tar

cluster: ## Start a Kubernetes of one node, with a real kubelet; needs root on Linux
	@tests/cluster/node/up.sh

cluster-down: ## End it, and leave nothing
	@tests/cluster/node/down.sh

e2e: tools ## Install the chart on a Kubernetes of one node, break things, and upgrade; needs root on Linux
	@tests/e2e/run

control-plane: ## Build the control plane of the tests (minutes, once)
	@test -x "$${KUBEBUILDER_ASSETS:-}/kube-controller-manager" || tests/cluster/build.sh >/dev/null
