// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"encoding/hex"
	"maps"
	"slices"
	"time"

	"livedump.io/internal/kdump"
	"livedump.io/internal/session"
)

// Report is what was measured of one dump. Times with _ns are in nanoseconds; the module's numbers have the names that
// they have in struct livedump_stats, but for freeze_ns, which is its stop_ns: the longest time that any CPU was held.
type Report struct {
	Session       string       `json:"session"`
	StartedAt     time.Time    `json:"started_at"`
	TotalNS       int64        `json:"total_ns"`
	Error         string       `json:"error,omitempty"`
	Reason        string       `json:"reason,omitempty"`
	Device        string       `json:"device,omitempty"`
	Module        ModuleReport `json:"module"`
	Nodename      string       `json:"nodename,omitempty"`
	KernelRelease string       `json:"kernel_release,omitempty"`

	Format      string `json:"format"`
	Compression string `json:"compression"`
	// Encryption is age, or nothing.
	Encryption string `json:"encryption,omitempty"`
	DumpLevel  uint32 `json:"dump_level"`
	SizeBytes  uint64 `json:"size_bytes"`
	SHA256     string `json:"sha256,omitempty"`
	// ReadBack: what lies on the target was read back and is what was written. A stream gives nothing back.
	ReadBack bool `json:"read_back"`
	// Parts of a split dump. SHA256 is empty then.
	Parts []PartReport `json:"parts,omitempty"`

	// Measured by the module.
	FreezeNS       int64         `json:"freeze_ns"`
	RendezvousNS   int64         `json:"rendezvous_ns"`
	CopiesNS       int64         `json:"copies_ns"`
	EntriesNS      int64         `json:"entries_ns"`
	FlushNS        int64         `json:"flush_ns"`
	ClassifyNS     int64         `json:"classify_ns"`
	PrepareNS      int64         `json:"prepare_ns"`
	ThawNS         int64         `json:"thaw_ns"`
	StopAttempts   uint32        `json:"stop_attempts"`
	MissingCPUs    uint64        `json:"missing_cpus"`
	CPUs           int           `json:"cpus"`
	FrozenAt       *time.Time    `json:"frozen_at,omitempty"`
	Entries        EntriesReport `json:"entries"`
	Faults         uint64        `json:"faults"`
	FaultCopies    uint64        `json:"fault_copies"`
	FaultPushdowns uint64        `json:"fault_pushdowns"`
	FaultSplits    uint64        `json:"fault_splits"`
	FaultExcluded  uint64        `json:"fault_excluded"`
	StopCopies     uint64        `json:"stop_copies"`
	Copies         uint64        `json:"copies"`
	ReservePages   uint64        `json:"reserve_pages"`
	ReserveLow     uint64        `json:"reserve_low"`
	OverheadBytes  uint64        `json:"overhead_bytes"`
	LostPages      uint64        `json:"lost_pages"`
	UncoveredPages uint64        `json:"uncovered_pages"`
	PageTables     uint64        `json:"page_tables"`
	Unwatched      []string      `json:"unwatched,omitempty"`
	// DMAPages are those of the uncovered pages that devices may write. Of DMADevicesUnknown, of all DMADevices, nobody can tell
	// which they write; none of their pages is counted.
	DMAPages          uint64 `json:"dma_pages"`
	DMADevices        uint32 `json:"dma_devices"`
	DMADevicesUnknown uint32 `json:"dma_devices_unknown"`

	PagesToDump    uint64            `json:"pages_to_dump"`
	PagesReported  uint64            `json:"pages_reported"`
	PagesByClass   map[string]uint64 `json:"pages_by_class,omitempty"`
	TablesSplit    uint64            `json:"tables_split"`
	TablesJoined   uint64            `json:"tables_joined"`
	SessionFailure string            `json:"session_failure,omitempty"`

	// Measured by the agent.
	FrozenForNS int64        `json:"frozen_for_ns"`
	PagesDumped uint64       `json:"pages_dumped"`
	ZeroPages   uint64       `json:"zero_pages"`
	MaxPFN      uint64       `json:"max_pfn"`
	RAMPages    uint64       `json:"ram_pages"`
	Steps       []StepReport `json:"steps"`
	// Unthawed: this was measured before memory was thawed, and the thaw's numbers are missing.
	Unthawed bool `json:"-"`
	// Takeovers is how often another process went on with the dump.
	Takeovers int `json:"takeovers,omitempty"`

	failure session.Failure
	classes [session.NumClasses]uint64
}

