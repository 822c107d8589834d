# SPDX-License-Identifier: Apache-2.0
# The livedump program, and the format of dumps.

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)

.PHONY: build-cli fuzz
build-cli: ## Build bin/livedump (inspect, verify, convert, receive, decrypt, dmesg, fetch) and the kubectl plugin
	@CGO_ENABLED=0 go build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/livedump ./cmd/livedump
	@ln -sfn livedump bin/kubectl-livedump

# How long each fuzz target runs, and which; all if it is empty.
FUZZTIME ?= 60s
FUZZ ?=
fuzz: ## Feed every parser with garbage, each for FUZZTIME (or only the target FUZZ)
	@hack/fuzz $(FUZZTIME) $(FUZZ)

# The readers of KERNEL's dumps on memory that QEMU dumped, without the module.
.PHONY: test-format
test-format: host-packages ## Check with crash and drgn that dumps are what their readers expect
	@go run ./test/format -kernel $(KERNEL)

# Natively, on two CPUs: run it on a machine that does nothing else.
.PHONY: bench-write
bench-write: host-packages build-cli ## Measure the writer against makedumpfile and direct I/O (out/bench-write.json)
	@CGO_ENABLED=0 go build -trimpath -o bin/test/ ./test/writebench
	@bin/test/writebench -kernel $(KERNEL)

.PHONY: bench-guest-write
bench-guest-write: kmod kmod-test build-agent build-load ## Measure whole dumps in a guest against dd oflag=direct, and the reserve they take (out/bench-guest-write.json)
	@go run ./test/guestwrite -kernel $(KERNEL) -ram $(RAM) -cpus $(CPUS)
