// SPDX-License-Identifier: Apache-2.0

// Package engine makes one dump: it checks and claims the target, loads the module, freezes memory, feeds what the
// session gives to the dump's writer, thaws as soon as the last page has been fetched, and verifies what was written.
//
// It knows nothing of Kubernetes. Whatever goes wrong, memory is thawed before anything else is waited for, and a
// target that was touched says that it carries no dump.
package engine
