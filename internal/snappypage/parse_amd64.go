// SPDX-License-Identifier: Apache-2.0

package snappypage

// parse is parseGo in assembly.
//
//go:noescape
func parse(out, page *byte, table *[1 << hashLog]uint16) (n, anchor uint)
