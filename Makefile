.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

# As many digits of the commit in every clone: git's own choice depends on how much the clone holds.
VERSION ?= $(or $(shell git describe --tags --always --dirty --abbrev=12 2>/dev/null),dev)
# How long `make fuzz` spends on each target, and `make simulate` and `make chaos` in all.
TIME ?= $(if $(filter chaos,$(MAKECMDGOALS)),10m,$(if $(filter simulate,$(MAKECMDGOALS)),60s,30s))
# Of `make simulate`: the world to replay, or how many pod lives to run in place of TIME. Of `make chaos`: its rounds' seed.
SEED ?=
LIVES ?=
# Of `make crash`: short, or empty for every effect.
CRASH ?=
# Flags of `make bench`: -short, -record, -rows REGEXP; see `bin/bench -h`.
BENCH ?=
# Flags of `make demo`: --keep, --no-kubelet; see `bin/demo -h`.
DEMO ?=
# How many of the planted bugs `make planted` tries, beginning with another one every day; empty for all.
BUGS ?=

# Programs that cost minutes to build are kept here, outside the checkout.
export LEASEHOLD_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/leasehold

LINT_MODULE := test/tools/lint
LINTER := $(LEASEHOLD_CACHE)/lint-$(shell sha256sum $(LINT_MODULE)/go.sum | cut -c1-16)/golangci-lint
# The test tools with code of their own; the other modules only pin servers.
TOOL_MODULES := $(sort $(patsubst %/,%,$(dir $(foreach go_mod,$(wildcard test/tools/*/go.mod),\
	$(if $(wildcard $(dir $(go_mod))*.go $(dir $(go_mod))*/*.go),$(go_mod))))))

BUILD = CGO_ENABLED=0 go build -trimpath -ldflags '-s -w -X main.version=$(VERSION)'

.PHONY: help
help: ## Print this help
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build bin/leasehold, a static binary
	$(BUILD) -o bin/leasehold ./cmd/leasehold

.PHONY: test
test: ## Vet and unit tests: no root, no network but loopback; -race when there is a C compiler
	go vet ./...
	@if [ "$$(go env CGO_ENABLED)" = 1 ]; then race=-race; else race=; \
		echo 'make test: no C compiler, so the tests run without the race detector' >&2; fi; \
	echo go test $$race ./...; go test $$race ./...

# -count=1: test/tools/manifests reads files outside of its module, which Go's cache of results does not see changing.
.PHONY: test-tools
test-tools: ## Unit tests of the test tools, and of the chart and the kustomizations
	@for module in $(TOOL_MODULES); do echo "go test -C $$module -count=1 ./..."; go test -C $$module -count=1 ./...; done

.PHONY: page
page: ## The provider's page in headless Chromium; pictures of it go to out/page
	go test -C test/tools/page -tags e2e -count=1 -v .

.PHONY: lint
lint: $(LINTER) ## golangci-lint, and whether go.mod is tidy and complete
	@for module in . $(TOOL_MODULES); do echo "golangci-lint: $$module"; \
		(cd $$module && $(LINTER) run --config '$(CURDIR)/.golangci.yml' ./...); done
	@go mod tidy -diff || { echo 'make lint: go.mod or go.sum is not tidy: run go mod tidy' >&2; exit 1; }
	@go list -m all >/dev/null || { echo 'make lint: go list -m all fails: a required module cannot be had' >&2; exit 1; }

$(LINTER):
	@echo 'building golangci-lint, about a minute, once'
	@mkdir -p $(@D)
	@go build -C $(LINT_MODULE) -trimpath -o $@.$$$$ github.com/golangci/golangci-lint/v2/cmd/golangci-lint && mv $@.$$$$ $@

.PHONY: demo
demo: ## Show the whole story on real parts: mount, use, republish, pod gone, credentials gone; needs Go, PostgreSQL shows more
	@begun=$$(date +%s); echo 'building bin/demo'; go build -o bin/demo ./test/demo; bin/demo --begun=$$begun $(DEMO)

.PHONY: e2e-fast
e2e-fast: ## End-to-end tests on the light bed: real API server, Vault and PostgreSQL, no kubelet, no root
	go test -tags e2e -count=1 ./test/prometheus
	BED=light go test -tags e2e -count=1 -v -timeout 30m -run '^TestEndToEnd$$' ./test/e2e

