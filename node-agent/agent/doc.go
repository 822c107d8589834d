// SPDX-License-Identifier: Apache-2.0

// Package agent carries out the LiveDumps of one node.
//
// Reconcile looks at what is and decides on one step; the dump itself runs in a goroutine of its own, one at a time,
// because memory can be frozen only once. The session in the kernel dies with the process, so a LiveDump that an
// earlier process had taken up is lost, and this one says so.
package agent
