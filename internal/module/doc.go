// SPDX-License-Identifier: Apache-2.0

// Package module finds, loads and unloads the kernel module of livedump.
//
// What is loaded already is looked at, never assumed: a module of the same build is adopted, another one that
// nobody uses is replaced, and one in use is left alone.
package module

// Name of the module in the kernel.
const Name = "livedump"
