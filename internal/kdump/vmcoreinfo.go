// SPDX-License-Identifier: Apache-2.0

package kdump

import (
	"bytes"
	"fmt"
	"strconv"
)

// VMCoreInfo is what a kernel tells dump tools about itself: lines of KEY=VALUE.
type VMCoreInfo map[string]string

// ParseVMCoreInfo reads the text. Lines without "=" are skipped; of a key that comes twice the last
// value counts, as for the readers.
func ParseVMCoreInfo(text []byte) VMCoreInfo {
	v := VMCoreInfo{}
	text, _, _ = bytes.Cut(text, []byte{0})
	for line := range bytes.Lines(text) {
		key, value, ok := bytes.Cut(bytes.TrimRight(line, "\r\n"), []byte{'='})
		if ok && len(key) > 0 {
			v[string(key)] = string(value)
		}
	}
	return v
}

// PhysBase is where the kernel was loaded, relative to where it was linked for. It may be negative.
func (v VMCoreInfo) PhysBase() (int64, error) {
	s, ok := v["NUMBER(phys_base)"]
	if !ok {
		return 0, fmt.Errorf("VMCOREINFO has no NUMBER(phys_base)")
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("VMCOREINFO: NUMBER(phys_base): %w", err)
	}
	return n, nil
}
