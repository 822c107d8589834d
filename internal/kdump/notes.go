// SPDX-License-Identifier: Apache-2.0

package kdump

import (
	"encoding/binary"
	"fmt"
)

const (
	ntPRStatus   = 1
	ntTaskStruct = 4

	prstatusBytes  = 336 // struct elf_prstatus of x86-64
	prstatusPID    = 32
	prstatusRegs   = 112
	prstatusRegIP  = prstatusRegs + 16*8
	prstatusRegCS  = prstatusRegs + 17*8
	prstatusRegSP  = prstatusRegs + 19*8
	noteHeaderSize = 12
)

// Note is one ELF note. Desc is a part of the slice that was parsed.
type Note struct {
	Name string
	Type uint32
	Desc []byte
}

// ParseNotes takes ELF notes apart. An error names the offset of the bad one.
func ParseNotes(b []byte) ([]Note, error) {
	var notes []Note
	for off := 0; off < len(b); {
		rest := b[off:]
		if len(rest) < noteHeaderSize {
			if allZero(rest) {
				break
			}
			return nil, fmt.Errorf("note at %d is cut off", off)
		}
		namesz := uint64(binary.LittleEndian.Uint32(rest))
		descsz := uint64(binary.LittleEndian.Uint32(rest[4:]))
		typ := binary.LittleEndian.Uint32(rest[8:])
		if namesz == 0 && descsz == 0 && typ == 0 {
			if allZero(rest) { // padding at the end
				break
			}
		}
		descOff := noteHeaderSize + (namesz+3)&^3
		end := descOff + descsz
		if end > uint64(len(rest)) {
			return nil, fmt.Errorf("note at %d is longer than what is left", off)
		}
		notes = append(notes, Note{
			Name: cString(append([]byte{}, rest[noteHeaderSize:noteHeaderSize+namesz]...)),
			Type: typ,
			Desc: rest[descOff:end],
		})
		off += int(min((end+3)&^3, uint64(len(rest))))
	}
	return notes, nil
}

// CPURegisters is the part of NT_PRSTATUS that tells where a CPU was.
type CPURegisters struct {
	CPU int    `json:"cpu"` // pr_pid - 1
	RIP uint64 `json:"rip"`
	RSP uint64 `json:"rsp"`
	CS  uint64 `json:"cs"`
}

// CPUs lists the registers in NT_PRSTATUS notes, in their order.
func CPUs(notes []Note) []CPURegisters {
	var cpus []CPURegisters
	for _, n := range notes {
		if n.Type != ntPRStatus || len(n.Desc) < prstatusBytes {
			continue
		}
		le := binary.LittleEndian
		cpus = append(cpus, CPURegisters{
			CPU: int(int32(le.Uint32(n.Desc[prstatusPID:]))) - 1,
			RIP: le.Uint64(n.Desc[prstatusRegIP:]),
			RSP: le.Uint64(n.Desc[prstatusRegSP:]),
			CS:  le.Uint64(n.Desc[prstatusRegCS:]),
		})
	}
	return cpus
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
