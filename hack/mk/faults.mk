# SPDX-License-Identifier: Apache-2.0
# Dumps while something goes wrong.

# Regular expression of the faults that happen; all if it is empty. One with "cluster" in it is for those of a cluster, whose
# names begin with that; any other for those that need none.
FAULTS ?=

FAULTS_IN_CLUSTER = bin/test/demo -kernel $(KERNEL) -out out/faults-cluster -checks faults -faults '$(FAULTS)'

.PHONY: test-faults test-faults-guest test-faults-cluster
ifeq ($(FAULTS),)
test-faults: demo-parts build-faults ## Kill the agent at each of its steps, break its target and more, in a guest and in a cluster (out/faults.json); FAULTS=regex selects
	@rc=0; $(FAULTS_IN_CLUSTER) || rc=$$?; \
		bin/test/faults -kernel $(KERNEL) -out out/faults -with out/faults-cluster/faults.json || rc=$$?; exit $$rc
else
test-faults: $(if $(findstring cluster,$(FAULTS)),test-faults-cluster,test-faults-guest)
endif

test-faults-guest: build-faults
	@bin/test/faults -kernel $(KERNEL) -faults '$(FAULTS)' -out out/faults

test-faults-cluster: demo-parts
	@$(FAULTS_IN_CLUSTER)

.PHONY: build-faults
build-faults: kmod kmod-test build-agent build-load
	@hack/install-host-packages dmsetup
	@CGO_ENABLED=0 go build -trimpath -o bin/test/faults ./test/faults
