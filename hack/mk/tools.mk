# SPDX-License-Identifier: Apache-2.0
# Kubernetes, etcd, helm, controller-gen and an S3 server, built from pinned Go modules into the cache.
# `hack/tools/path BINARY` prints where a binary is; `hack/tools/path --assets` is for KUBEBUILDER_ASSETS.

TOOLS := controller-gen etcd kube-apiserver kubectl kube-controller-manager kube-scheduler kubelet helm versitygw

.PHONY: tools tools-envtest
tools: ## Build Kubernetes, etcd, helm, controller-gen and an S3 server (into the cache)
	@hack/tools/build $(TOOLS)

# What the API tests need; a target of its own because the rest takes minutes more.
tools-envtest:
	@hack/tools/build etcd kube-apiserver kubectl
