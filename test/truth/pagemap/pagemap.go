// SPDX-License-Identifier: Apache-2.0

// Package pagemap tells which page frames a program's own memory has.
package pagemap

import (
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
)

// FramesOf reads the page frames of this process's memory, in hexadecimal. It wants root.
func FramesOf(b []byte) ([]string, error) {
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	start := addressOf(b) / uint64(os.Getpagesize())
	raw := make([]byte, 8*len(b)/os.Getpagesize())
	if _, err := f.ReadAt(raw, int64(start*8)); err != nil {
		return nil, fmt.Errorf("pagemap: %w", err)
	}
	var frames []string
	for ; len(raw) > 0; raw = raw[8:] {
		const present, frame = 1 << 63, 1<<55 - 1
		v := binary.LittleEndian.Uint64(raw)
		if v&present == 0 || v&frame == 0 {
			return nil, fmt.Errorf("pagemap: entry %#x has no page frame", v)
		}
		frames = append(frames, strconv.FormatUint(v&frame, 16))
	}
	return frames, nil
}
