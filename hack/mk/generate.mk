# SPDX-License-Identifier: Apache-2.0
# Code and manifests generated from api/v1alpha1.

# Whatever the generators own, and nothing else: verify-generate compares exactly this.
GENERATED := api/v1alpha1/zz_generated.deepcopy.go api/v1alpha1/applyconfiguration config/crd charts/livedump/templates/crd.yaml

.PHONY: generate verify-generate
generate: ## Regenerate deepcopy functions, apply configurations and the CRD
	@hack/tools/build controller-gen
	@hack/generate/generate

# Compares with a fresh generation elsewhere, so it says the same in a dirty tree.
verify-generate: ## Check that generated files are up to date
	@hack/tools/build controller-gen
	@out=$$(mktemp -d); trap 'rm -rf "$$out"' EXIT; \
	hack/generate/generate "$$out"; \
	for path in $(GENERATED); do \
		diff -ruN "$$path" "$$out/$$path" || { echo "verify-generate: $$path is out of date: run make generate" >&2; exit 1; }; \
	done; \
	echo "verify-generate: generated files are up to date"
