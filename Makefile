# Go and make are all that is needed. `make help` lists the targets.
GO      ?= go
BIN     := bin/kiloraft
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
# The exact version that checks: fetched by `make check` through the module proxy, never part of go.mod.
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2

.PHONY: help build demo sim explore mutants fuzz test test-race test-full check fix soak bench bench-compare bench-sustained bench-limits bench-peers bench-scale release deb docker console-shots clean
.DEFAULT_GOAL := build

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

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
	KILORAFT_TEST_PROM=1 $(GO) test -count=1 -run 'TestRulesWithPromtool|TestOnPrometheus' ./node
	KILORAFT_TEST_BROWSER=1 $(GO) test -count=1 -run TestConsole ./node

console-shots: ## takes the pictures of the console in docs/img anew, with Chromium
	@rm -rf bin/shots && mkdir -p bin/shots
	KILORAFT_TEST_BROWSER=1 KILORAFT_SCREENSHOTS=$(CURDIR)/bin/shots $(GO) test -count=1 -run TestConsoleInBrowser ./node
	cd docs/img && for f in console-*.png; do cp ../../bin/shots/$$f $$f; done

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

# Each round takes other seeds; it ends at the first failure, which says how to replay it, or with ^C.
soak: ## everything random, round after round, as long as one likes
	@round=$$(date +%s); while :; do round=$$((round+1)); echo "round $$round"; \
	$(GO) test -count=1 -timeout 0 -run '^TestSeeds$$' ./internal/sim -args -sim.seeds="$$((round*100))-$$((round*100+99))" || exit 1; \
	$(GO) test -count=1 -timeout 0 -run '^TestCrashPoints$$' ./scheduler/simrt -args -crash.all -crash.seed=$$round || exit 1; \
	$(GO) test -count=1 -timeout 0 -run '^TestReshapeSoak$$' ./scheduler/simrt -args -soak.seed=$$round || exit 1; \
	$(GO) test -count=1 -timeout 0 -run 'Crash|Random|Conformance' ./store/... || exit 1; \
	KILORAFT_E2E=full $(GO) test -count=1 -timeout 0 ./internal/e2e/... || exit 1; \
	done

EXPLORE ?= 2100000
explore: ## the engine through all interleavings, over ten million states: some half an hour
	$(GO) test -count=1 -timeout 0 -run '^TestExplore$$' -v ./engine -args -explore.states=$(EXPLORE) -explore.depth=24

mutants: ## known bugs, put in one after the other: the tests must catch each
	$(GO) test -count=1 -timeout 0 -run '^TestMutants$$' -v ./internal/sim -args -sim.mutants=.

FUZZTIME ?= 20s
fuzz: ## every decoder, each for FUZZTIME; what fails is kept as a seed in testdata/fuzz
	@$(GO) list -f '{{$$p := .ImportPath}}{{$$d := .Dir}}{{range .TestGoFiles}}{{$$p}} {{$$d}}/{{.}}{{"\n"}}{{end}}{{range .XTestGoFiles}}{{$$p}} {{$$d}}/{{.}}{{"\n"}}{{end}}' ./... | while read pkg file; do \
		for f in $$(sed -n 's/^func \(Fuzz[A-Za-z]*\)(.*/\1/p' "$$file"); do \
			echo "$$pkg $$f"; \
			$(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) "$$pkg" || exit 1; \
		done; \
	done

OUT ?= dist/bench.json
bench: build ## Go benchmarks with allocation counts and loads on a cluster of three processes: make bench OUT=new.json
	$(GO) run ./internal/bench/guard run -bin $(BIN) -version "$(VERSION)" -o $(OUT)

bench-compare: ## ratios of two results of make bench, and what got worse: make bench-compare OLD=old.json NEW=new.json
	$(GO) run ./internal/bench/guard compare $(OLD) $(NEW)

SUSTAINED ?=
bench-sustained: build ## ten minutes of writes to ten million keys: throughput, memory, log and state over time, recovery at the end
	$(GO) run ./internal/bench/guard sustained -bin $(BIN) -version "$(VERSION)" $(SUSTAINED)

LIMITS ?=
bench-limits: build ## a hot shard beside many, and twice the load that the cluster can take
	$(GO) run ./internal/bench/guard limits -bin $(BIN) -version "$(VERSION)" $(LIMITS)

PEERS ?=
bench-peers: build ## kiloraft, dragonboat and etcd side by side, clients in the nodes; a module of its own: make bench-peers PEERS="-shards 48 -rounds 1"
	cd benchpeers && $(GO) build -o ../bin/benchpeers . && ../bin/benchpeers -bin ../bin/kiloraft $(PEERS)

SCALE ?= 10,100,1000,10000,50000
bench-scale: build ## start, memory, idle CPU and cost of a write by the number of shards, and docs/img/shards.svg: some 12 minutes
	mkdir -p dist && cd benchpeers && $(GO) build -o ../bin/benchpeers . && ../bin/benchpeers -bin ../bin/kiloraft -peers kiloraft-tcp -shards $(SCALE) \
		-rounds 1 -settle 75s -idle 30s -rows write:1024 -timeout 15m -o ../dist/shards.json $(PEERS) && ../bin/benchpeers plot ../dist/shards.json ../docs/img/shards.svg

# The tool that lists what a binary is made of, at an exact version; fetched through the module proxy, never part of go.mod.
CYCLONEDX := github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0
PLATFORMS := linux/amd64 linux/arm64 darwin/amd64 darwin/arm64

release: ## dist/: static binaries, a list of their parts (SBOM) and checksums
	rm -rf dist && mkdir -p dist
	for p in $(PLATFORMS); do \
		CGO_ENABLED=0 GOOS=$${p%/*} GOARCH=$${p#*/} $(GO) build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" \
			-o dist/kiloraft-$${p%/*}-$${p#*/} ./cmd/kiloraft || exit 1; done
	$(GO) run $(CYCLONEDX) bin -json -licenses -version "$(VERSION)" -output dist/kiloraft.cdx.json dist/kiloraft-linux-amd64
	cd dist && sha256sum * > SHA256SUMS

deb: ## dist/*.deb for this machine's architecture: unit, man pages, completions; needs dpkg-deb
	mkdir -p dist
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o dist/kiloraft-linux-$$(dpkg --print-architecture) ./cmd/kiloraft
	deploy/deb/build.sh dist/kiloraft-linux-$$(dpkg --print-architecture) $$(dpkg --print-architecture) "$(VERSION)" dist

docker: ## the image kiloraft:latest for this machine's architecture; needs docker, no base image
	mkdir -p dist/docker/empty
	CGO_ENABLED=0 GOOS=linux $(GO) build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o dist/docker/kiloraft-linux-$$($(GO) env GOARCH) ./cmd/kiloraft
	docker build --build-arg TARGETARCH=$$($(GO) env GOARCH) -f deploy/docker/Dockerfile -t kiloraft:latest dist/docker

clean: ## removes what the build made
	rm -rf bin dist
