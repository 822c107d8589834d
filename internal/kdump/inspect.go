// SPDX-License-Identifier: Apache-2.0

package kdump

import (
	"fmt"
	"math/bits"
	"time"
)

// Info is what a dump says of itself, for people and for programs.
type Info struct {
	Format    string    `json:"format"`
	Bytes     int64     `json:"bytes"`
	Utsname   Utsname   `json:"utsname"`
	Timestamp time.Time `json:"timestamp"` // of the header, in seconds

	CPUs         int    `json:"cpus"`
	MaxPFN       uint64 `json:"maxPFN"`
	RAMPages     uint64 `json:"ramPages"`
	DumpedPages  uint64 `json:"dumpedPages"`
	DumpLevel    int    `json:"dumpLevel"`
	Compression  string `json:"compression"`
	Incomplete   bool   `json:"incomplete,omitempty"`
	PhysBase     int64  `json:"physBase"`
	HeaderBlocks int32  `json:"subHeaderBlocks"`
	BitmapBlocks uint32 `json:"bitmapBlocks"`

	Notes      []NoteInfo     `json:"notes"`
	Registers  []CPURegisters `json:"registers"`
	VMCoreInfo VMCoreInfo     `json:"vmcoreinfo"`

	Livedump *LivedumpInfo `json:"livedump,omitempty"`

	// Warnings are what will make readers fail or mislead them.
	Warnings []string `json:"warnings,omitempty"`
}

// NoteInfo is an ELF note without its content.
type NoteInfo struct {
	Name  string `json:"name"`
	Type  uint32 `json:"type"`
	Bytes int    `json:"bytes"`
}

// LivedumpInfo is livedump's own record.
type LivedumpInfo struct {
	Session        string            `json:"session"`
	FrozenAt       time.Time         `json:"frozenAt"`
	StopNanosecs   int64             `json:"stopNanoseconds"`
	Pages          uint64            `json:"pages"`
	ZeroPages      uint64            `json:"zeroPages"`
	LostPages      uint64            `json:"lostPages"`
	LostRanges     []PFNRange        `json:"lostRanges,omitempty"`
	UncoveredPages uint64            `json:"uncoveredPages"`
	ClassPages     map[string]uint64 `json:"classPages"`           // all RAM, as of the stop
	DumpedByClass  map[string]uint64 `json:"dumpedPagesByClass"`   // of Pages
	CopiedPages    uint64            `json:"pagesCopiedOnWriting"` // of Pages, saved before a write to them
	SHA256Root     string            `json:"checksumRoot"`
}

// Info collects what the dump says of itself. It reads all descriptors, but no page.
func (d *Reader) Info() (Info, error) {
	h := &d.hdr
	i := Info{
		Format:       fmt.Sprintf("kdump-compressed v%d", h.version),
		Bytes:        d.Size(),
		Utsname:      h.uts,
		Timestamp:    time.Unix(h.seconds, h.microseconds*1000).UTC(),
		CPUs:         int(h.nrCPUs),
		MaxPFN:       d.sub.maxMapnr64,
		DumpedPages:  d.pages,
		DumpLevel:    int(d.sub.dumpLevel),
		Compression:  compressionName(h.status),
		Incomplete:   h.status&statusIncomplete != 0,
		PhysBase:     int64(d.sub.physBase),
		HeaderBlocks: h.subHdrBlocks,
		BitmapBlocks: h.bitmapBlocks,
		Registers:    CPUs(d.parsed),
		VMCoreInfo:   d.info,
	}
	if d.flattened {
		i.Format += ", flattened"
	}
	for _, b := range d.ram {
		i.RAMPages += uint64(bits.OnesCount8(b))
	}
	for _, n := range d.parsed {
		i.Notes = append(i.Notes, NoteInfo{n.Name, n.Type, len(n.Desc)})
	}
	i.Warnings = d.warnings(&i)
	if d.rec == nil {
		return i, nil
	}
	l, err := d.livedumpInfo()
	i.Livedump = l
	return i, err
}

// NewLivedumpInfo shows a record. Which pages are lost, and of what classes the dumped ones are, is not in it.
func NewLivedumpInfo(r *Record) *LivedumpInfo {
	l := &LivedumpInfo{
		Session: r.Session.String(), FrozenAt: r.FrozenAt, StopNanosecs: r.Stop.Nanoseconds(),
		Pages: r.Pages, ZeroPages: r.ZeroPages, LostPages: r.Lost, UncoveredPages: r.Uncovered,
		ClassPages: map[string]uint64{}, DumpedByClass: map[string]uint64{},
		SHA256Root: fmt.Sprintf("%x", r.Root),
	}
	for c, n := range r.ClassPages {
		if n > 0 {
			l.ClassPages[Class(c).String()] = n
		}
	}
	return l
}

// CountPage counts a page that is in the dump.
func (l *LivedumpInfo) CountPage(p PageInfo) {
	l.DumpedByClass[p.Class.String()]++
	if p.Flags&PageCopy != 0 {
		l.CopiedPages++
	}
}

func (d *Reader) livedumpInfo() (*LivedumpInfo, error) {
	l := NewLivedumpInfo(d.rec)
	err := d.eachPage(verifyBatch, func(pages []pageAt) error {
		for _, p := range pages {
			l.CountPage(decodePageInfo(p.desc.pageFlags))
		}
		return nil
	})
	if err != nil {
		return l, err
	}
	l.LostRanges, err = d.LostPages()
	return l, err
}

// warnings knows what crash and drgn stumble over.
func (d *Reader) warnings(i *Info) (w []string) {
	if len(i.VMCoreInfo) == 0 {
		w = append(w, "there is no VMCOREINFO: drgn cannot open the dump, crash may need help")
	}
	if _, ok := i.VMCoreInfo["CRASHTIME"]; ok && d.rec != nil {
		w = append(w, "VMCOREINFO has CRASHTIME: drgn looks for registers in memory and not in the notes")
	}
	if i.Incomplete {
		w = append(w, "the writer marked the dump as incomplete")
	}
	for n, c := range i.Registers {
		if c.CPU < 0 || (n > 0 && c.CPU <= i.Registers[n-1].CPU) {
			w = append(w, "NT_PRSTATUS notes are not in order of CPUs (pr_pid = CPU + 1)")
			break
		}
	}
	if len(i.Registers) != i.CPUs {
		w = append(w, fmt.Sprintf("%d NT_PRSTATUS notes for %d CPUs", len(i.Registers), i.CPUs))
	}
	for _, n := range d.parsed {
		if n.Type == ntTaskStruct && n.Name == "SNAP" {
			w = append(w, "there is a SNAP note: crash refuses bt -a")
		}
	}
	return w
}

func compressionName(status uint32) string {
	switch status & descCompressed {
	case 0:
		return "none"
	case descZlib:
		return "zlib"
	case descLZO:
		return "lzo"
	case descSnappy:
		return "snappy"
	case descZstd:
		return "zstd"
	}
	return fmt.Sprintf("unknown (%#x)", status)
}
