# SPDX-License-Identifier: Apache-2.0
# The whole path on real parts: a cluster whose node is a QEMU guest, a dump, its readers.
# The program starts everything in namespaces of its own; nothing outlives it unless KEEP=1.

# 1: leave the demo's cluster up at the end.
KEEP ?=
# What test-cluster checks, in this order; other-targets, split, uninstall, stuck-kubelet and upgrade are the others that there are.
CHECKS ?= demo,fetch,bad-specs,bad-targets,agent-killed

# What the check upgrade comes from.
PREVIOUS := $(if $(findstring upgrade,$(CHECKS)),bin/previous)

.PHONY: build-previous demo demo-parts demo-stop test-cluster

# What the cluster is made of. The tools are first: on a machine that has never
# built them they take most of the time.
demo-parts: host-packages tools kmod kmod-test build-agent build-controller build-cli judge-tools
	@hack/node-packages >/dev/null
	@CGO_ENABLED=0 go build -trimpath -ldflags="-s -w" -o bin/test/ ./test/pause ./test/workload ./test/demo

demo: demo-parts ## Run the whole path once and check it (KEEP=1: leave the cluster up)
	@bin/test/demo -kernel $(KERNEL) -out out/demo $(if $(filter 1,$(KEEP)),-keep)

demo-stop: ## Stop a demo that KEEP=1 left up
	@hack/demo-stop out/demo

build-previous:
	@hack/build-previous $(KERNEL) bin/previous

test-cluster: demo-parts $(if $(PREVIOUS),build-previous) ## The demo's path and what must happen when things go wrong, in one cluster; CHECKS=uninstall,stuck-kubelet,upgrade for the rest
	@bin/test/demo -kernel $(KERNEL) -out out/test-cluster -checks $(CHECKS) $(if $(PREVIOUS),-previous $(PREVIOUS)) $(if $(filter 1,$(KEEP)),-keep)
