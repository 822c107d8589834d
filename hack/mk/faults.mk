# SPDX-License-Identifier: Apache-2.0
# Dumps while something goes wrong.

# Regular expression of the faults that test-faults lets happen; all if it is empty.
FAULTS ?=

.PHONY: test-faults
test-faults: kmod kmod-test build-agent ## Kill the agent at each of its steps, break its target and more, in a guest (out/faults.json); FAULTS=regex selects
	@hack/install-host-packages dmsetup
	@CGO_ENABLED=0 go build -trimpath -o bin/test/faults ./test/faults
	@bin/test/faults -kernel $(KERNEL) -faults '$(FAULTS)' -out out/faults
