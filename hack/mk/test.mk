# SPDX-License-Identifier: Apache-2.0

.PHONY: build test clean
build: build-cli build-agent build-controller ## Build the three programs into bin/

test: ## Run all tests (logs in out/test/)
	@hack/test

clean: ## Remove bin/ and out/ (not the cache)
	rm -rf bin out
