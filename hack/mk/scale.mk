# SPDX-License-Identifier: Apache-2.0
# The controller with a thousand nodes.

# How many simulated nodes and LiveDumps.
NODES ?= 1000
LIVEDUMPS ?= 5000

.PHONY: bench-scale
bench-scale: build-controller ## Measure the controller with NODES nodes and LIVEDUMPS LiveDumps (out/bench-scale.json)
	@hack/tools/build etcd kube-apiserver kubectl kube-controller-manager kube-scheduler helm kwok
	@CGO_ENABLED=0 go build -trimpath -o bin/test/scale ./test/scale
	@KUBEBUILDER_ASSETS=$$(hack/tools/path --assets) $(ENVTEST) bin/test/scale -nodes $(NODES) -livedumps $(LIVEDUMPS)
