// SPDX-License-Identifier: Apache-2.0

// Package agent carries out the LiveDumps of one node.
//
// Reconcile looks at what is and decides on one step; the dump itself runs in a goroutine of its own, one at a time,
// because memory can be frozen only once. The session in the kernel outlives the process for a while, and what
// was captured is on the target: a LiveDump that an earlier process had taken up is gone on with, and if that is
// impossible, this one says why.
package agent
