// SPDX-License-Identifier: Apache-2.0

// Package agefile writes ordinary age files (c2sp.org/age) in any order, and reads them.
//
// The writer of a dump puts pages, tables and headers where they belong, the beginning last. The
// format of age allows that: its payload consists of cells of 64 KiB, each encrypted by itself, and
// a cell's place and nonce follow from its number. A nonce must never serve twice, so a cell is
// encrypted only when all of it is known, and exactly once; until then it is kept in memory. What
// lies on the target in the end is a file that age itself decrypts, and on the way there is nothing
// on the target but encrypted cells and livedump's mark.
//
// The first stanza of the header is livedump's own. It holds nothing secret: the session, the size
// of the file (a device is larger), and padding, with which the header takes whole blocks.
package agefile
