// SPDX-License-Identifier: Apache-2.0

// Package session is the Go side of /dev/livedump: one frozen image of the kernel's memory.
//
// A session goes Prepare, Freeze, Notes, Next until it returns 0, Thaw, Close. The kernel ends it, whatever
// the step, when the file is closed or its owner dies; then all page tables are as they were. With Options.Grace frozen
// memory stays so for a while, for another process to take it over.
package session

import (
	"fmt"
	"time"
)

// Session is one session of the kernel module. Next may be called by several goroutines at once; the other
// methods are called by one goroutine at a time. Errors can be matched with errors.Is against the Err
// variables of this package.
type Session interface {
	// Prepare allocates the reserve and installs the fault hook.
	// ErrLockedDown, ErrBusy, ErrUnsupported, ErrNoMemory.
	Prepare(Options) (Prepared, error)
	// Freeze stops the machine for an instant and protects its memory.
	// ErrStopFailed, ErrReserveExhausted.
	Freeze() (Frozen, error)
	// Notes returns registers of all CPUs and VMCOREINFO, as of the stop.
	Notes() (Notes, error)
	// Next fills data with the content of up to len(pages) pages: pages[i] is at data[i*PageSize]. It returns
	// how many it filled; 0 without an error means that every page has been reported. len(data) must be at
	// least len(pages)*PageSize. ErrReserveExhausted, ErrDeadlineExceeded.
	Next(data []byte, pages []Page) (int, error)
	// Acknowledge says that pages which Next has handed out are where they outlive this process: they do not come
	// again after a Takeover. It needs Options.Acks. At most MaxBatch pages. Several goroutines may call it.
	Acknowledge(pages []Page) error
	// Takeover makes the caller the owner of a frozen session whose owner has died, instead of Prepare and Freeze.
	// Notes, Next and Thaw then go on where the former owner was. ErrNoSession, ErrOtherSession, ErrOwnerAlive.
	Takeover(uuid [16]byte) (Taken, error)
	// Stats can be read in every state, after Thaw too.
	Stats() (Stats, error)
	// Thaw ends the protection and restores all page tables. Thawing what is not frozen is no error.
	Thaw() error
	// Close ends the session, thawing it first if needed; what is frozen with a Grace it leaves to the next owner.
	Close() error
}

// DumpLevel is the set of page classes that are left out, with makedumpfile's bits.
type DumpLevel uint32

// The bits of DumpLevel. Zero pages are recognised by whoever reads the session, not by the module.
const (
	ExcludeZero         DumpLevel = 1 << 0
	ExcludeCache        DumpLevel = 1 << 1 // page cache without private data
	ExcludeCachePrivate DumpLevel = 1 << 2 // all page cache
	ExcludeUser         DumpLevel = 1 << 3 // anonymous and hugetlb pages
	ExcludeFree         DumpLevel = 1 << 4
	ExcludeAll          DumpLevel = 31
)

// Mode says what happens when the reserve is used up.
type Mode uint32

const (
	// Strict fails the dump.
	Strict Mode = 0
	// BestEffort loses the page: it is counted, reported and left out.
	BestEffort Mode = 1
)

// Class is what a page was by its struct page as of the stop.
type Class uint32

// Classes, named as in the API.
const (
	ClassUnknown Class = iota
	ClassKernel
	ClassCache
	ClassCachePrivate
	ClassUser
	ClassHugetlb
	ClassFree
	ClassOffline
	ClassHwpoison
	ClassSelf
	ClassUnmapped
	NumClasses
)

var classNames = [NumClasses]string{"Unknown", "Kernel", "Cache", "CachePrivate", "User", "Hugetlb", "Free",
	"Offline", "Hwpoison", "Self", "Unmapped"}

func (c Class) String() string {
	if c < NumClasses {
		return classNames[c]
	}
	return fmt.Sprintf("Class(%d)", uint32(c))
}

// Dumped says whether pages of this class are in a dump of the level.
func (c Class) Dumped(level DumpLevel) bool {
	switch c {
	case ClassKernel:
		return true
	case ClassCache:
		return level&(ExcludeCache|ExcludeCachePrivate) == 0
	case ClassCachePrivate:
		return level&ExcludeCachePrivate == 0
	case ClassUser, ClassHugetlb:
		return level&ExcludeUser == 0
	case ClassFree:
		return level&ExcludeFree == 0
	}
	return false
}

// PageFlags tell how a page was obtained.
type PageFlags uint32

const (
	// PageCopy: the content came from the reserve.
	PageCopy PageFlags = 1 << 0
	// PageLost: the content is gone; there is no data.
	PageLost PageFlags = 1 << 1
	// PageUncovered: reachable through a mapping that is not protected, so it may not be of the one instant.
	PageUncovered PageFlags = 1 << 2
	// PageTable: a page table; the processor may have set Accessed and Dirty bits in it since the stop.
	PageTable PageFlags = 1 << 3
)

// Page describes one page of a batch. Its layout is that of struct livedump_page.
type Page struct {
	PFN   uint64
	Class Class
	Flags PageFlags
}

// Options of Prepare.
type Options struct {
	Level DumpLevel
	Mode  Mode
	// ReserveBytes limits the memory for copies and page tables; 0 leaves it to the module.
	ReserveBytes uint64
	// Deadline from Freeze to the forced thaw; 0 leaves it to the module.
	Deadline time.Duration
	// Grace is how long frozen memory stays so when its owner has died, for Takeover; 0: it is thawed at once. It
	// needs a UUID.
	Grace time.Duration
	UUID  [16]byte
	// Calibrate freezes memory for so long within Prepare, to see how much is written, and sizes the
	// reserve for a dump that takes Expected; 0: no such dry run. At most ten seconds.
	Calibrate, Expected time.Duration
	// Keep makes pages readable until the thaw through /dev/livedump-vmcore, also those that Next has
	// handed out. The reserve must then hold every page that is written while frozen.
	Keep bool
	// Acks makes pages that Next has handed out come again after a Takeover, unless they were given to
	// Acknowledge. Not together with Keep.
	Acks bool
}

