# SPDX-License-Identifier: Apache-2.0
# The module's interface under abuse.

# How long to fuzz, in seconds, and from which seed (default: the time; it is printed).
SECONDS ?= 45
SEED ?=

.PHONY: test-abi
test-abi: kmod kmod-test kmod-instrumented ## Abuse /dev/livedump in guests of KERNEL, fuzz it for SECONDS (from SEED), panic and reboot while frozen
	@hack/install-host-packages gcc libc6-dev
	@mkdir -p bin/test
	@gcc -static -O2 -D_GNU_SOURCE -Wall -Wextra -Werror -pthread -Ikmod/include/uapi -o bin/test/abi test/abi/program/*.c
	@go run ./test/abi -kernel $(KERNEL) $(if $(filter command line environment,$(origin RAM)),-ram $(RAM)) -seconds $(SECONDS) $(if $(SEED),-seed $(SEED)) -out out/abi
