// SPDX-License-Identifier: Apache-2.0

package session

import "unsafe"

// The structures of kmod/include/uapi/livedump.h, field for field. The fields come in an order that
// leaves no padding, so Go and C agree on the layout; abi_test.go compiles the header and compares.

const (
	abiVersion = 1

	// PageSize of a page of the session, in bytes.
	PageSize = 4096
	// MaxBatch is the most pages that one Next may ask for.
	MaxBatch = 1024

	// VMCoreDevice in /dev shows a frozen session that keeps its pages as an ELF core.
	VMCoreDevice = "livedump-vmcore"

	classSlots = 16

	// Bits of abiPrepare.Flags.
	prepareKeep  = 1 << 0
	prepareAck   = 1 << 1
	prepareFlags = prepareKeep | prepareAck
)

type abiPrepare struct {
	Size          uint32
	ABIVersion    uint32
	Exclude       uint32
	Mode          uint32
	ReserveBytes  uint64
	DeadlineMS    uint64
	UUID          [16]byte
	MaxPFN        uint64
	RAMPages      uint64
	ReservePages  uint64
	OverheadBytes uint64
	PrepareNS     uint64
	Flags         uint64
	GraceMS       uint32
	Refusal       uint32
	CalibrateMS   uint32
	ExpectedMS    uint32
	EstimatePages uint32
	Reserved0     uint32
}

type abiFreeze struct {
	Size        uint32
	NrCPUs      uint32
	StopNS      uint64
	ClassifyNS  uint64
	NotesBytes  uint64
	PagesToDump uint64
	ClassPages  [classSlots]uint64
	RealtimeNS  uint64
	Reserved    [4]uint64
}

type abiNotes struct {
	Size             uint32
	Reserved0        uint32
	Buf              uint64
	BufBytes         uint64
	VMCoreInfoOffset uint64
	VMCoreInfoBytes  uint64
	Utsname          [6][65]byte
	Reserved         [10]byte
}

type abiNext struct {
	Size      uint32
	MaxPages  uint32
	Buf       uint64
	Pages     uint64
	NrPages   uint32
	Reserved0 uint32
	Reserved  [2]uint64
}

type abiStats struct {
	Size           uint32
	State          uint32
	Failure        uint32
	StopAttempts   uint32
	StopNS         uint64
	RendezvousNS   uint64
	CopiesNS       uint64
	EntriesNS      uint64
	FlushNS        uint64
	EntriesPUD     uint64
	EntriesPMD     uint64
	EntriesPTE     uint64
	StopCopies     uint64
	Faults         uint64
	FaultCopies    uint64
	FaultPushdowns uint64
	FaultSplits    uint64
	FaultExcluded  uint64
	Copies         uint64
	ReservePages   uint64
	ReserveLow     uint64
	LostPages      uint64
	UncoveredPages uint64
	PagesToDump    uint64
	PagesReported  uint64
	ClassPages     [classSlots]uint64
	MissingCPUs    uint64
	TablesSplit    uint64
	TablesJoined   uint64
	ThawNS         uint64
	RegistersNS    uint64
	PagesAcked     uint64
	PageTables     uint64
	Unwatched      uint64
	DMAPages       uint64
	DMADevices     uint32
	DMAUnknown     uint32
	Reserved       [2]uint64
}

type abiAck struct {
	Size     uint32
	NrPages  uint32
	Pages    uint64
	NrAcked  uint32
	Reserved [3]uint32
}

type abiTakeover struct {
	Size          uint32
	Flags         uint32
	UUID          [16]byte
	DeadlineMS    uint64
	PagesReported uint64
	Prepare       abiPrepare
	Freeze        abiFreeze
	Reserved      [4]uint64
}

// ioctl numbers as _IO and _IOWR of asm-generic/ioctl.h make them.
const (
	iocMagic   = 0xd6
	iocDirRW   = 3 << 30
	iocPrepare = iocDirRW | unsafe.Sizeof(abiPrepare{})<<16 | iocMagic<<8 | 1
	iocFreeze  = iocDirRW | unsafe.Sizeof(abiFreeze{})<<16 | iocMagic<<8 | 2
	iocNotes   = iocDirRW | unsafe.Sizeof(abiNotes{})<<16 | iocMagic<<8 | 3
	iocNext    = iocDirRW | unsafe.Sizeof(abiNext{})<<16 | iocMagic<<8 | 4
	iocStats   = iocDirRW | unsafe.Sizeof(abiStats{})<<16 | iocMagic<<8 | 5
	iocThaw    = iocMagic<<8 | 6

	iocTakeover = iocDirRW | unsafe.Sizeof(abiTakeover{})<<16 | iocMagic<<8 | 7
	iocAck      = iocDirRW | unsafe.Sizeof(abiAck{})<<16 | iocMagic<<8 | 8
)