// Prepared is what Prepare found.
type Prepared struct {
	MaxPFN        uint64 // one more than the last page frame of RAM
	RAMPages      uint64
	ReservePages  uint64
	OverheadBytes uint64 // memory held besides the reserve
	EstimatePages uint64 // pages of the reserve that a dump likely needs; 0: there was no dry run
	Took          time.Duration
}

// Taken is what Takeover found.
type Taken struct {
	Options       Options // of the Prepare; its Deadline is what is left of it
	Prepared      Prepared
	Frozen        Frozen
	PagesReported uint64 // to former owners
	FrozenFor     time.Duration
}

// Frozen is what Freeze measured.
type Frozen struct {
	CPUs        int
	Stop        time.Duration // longest time that any CPU was held
	Classify    time.Duration
	NotesBytes  uint64
	PagesToDump uint64 // pages that Next will report, lost ones included
	ClassPages  [NumClasses]uint64
	At          time.Time // wall clock at the stop
}

// Utsname as of the stop.
type Utsname struct {
	Sysname, Nodename, Release, Version, Machine, Domainname string
}

// Notes are ELF notes: NT_PRSTATUS of each CPU in order, and VMCOREINFO.
type Notes struct {
	Data             []byte
	VMCoreInfoOffset uint64 // of the VMCOREINFO text in Data
	VMCoreInfoBytes  uint64
	Utsname          Utsname
}

// State of the session in the kernel.
type State uint32

const (
	StateIdle State = iota
	StatePrepared
	StateFrozen
	StateThawed
)

func (s State) String() string {
	switch s {
	case StateIdle:
		return "idle"
	case StatePrepared:
		return "prepared"
	case StateFrozen:
		return "frozen"
	case StateThawed:
		return "thawed"
	}
	return fmt.Sprintf("state(%d)", uint32(s))
}

// Failure is why a frozen session can no longer give a good dump.
type Failure uint32

const (
	FailureNone     Failure = 0
	FailureReserve  Failure = 1 // strict, and the reserve was used up
	FailureDeadline Failure = 2 // thawed by the deadline
	FailureReboot   Failure = 3 // thawed because the machine goes down
)

func (f Failure) String() string {
	switch f {
	case FailureNone:
		return "none"
	case FailureReserve:
		return "reserve"
	case FailureDeadline:
		return "deadline"
	case FailureReboot:
		return "reboot"
	}
	return fmt.Sprintf("failure(%d)", uint32(f))
}

// Stats of the session; names, units and meaning as in struct livedump_stats.
type Stats struct {
	State        State
	Failure      Failure
	StopAttempts uint32

	Stop       time.Duration // from before the first CPU was held till the last had left; the next four are parts of it
	Rendezvous time.Duration // until the last CPU arrived
	CopiesTook time.Duration
	Entries    time.Duration
	Flush      time.Duration // until the last CPU had flushed its TLB
	Registers  time.Duration // longest time that a CPU took to save its registers; part of Rendezvous

	EntriesPUD, EntriesPMD, EntriesPTE uint64 // changed in the stop

	StopCopies     uint64 // pages copied in the stop
	Faults         uint64 // faults mended
	FaultCopies    uint64
	FaultPushdowns uint64
	FaultSplits    uint64
	FaultExcluded  uint64 // released without a copy, the class being left out
	Copies         uint64
	ReservePages   uint64
	ReserveLow     uint64 // fewest free reserve pages seen
	LostPages      uint64
	UncoveredPages uint64
	PagesToDump    uint64
	PagesReported  uint64
	ClassPages     [NumClasses]uint64
	MissingCPUs    uint64 // bit per CPU (of the first 64) that missed the last stop
	TablesSplit    uint64 // huge entries split
	TablesJoined   uint64 // of these, joined again by the thaw
	Thaw           time.Duration
	PagesAcked     uint64
	PageTables     uint64 // to be dumped with the flag PageTable
	Unwatched      Unwatched
	// DMAPages are flagged as uncovered because a device may write them.
	DMAPages uint64
	// DMADevices write memory themselves; which pages the unknown ones of them may write cannot be told, so none is flagged.
	DMADevices, DMADevicesUnknown uint32
}

// Unwatched is what the module could not watch on this kernel, so that changes of pages went unnoticed.
type Unwatched uint64

const (
	// UnwatchedMappings: mappings of pages in use that are made after the stop.
	UnwatchedMappings Unwatched = 1 << 0
	// UnwatchedCode: code that is patched after the stop.
	UnwatchedCode Unwatched = 1 << 1
	// UnwatchedAttributes: memory that is made writable after the stop.
	UnwatchedAttributes Unwatched = 1 << 2
	// UnwatchedDMA: buffers that are handed to devices after the stop.
	UnwatchedDMA Unwatched = 1 << 3
	// UnwatchedPrograms: pages of the kernel that are mapped into programs after the stop.
	UnwatchedPrograms Unwatched = 1 << 4
)

// Names are words for a report; nil if everything was watched.
func (u Unwatched) Names() (names []string) {
	if u&UnwatchedMappings != 0 {
		names = append(names, "mappings")
	}
	if u&UnwatchedCode != 0 {
		names = append(names, "code")
	}
	if u&UnwatchedAttributes != 0 {
		names = append(names, "attributes")
	}
	if u&UnwatchedDMA != 0 {
		names = append(names, "dma")
	}
	if u&UnwatchedPrograms != 0 {
		names = append(names, "programs")
	}
	return names
}
