// SPDX-License-Identifier: Apache-2.0

package elfcore

import (
	"livedump.io/internal/kdump"
)

// Info collects what the vmcore says of itself. What a kernel is called is only in its memory, so Utsname is empty.
func (c *Core) Info() (kdump.Info, error) {
	notes, err := kdump.ParseNotes(c.Notes)
	if err != nil {
		return kdump.Info{}, err
	}
	info := c.VMCoreInfo()
	base, _ := info.PhysBase() // 0 without VMCOREINFO, which is shown to be missing
	i := kdump.Info{
		Format: "ELF vmcore", Bytes: int64(len(c.mem)), CPUs: c.NrCPUs, MaxPFN: c.maxPFN, DumpedPages: c.Pages(),
		DumpLevel: c.DumpLevel, Compression: "none", PhysBase: base, Registers: kdump.CPUs(notes), VMCoreInfo: info,
	}
	for _, r := range c.ram {
		i.RAMPages += r.End - r.Start
	}
	for _, n := range notes {
		i.Notes = append(i.Notes, kdump.NoteInfo{Name: n.Name, Type: n.Type, Bytes: len(n.Desc)})
	}
	if c.Record == nil {
		return i, nil
	}
	i.DumpedPages = c.Record.Pages
	l := kdump.NewLivedumpInfo(c.Record)
	i.Livedump, i.Timestamp = l, c.Record.FrozenAt
	err = c.Each(func(e kdump.ELFEntry, data []byte) error {
		if data != nil {
			l.CountPage(e.Info)
		}
		return nil
	})
	if err != nil {
		return i, err
	}
	l.LostRanges, err = c.LostPages()
	return i, err
}
