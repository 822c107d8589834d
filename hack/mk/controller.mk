# SPDX-License-Identifier: Apache-2.0
# The controller, its chart, and their tests.

# envtest's default of 20 s is thin where a build goes on beside it.
ENVTEST := KUBEBUILDER_CONTROLPLANE_START_TIMEOUT=120s

.PHONY: build-controller test-controller test-chart

build-controller: ## Build bin/livedump-controller (static)
	@mkdir -p bin
	@CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o bin/livedump-controller ./cmd/livedump-controller

test-controller: verify-generate build-controller ## Test the API, the controller and the admission policies against a real API server
	@go test ./api/... ./controllers/... ./cmd/livedump-controller/...
	@hack/tools/build etcd kube-apiserver kubectl helm kube-controller-manager
	@KUBEBUILDER_ASSETS=$$(hack/tools/path --assets) HELM=$$(hack/tools/path helm) \
		CONTROLLER_MANAGER=$$(hack/tools/path kube-controller-manager) CONTROLLER=$(CURDIR)/bin/livedump-controller $(ENVTEST) \
		go test -tags envtest -count=1 ./test/envtest/...

test-chart: ## Lint the chart, check its schema, and what it renders
	@hack/tools/build helm
	@$$(hack/tools/path helm) lint --strict --quiet charts/livedump
	@HELM=$$(hack/tools/path helm) go test -count=1 ./test/chart/...
