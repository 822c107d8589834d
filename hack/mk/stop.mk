# SPDX-License-Identifier: Apache-2.0
# The stop: stuck CPUs, and how long it takes.

.PHONY: test-stuck
test-stuck: kmod-instrumented kmod-test build-agent ## Dump a guest of KERNEL with stuck CPUs, and with one that does not answer (out/stuck)
	@go run ./test/stuck -kernel $(KERNEL) $(if $(filter command line environment,$(origin RAM)),-ram $(RAM)) -cpus $(if $(filter 2,$(CPUS)),4,$(CPUS)) -out out/stuck

# Not empty: 2 CPUs, idle, 2, 8 and 16 GiB only.
BENCH_SHORT ?=

.PHONY: bench-freeze
bench-freeze: kmod-instrumented ## Measure the stop by level and eager, 2 to 16 GiB (out/bench-freeze.json and .svg)
	@CGO_ENABLED=0 go build -trimpath -o bin/freezes ./test/freeze/freezes
	@CGO_ENABLED=0 go build -trimpath -o bin/workload ./test/workload
	@go run ./test/freeze -kernel $(KERNEL) $(if $(BENCH_SHORT),-short)
