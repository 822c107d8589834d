# SPDX-License-Identifier: Apache-2.0
# The agent: a static binary, and its tests.

AGENT_PACKAGES := ./internal/session/... ./internal/module/... ./internal/kmsg/... ./internal/blockdev/... ./node-agent/... ./cmd/livedump-agent/...
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)

.PHONY: build-agent test-agent
build-agent: ## Build bin/livedump-agent
	@CGO_ENABLED=0 go build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/livedump-agent ./cmd/livedump-agent
	@echo "build-agent: bin/livedump-agent"

# As root the checks of devices run on loop devices; otherwise they say that they were skipped.
test-agent: ## Test the agent, the module's Go binding and the checks of devices
	@go vet $(AGENT_PACKAGES)
	@go test $(AGENT_PACKAGES)
