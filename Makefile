# Go and make are all that is needed. `make help` lists the targets.
GO      ?= go
BIN     := bin/kiloraft
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
# The exact version that checks: fetched by `make check` through the module proxy, never part of go.mod.
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2

.PHONY: help build demo sim mutants test test-race test-full check fix soak bench clean
.DEFAULT_GOAL := build

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## bin/kiloraft
	$(GO) build -trimpath -ldflags "-X main.version=$(VERSION)" -o $(BIN) ./cmd/kiloraft

demo: build ## three node processes with 1,000 shards on this machine; ^C stops them
	$(BIN) demo

test: build ## vet, gofmt and all tests; needs Go alone
	@bad=$$(gofmt -l .); [ -z "$$bad" ] || { echo "gofmt would change:"; echo "$$bad"; exit 1; }
	$(GO) vet ./...
	$(GO) test -timeout 15m ./...

# Not under the race detector: real processes (e2e), and what runs in a single goroutine by design (engine, simrt, sim).
test-race: ## all that has goroutines, under the race detector
	$(GO) test -race -short -timeout 20m $$($(GO) list ./... | grep -vE '/(engine|e2e|simrt|sim)$$')

# What needs more than Go: the programs of Redis. `.ci/run` installs them.
test-full: test test-race check ## everything, also what needs other programs
	KILORAFT_TEST_REDIS=1 $(GO) test -count=1 -timeout 20m ./internal/resp
	KILORAFT_TEST_PROM=1 $(GO) test -count=1 -run TestRulesWithPromtool ./node

check: ## gofmt, vet, staticcheck; never writes
	@bad=$$(gofmt -l .); [ -z "$$bad" ] || { echo "gofmt would change:"; echo "$$bad"; exit 1; }
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...

fix: ## formats and tidies
	gofmt -w .
	$(GO) mod tidy

SEEDS ?= 1-100
sim: ## the data plane under simulated faults: make sim SEEDS="1 2 7-9"
	$(GO) test -count=1 -timeout 0 -run '^TestSeeds$$' -v ./internal/sim -args -sim.seeds="$(SEEDS)"

mutants: ## known bugs, put in one after the other: the tests must catch each
	$(GO) test -count=1 -timeout 0 -run '^TestMutants$$' -v ./internal/sim -args -sim.mutants=.

soak: ## the long forms of the end-to-end tests; hours
	KILORAFT_E2E=full $(GO) test -count=1 -timeout 0 ./internal/e2e/...

bench: ## Go benchmarks of each layer, with allocation counts
	$(GO) test -run '^$$' -bench . -benchmem ./...

clean: ## removes what the build made
	rm -rf bin