.PHONY: e2e
e2e: ## End-to-end tests on the full bed: kubelet, containerd and the real driver as well; root
	BED=full go test -tags e2e -count=1 -v -timeout 60m -run '^TestEndToEnd$$' ./test/e2e

.PHONY: crash
crash: ## Kill the provider before and after each of its effects, on the light bed; CRASH=short tries every fifth
	CRASH='$(CRASH)' go test -tags e2e -count=1 -v -timeout 90m ./test/crash | grep --line-buffered -v '^=== \|--- PASS.*killed/'

.PHONY: chaos
chaos: ## Stop and kill parts of the full bed for TIME (default 10m) under pods that use their credentials; root
	CHAOS_TIME='$(TIME)' CHAOS_SEED='$(SEED)' BED=full go test -tags e2e -count=1 -v -timeout 0 -run '^TestChaos$$' ./test/e2e

.PHONY: night
night: ## A bad night on the full bed, watched by Prometheus: what is seen goes to docs/night; half an hour; root
	BED=full NIGHT_OUT=$(CURDIR)/docs/night go test -tags e2e -count=1 -v -timeout 3h -run '^TestBadNight$$' ./test/e2e

.PHONY: bench
bench: ## Measure against bare requests to Vault, on the light bed and, for ends of pods, the full one; BENCH='-short' counts only
	@go build -o bin/bench ./test/bench
	@bin/bench $(BENCH)

.PHONY: simulate
simulate: ## Pod lives on virtual time, everything failing, for TIME (default 60s) or LIVES lives; SEED=n replays a world
	@SIMULATE_SEED='$(SEED)' SIMULATE_LIVES='$(LIVES)' SIMULATE_TIME='$(TIME)' \
		go test -count=1 -timeout 0 -run '^TestSimulate$$' -v ./test/simulate | grep --line-buffered -v '^=== \|^    --- \|^        --- '

.PHONY: planted
planted: ## Bugs planted into a copy of the code, one at a time; the simulation must find each: BUGS=n tries n of them
	@go run ./test/simulate/planted -n '$(BUGS)'

.PHONY: fuzz
fuzz: ## Run every fuzz target for TIME each (default 30s)
	@grep -roH --include='*_test.go' --exclude-dir=tools '^func Fuzz[A-Za-z0-9_]*' . | \
	while IFS=: read -r file func; do \
		echo "$${func#func } in $${file%/*}"; \
		go test -run '^$$' -fuzz "^$${func#func }\$$" -fuzztime $(TIME) -fuzzminimizetime 5s "$${file%/*}" </dev/null; \
	done

# Same commit, same Go release, same bytes: whatever else of the machine could change them is set here.
images: export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null)
images: export GOFLAGS = -buildvcs=false
images: export GOWORK = off
images: export GOAMD64 = v1
images: export GOARM64 = v8.0
images: REVISION = $(shell git rev-parse HEAD 2>/dev/null)
.PHONY: images
images: ## Write the provider's image, linux/amd64 and linux/arm64, to out/leasehold.tar (OCI archive), and its SBOM
	@for arch in amd64 arm64; do \
		echo "building for $$arch"; GOOS=linux GOARCH=$$arch $(BUILD) -o out/leasehold-$$arch ./cmd/leasehold; done
	@go run -C test/tools/image . -o $(CURDIR)/out/leasehold.tar -sbom $(CURDIR)/out/leasehold.spdx.json \
		-tag leasehold:dev -arch amd64,arm64 -entrypoint /leasehold -ca -file '$(CURDIR)/out/leasehold-{arch}=/leasehold' \
		-label title=leasehold -label version=$(VERSION) $(if $(REVISION),-label revision=$(REVISION)) \
		-label 'description=A Vault provider for the Secrets Store CSI driver that gives every lease back' \
		-label source=https://github.com/leasehold-csi/leasehold -label licenses=Apache-2.0

.PHONY: reproduce
reproduce: ## Make the image of the last commit in two checkouts and compare them byte by byte
	go test -C test/tools/image -tags e2e -count=1 -v -timeout 60m -run '^TestSameCommitSameImage$$' .
