# SPDX-License-Identifier: Apache-2.0
# Dumps against the ground truth: a hash of every page, taken inside the stop.

# Loads to dump under, one after the other: names of `load list`, a+b for several at once, hidden (memory that no
# dump may touch), code (a module loaded while memory is frozen), ring (memory of the kernel mapped and
# written by a program then), idle, or all.
LOAD ?= fork,slab
# Ranges to leave uncovered on purpose, to see that it is noticed: vmalloc, modules, image, vmemmap; and inflight, under limit; outside, under vmalloc.
BITE ?=
# Point at which the process that makes a dump is killed, for another to go on with it: Acknowledged, Thawed, ...
KILL ?=
# Not empty: have crash and drgn judge a dump by the module as it is shipped, too.
SHIPPED ?=
# 1: an IOMMU translates for the network devices of the loads vmxnet3, e1000e and virtio-net. The first two need it: what
# such devices write is not known without one.
IOMMU ?=
# Dump level, makedumpfile's bits.
LEVEL ?= 31

.PHONY: test-truth
test-truth: $(if $(SHIPPED),judge-tools) kmod kmod-instrumented kmod-test build-agent build-load ## Compare dumps of KERNEL under LOAD with hashes of the stop (out/truth.json); BITE=vmemmap spoils it
	@CGO_ENABLED=0 go build -trimpath -o bin/test/truth ./test/truth
	@CGO_ENABLED=0 go build -trimpath -o bin/test/ ./test/truth/hidden ./test/truth/ring
	@bin/test/truth -kernel $(KERNEL) -ram $(RAM) -cpus $(CPUS) -load '$(LOAD)' $(if $(filter 1,$(IOMMU)),-iommu) -bite '$(BITE)' -dumps $(if $(filter command line environment,$(origin DUMPS)),$(DUMPS),1) -dump-level $(LEVEL) -kill '$(KILL)' -append '$(APPEND)' $(if $(SHIPPED),-shipped) -out out/truth