// PartReport is one part of a split dump.
type PartReport struct {
	Device    string `json:"device"`
	SizeBytes uint64 `json:"size_bytes"`
	SHA256    string `json:"sha256"`
}

// ModuleReport tells which module was used.
type ModuleReport struct {
	How        string `json:"how,omitempty"`
	File       string `json:"file,omitempty"`
	Version    string `json:"version,omitempty"`
	SrcVersion string `json:"srcversion,omitempty"`
}

// EntriesReport counts the page-table entries changed in the stop, by level.
type EntriesReport struct {
	PUD uint64 `json:"pud"`
	PMD uint64 `json:"pmd"`
	PTE uint64 `json:"pte"`
}

// StepReport is how long a step took.
type StepReport struct {
	Name string `json:"name"`
	NS   int64  `json:"ns"`
}

// beforeThaw is the report as it is now, and stays, while memory is being thawed.
func (r *Report) beforeThaw() *Report {
	c := *r
	c.Unthawed = true
	c.Steps, c.Parts, c.PagesByClass = slices.Clone(r.Steps), slices.Clone(r.Parts), maps.Clone(r.PagesByClass)
	return &c
}

// ClassPages is the number of pages of a class in all RAM, as of the stop.
func (r *Report) ClassPages(c session.Class) uint64 {
	if c >= session.NumClasses {
		return 0
	}
	return r.classes[c]
}

func (r *Report) prepared(p session.Prepared) {
	r.MaxPFN, r.RAMPages, r.ReservePages = p.MaxPFN, p.RAMPages, p.ReservePages
	r.OverheadBytes, r.PrepareNS = p.OverheadBytes, p.Took.Nanoseconds()
}

func (r *Report) frozen(f session.Frozen) {
	at := f.At.UTC()
	r.FrozenAt, r.CPUs = &at, f.CPUs
	r.FreezeNS, r.ClassifyNS = f.Stop.Nanoseconds(), f.Classify.Nanoseconds()
	r.PagesToDump = f.PagesToDump
	r.byClass(f.ClassPages)
}

func (r *Report) byClass(pages [session.NumClasses]uint64) {
	r.classes = pages
	r.PagesByClass = map[string]uint64{}
	for c, n := range pages {
		if c := session.Class(c); c != session.ClassUnknown || n > 0 {
			r.PagesByClass[c.String()] = n
		}
	}
}

func (r *Report) statistics(s session.Stats) {
	r.StopAttempts, r.MissingCPUs = s.StopAttempts, s.MissingCPUs
	r.RendezvousNS, r.CopiesNS = s.Rendezvous.Nanoseconds(), s.CopiesTook.Nanoseconds()
	r.EntriesNS, r.FlushNS = s.Entries.Nanoseconds(), s.Flush.Nanoseconds()
	r.ThawNS = s.Thaw.Nanoseconds()
	r.Entries = EntriesReport{PUD: s.EntriesPUD, PMD: s.EntriesPMD, PTE: s.EntriesPTE}
	r.StopCopies, r.Copies = s.StopCopies, s.Copies
	r.Faults, r.FaultCopies, r.FaultPushdowns = s.Faults, s.FaultCopies, s.FaultPushdowns
	r.FaultSplits, r.FaultExcluded = s.FaultSplits, s.FaultExcluded
	r.ReserveLow = s.ReserveLow
	r.LostPages, r.UncoveredPages = s.LostPages, s.UncoveredPages
	r.PageTables, r.Unwatched = s.PageTables, s.Unwatched.Names()
	r.DMAPages, r.DMADevices, r.DMADevicesUnknown = s.DMAPages, s.DMADevices, s.DMADevicesUnknown
	r.PagesReported = s.PagesReported
	r.TablesSplit, r.TablesJoined = s.TablesSplit, s.TablesJoined
	r.failure = s.Failure
	if s.Failure != session.FailureNone {
		r.SessionFailure = s.Failure.String()
	}
}

func (r *Report) summary(s kdump.Summary) {
	r.SizeBytes = s.Bytes
	if len(s.Parts) == 0 {
		r.SHA256 = hex.EncodeToString(s.SHA256[:])
	}
	r.PagesDumped, r.ZeroPages, r.ReadBack = s.Pages, s.ZeroPages, s.ReadBack
	// The module counts as well; neither count may hide what the other saw.
	r.LostPages = max(r.LostPages, s.Lost)
	r.UncoveredPages = max(r.UncoveredPages, s.Uncovered)
}
