// SPDX-License-Identifier: Apache-2.0

// Package envtest runs the controller and the agent against a real API server: `make test-controller`.
package envtest
