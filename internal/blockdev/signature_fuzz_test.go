// SPDX-License-Identifier: Apache-2.0

package blockdev

import (
	"bytes"
	"testing"
)

// FuzzSignatures looks for what is on a device whose two ends are anything. What does not begin with zeros must never be
// taken for empty: it would be overwritten.
func FuzzSignatures(f *testing.F) {
	f.Add([]byte{}, []byte{}, uint32(1<<20), false)
	f.Add([]byte("LIVEDUMP in progress"), []byte{1}, uint32(1<<20+512), true)
	f.Add(bytes.Repeat([]byte{0x53, 0xef}, 600), []byte("LABELONE"), uint32(4096), false)
	f.Fuzz(func(t *testing.T, head, tail []byte, size uint32, ownDump bool) {
		disk := make([]byte, size%(4<<20)+1)
		copy(disk, head)
		if n := min(len(tail), len(disk)); n > 0 {
			copy(disk[len(disk)-n:], tail[len(tail)-n:])
		}
		c, err := readContent(bytes.NewReader(disk), int64(len(disk)))
		if err != nil {
			t.Fatal(err)
		}
		_ = foreignSignatures(c, ownDump)
		if isEmpty(c) && len(bytes.Trim(disk[:min(len(disk), emptyHead)], "\x00")) > 0 {
			t.Error("what has content is taken for empty")
		}
	})
}
