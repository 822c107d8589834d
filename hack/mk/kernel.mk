# SPDX-License-Identifier: Apache-2.0
# The kernel module, for Debian's cloud kernel of a series, and its tests in a guest.

# Series of the kernel; the module is built for it and the guest boots it.
KERNEL ?= 6.1
# Memory of the guest in MiB, and its virtual CPUs.
RAM ?= 2048
CPUS ?= 2
# Words for the command line of the guest's kernel, in test-truth and test-restore.
APPEND ?=
# Not empty: only one dump and its judges.
SHORT ?=

.PHONY: kmod kmod-test kmod-instrumented kmod-check test-kernel test-vmcore test-harness judge-tools host-packages
host-packages: ## Install the Debian packages that build and tests need
	@hack/install-host-packages

kmod: ## Build the module for KERNEL (bin/kmod/<release>/livedump.ko)
	@hack/build-kmod $(KERNEL) kmod bin/kmod

# Test-only modules.
kmod-test:
	@hack/build-kmod $(KERNEL) kmod/test bin/kmod-test

# The module with the tests' own instruments in it; never to be shipped.
kmod-instrumented:
	@hack/build-kmod --test $(KERNEL) kmod bin/kmod-instrumented

kmod-check: ## Build the modules with W=1 and sparse; any warning is an error
	@hack/build-kmod --check $(KERNEL) kmod bin/kmod
	@hack/build-kmod --check --test $(KERNEL) kmod bin/kmod-instrumented
	@hack/build-kmod --check $(KERNEL) kmod/test bin/kmod-test
	@echo "kmod-check: no warnings on kernel $(KERNEL)"

test-kernel: kmod kmod-test build-agent ## Dump a guest of KERNEL with RAM MiB and CPUS without Kubernetes, judge the dump (out/kernel)
	@CGO_ENABLED=0 go build -trimpath -o bin/workload ./test/workload
	@go run ./test/kernel -kernel $(KERNEL) -ram $(RAM) -cpus $(CPUS) -out out/kernel $(if $(SHORT),-short)

# The guests' loads, for the tests that want one.
.PHONY: build-load
build-load:
	@CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o bin/load ./test/load

# Dumps that test-pivot takes (test-truth takes one under each load, or as many as are asked for), and what it leaves unprotected to see itself fail (vmalloc, modules, image).
DUMPS ?= 50
SPOIL ?=
.PHONY: test-pivot
test-pivot: kmod kmod-test $(if $(SPOIL),kmod-instrumented) build-agent build-load ## Check that no dump of DUMPS has an effect without its cause (out/pivot.json)
	@go run ./test/pivot -kernel $(KERNEL) -dumps $(DUMPS) $(if $(SPOIL),-spoil $(SPOIL)) $(if $(filter command line environment,$(origin RAM)),-ram $(RAM)) -cpus $(CPUS)

# Sessions that test-restore holds in a row.
ROW ?= 100
.PHONY: build-driver test-restore
build-driver:
	@CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o bin/driver ./test/faults/driver

test-restore: kmod kmod-test build-driver build-load ## Check that nothing stays behind however a session ends, nor after ROW of them (out/restore.json)
	@go run ./test/restore -kernel $(KERNEL) -row $(ROW) -append '$(APPEND)' $(if $(filter command line environment,$(origin RAM)),-ram $(RAM)) -cpus $(CPUS)

.PHONY: bench-slowdown
bench-slowdown: kmod build-driver ## Measure fixed work before, during and after a freeze (out/slowdown.json)
	@CGO_ENABLED=0 go build -trimpath -o bin/work ./test/slowdown/work
	@go run ./test/slowdown -kernel $(KERNEL) $(if $(filter command line environment,$(origin RAM)),-ram $(RAM))

# A guest of 2 nodes; a minute or two of which is booting.
.PHONY: test-reserve bench-faults
test-reserve: kmod kmod-instrumented kmod-test build-driver ## Test reserve, dry run, sysfs and trace events in a guest (out/test-reserve)
	@go run ./test/reserve -kernel $(KERNEL) -ram $(RAM) -cpus $(CPUS) -out out

bench-faults: kmod kmod-instrumented kmod-test build-driver ## Measure what a fault costs, by kind (out/bench-faults.json)
	@go run ./test/reserve -bench -kernel $(KERNEL) -ram $(RAM) -cpus $(CPUS) -out out

# The checks that judge others must be able to fail.
test-harness: ## Test the guest package and the judges themselves
	@hack/install-host-packages busybox-static
	@go vet ./test/guest/... ./test/judge/... ./test/kernel/...
	@go test ./test/guest/... ./test/judge/... ./test/kernel/...

# Chroots with crash and drgn, and the kernel's debug information; some minutes on first use.
judge-tools:
	@go run ./test/judge/cmd/prepare -kernel $(KERNEL)

# crash reads for some minutes in a guest without hardware support; SHORT=1 leaves it out.
test-vmcore: kmod kmod-test build-agent ## Run makedumpfile, crash, drgn and cp on /dev/livedump-vmcore in a guest of KERNEL while it is frozen (out/vmcore)
	@CGO_ENABLED=0 go build -trimpath -o bin/workload ./test/workload
	@go run ./test/vmcore -kernel $(KERNEL) -ram $(RAM) -cpus $(CPUS) -out out/vmcore $(if $(SHORT),-short)
