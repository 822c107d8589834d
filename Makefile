# SPDX-License-Identifier: Apache-2.0
# Every area has its own file in hack/mk/. `make help` lists the targets.

.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

# Everything that is downloaded or built from other projects lives here, shared by all clones.
LIVEDUMP_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/livedump
export LIVEDUMP_CACHE

include $(sort $(wildcard hack/mk/*.mk))

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  %-18s %s\n", $$1, $$2}'
