// SPDX-License-Identifier: Apache-2.0

// Package kdump writes and reads kdump-compressed dumps, header version 6, of x86-64 kernels: the
// format of makedumpfile that crash, drgn (libkdumpfile) and makedumpfile itself read.
//
// A Writer takes pages in any order from any number of goroutines and turns the target into a dump
// only at the very end: block 0, which makes it one, is written last. A Reader opens such a dump,
// and dumps of other writers as far as they go, and trusts nothing in them.
//
// docs/format.md has the layout, byte by byte, with the reasons for it.
package kdump
