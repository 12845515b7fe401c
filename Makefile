# banger: see `make help`. Works as root and as an ordinary user with sudo, from a
# path with spaces, and twice in a row. GNU make 4.3 or newer.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules --no-print-directory

# The go command; empty when there is none that is new enough. An empty one from
# outside counts as none: make settles what a recipe exports before its first line,
# so the make that `make run` starts gets the one from before Go was installed.
ifeq ($(GO),)
GO = $(shell scripts/find-go)
endif
export GO

# Tests of whole programs are built with this tag.
E2E_TAGS := e2e
# Tests that run in the lab with this one.
LAB_TAGS := lab
# And unit tests with this one: breaking the lock order is then a panic.
UNIT_TAGS := lockcheck
# How long each fuzz test runs, and which benchmark: make fuzz FUZZTIME=1m, make bench ONLY=name
FUZZTIME ?= 10s
ONLY ?=
export FUZZTIME

sources := $(wildcard cmd internal kernels test bench)
scripts := .ci/run kernels/build $(wildcard scripts/*)

.DEFAULT_GOAL := build

.PHONY: help
help: ## show this
	@awk -F ':.*## ' '/^[a-z][a-zA-Z0-9_-]*:.*## / { printf "  %-12s %s\n", $$1, $$2 }' Makefile

.PHONY: go-found
go-found:
	@[ -n "$(GO)" ] || { echo "error: no Go $$(sed -n 's/^go //p' go.mod) or newer found. Run scripts/bootstrap build, which fetches it, or install it: https://go.dev/doc/install" >&2; exit 1; }

.PHONY: build
build: go-found ## build banger, bangerd and banger-agent into bin/
	@mkdir -p bin
	@flags=$$(scripts/ldflags); \
	export CGO_ENABLED=0; \
	"$(GO)" build -buildvcs=false -trimpath -ldflags "$$flags" -o bin/ ./cmd/banger ./cmd/bangerd; \
	"$(GO)" build -buildvcs=false -trimpath -ldflags "$$flags -s -w" -o bin/ ./cmd/banger-agent

.PHONY: run
run: ## install what is missing, build, and run the example repository's tests in a sandbox
	@scripts/bootstrap run
	@$(MAKE) build
	@scripts/run-example

.PHONY: test
test: ## run all tests, those with real VMs too (installs what they need)
	@scripts/bootstrap test
	@$(MAKE) build
	@scripts/cli-docs --check
	@$(MAKE) test-unit test-sweep test-script test-e2e

.PHONY: test-unit
test-unit: go-found ## unit tests, with the race detector; of the sweeps of faults a part
	SWEEP_SAMPLE=$${SWEEP_SAMPLE:-$$RANDOM/10} CGO_ENABLED=1 "$(GO)" test -race -tags "$(UNIT_TAGS)" -timeout 15m -skip TestSweepOnHost ./internal/... ./cmd/... ./bench/... ./kernels/...

.PHONY: test-sweep
test-sweep: go-found ## every fault at every step, also with a daemon that is a process and the host's own devices
	CGO_ENABLED=0 "$(GO)" test -tags "$(UNIT_TAGS)" -timeout 15m -run 'TestSweep|AtEvery' ./internal/daemon ./internal/daemon/vm ./internal/daemon/imagemgr

.PHONY: test-script
test-script: build ## scripted tests of the real programs on a fake hypervisor
	BANGER_TEST_BIN="$$PWD/bin" "$(GO)" test -timeout 10m ./test/script/...

.PHONY: bin/e2e.test
bin/e2e.test: go-found
	@mkdir -p bin
	CGO_ENABLED=0 "$(GO)" test -c -trimpath -tags "$(E2E_TAGS)" -o bin/e2e.test ./test/e2e

.PHONY: test-e2e
test-e2e: build bin/e2e.test ## tests with real VMs, as root and as an ordinary user
	scripts/e2e root
	scripts/e2e user

.PHONY: test-images-full
test-images-full: ## 200 pulls that are killed and cut off, inits of all kinds, the largest images: half an hour, and 30 GB
	@scripts/bootstrap test
	@$(MAKE) build bin/e2e.test
	BANGER_TEST_PULL_KILLS=$${BANGER_TEST_PULL_KILLS:-200} CGO_ENABLED=0 "$(GO)" test -count 1 -timeout 60m -v -run TestKillsOfPulls ./internal/daemon/imagemgr
	E2E_FULL=1 E2E_TIMEOUT=60m scripts/e2e root -test.run '^TestImages(WithInit|Large)$$'

.PHONY: lab
lab: build ## a shell in the lab: a host with KVM and device-mapper, itself a VM
	@scripts/bootstrap run
	scripts/lab shell

# Packages whose tests want more of their host than most have.
LAB_PACKAGES := daemon daemon/dmsnap daemon/rootdisk daemon/resolved daemon/fcproc

.PHONY: bin/lab
bin/lab: go-found
	@mkdir -p bin/lab
	CGO_ENABLED=0 "$(GO)" test -c -trimpath -o bin/lab/ $(LAB_PACKAGES:%=./internal/%)
	CGO_ENABLED=0 "$(GO)" build -trimpath -o bin/lab/ ./bench

.PHONY: test-lab
test-lab: ## tests that need such a host, run in the lab: a part that fits into a run for each change
	@scripts/bootstrap test
	@$(MAKE) build bin/e2e.test bin/lab
	scripts/lab test

.PHONY: test-lab-full
test-lab-full: ## all of them; takes hours where KVM is emulated
	@scripts/bootstrap test
	@$(MAKE) build bin/e2e.test bin/lab
	LAB_FULL=1 LAB_POWER_CUTS=20 LAB_TIMEOUT=6h scripts/lab test

.PHONY: lint
lint: go-found ## formatting, vet, staticcheck, rules of the project, shell scripts
	@unformatted=$$("$$("$(GO)" env GOROOT)/bin/gofmt" -l $(sources)); \
	[ -z "$$unformatted" ] || { printf 'error: not formatted (run gofmt -w on them):\n%s\n' "$$unformatted" >&2; exit 1; }
	"$(GO)" vet ./...
	"$(GO)" vet -tags "$(E2E_TAGS) $(UNIT_TAGS) $(LAB_TAGS)" ./internal/daemon ./test/...
	"$(GO)" test ./internal/archtest
	"$(GO)" tool -modfile=tools/go.mod staticcheck -tags "$(E2E_TAGS),$(LAB_TAGS)" ./...
	@if command -v shellcheck >/dev/null; then shellcheck -x $(scripts); else echo 'shellcheck is not installed: scripts were not checked' >&2; fi

.PHONY: bench
bench: build ## measure, each figure beside its floor: make bench ONLY=name
	BANGER_E2E_BIN="$$PWD/bin" "$(GO)" run ./bench -only "$(ONLY)"

.PHONY: bench-lab
bench-lab: ## measure, in the lab, what needs KVM or root
	@scripts/bootstrap test
	@$(MAKE) build bin/e2e.test bin/lab
	LAB_FULL=1 LAB_TIMEOUT=90m scripts/lab test -run TestBench

.PHONY: fuzz
fuzz: go-found ## run every fuzz test for FUZZTIME
	scripts/fuzz

.PHONY: gen
gen: ## generate the Connect code from the schema
	@scripts/bootstrap gen
	@$(MAKE) gen-code

.PHONY: gen-code
gen-code: go-found
	@mkdir -p bin/gen
	"$(GO)" build -o bin/gen/ google.golang.org/protobuf/cmd/protoc-gen-go connectrpc.com/connect/cmd/protoc-gen-connect-go
	PATH="$$PWD/bin/gen:$$PATH" protoc -I internal/api --go_out=. --go_opt=module=banger --connect-go_out=. --connect-go_opt=module=banger bangerv1/banger.proto

.PHONY: docs
docs: build ## write the reference of the commands, docs/cli.md
	scripts/cli-docs > docs/cli.md.new
	@mv docs/cli.md.new docs/cli.md

# The kernel that `make kernel` builds, and what signs it: make kernel-bundle SIGN=minisign.key
KERNEL_NAME ?= small
KERNEL_CONFIG ?= kernels/small.config
SIGN ?=

.PHONY: kernel
kernel: ## build a small kernel from Debian's linux-source into bin/kernel
	kernels/build --config "$(KERNEL_CONFIG)" bin/kernel

.PHONY: kernel-bundle
kernel-bundle: go-found ## pack bin/kernel, from make kernel, as a bundle; sign it with SIGN=KEYFILE
	"$(GO)" run ./kernels/pack -kind kernel -name "$(KERNEL_NAME)" bin/kernel "bin/$(KERNEL_NAME).tar.zst"
	@if [ -n "$(SIGN)" ]; then "$(GO)" run aead.dev/minisign/cmd/minisign -S -s "$(SIGN)" -m "bin/$(KERNEL_NAME).tar.zst"; fi

.PHONY: clean
clean: ## remove what was built
	rm -rf bin bench/results.json
