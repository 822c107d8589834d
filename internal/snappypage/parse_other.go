// SPDX-License-Identifier: Apache-2.0

//go:build !amd64

package snappypage

func parse(out, page *byte, table *[1 << hashLog]uint16) (n, anchor uint) {
	return parseGo(out, page, table)
}
