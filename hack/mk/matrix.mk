# SPDX-License-Identifier: Apache-2.0
# The module on every kernel series and on machines of many kinds.

# Only rows of the matrix whose name matches; all: some two minutes each on an idle machine.
ROWS ?=

.PHONY: test-matrix matrix-table debug-kernel
test-matrix: host-packages build-agent build-load ## Run the module on all kernels and kinds of machines, going on where a run was stopped (out/matrix.json)
	@CGO_ENABLED=0 go build -trimpath -o bin/test/ ./test/truth ./test/truth/hidden ./test/truth/ring
	@go run ./test/matrix/cmd/matrix $(if $(ROWS),-rows '$(ROWS)')

matrix-table: ## Put out/matrix.json into docs/kernels.md
	@go run ./test/matrix/cmd/table

debug-kernel: ## Build a kernel with KASAN and lockdep for KERNEL=6.1-debug (most of an hour)
	@hack/debug-kernel 6.1
