// SPDX-License-Identifier: Apache-2.0

package kdump

import (
	"errors"
	"fmt"
	"time"
)

// Meta is all that a dump says besides its pages. Everything in it is known once memory is frozen.
type Meta struct {
	Session Session
	Utsname Utsname

	MaxPFN uint64 // one more than the last page frame of RAM
	// Pages that will be given to the Writer, lost ones included: livedump_freeze.pages_to_dump.
	Pages uint64
	// RAM is where there is memory, in any order. Page frames that are dumped are added to it.
	RAM []PFNRange

	NrCPUs    int // CPUs with registers in Notes
	DumpLevel int // makedumpfile's bits

	// Notes are the ELF notes, with the text of VMCOREINFO at VMCoreInfoOffset in them.
	Notes            []byte
	VMCoreInfoOffset uint64
	VMCoreInfoBytes  uint64

	FrozenAt   time.Time
	Stop       time.Duration      // longest time that any CPU was held
	ClassPages [classSlots]uint64 // all RAM by class: livedump_freeze.class_pages
}

// vmcoreinfo checks the bounds of the text and reads it.
func (m *Meta) vmcoreinfo() (VMCoreInfo, error) {
	n := uint64(len(m.Notes))
	if m.VMCoreInfoBytes == 0 || m.VMCoreInfoOffset > n || m.VMCoreInfoBytes > n-m.VMCoreInfoOffset {
		return nil, fmt.Errorf("VMCOREINFO at %d, %d bytes, is not within %d bytes of ELF notes",
			m.VMCoreInfoOffset, m.VMCoreInfoBytes, n)
	}
	return ParseVMCoreInfo(m.Notes[m.VMCoreInfoOffset:][:m.VMCoreInfoBytes]), nil
}

func (m *Meta) validate() error {
	names := [...]string{"sysname", "nodename", "release", "version", "machine", "domainname"}
	for i, f := range m.Utsname.fields() {
		if len(*f) >= utsFieldBytes {
			return fmt.Errorf("utsname.%s: %w", names[i], errTooLongForUts)
		}
	}
	// libkdumpfile takes all of utsname for nonsense if release or version is empty, and then does not
	// know the machine either; drgn fails with "Key has no value".
	if m.Utsname.Release == "" || m.Utsname.Version == "" {
		return errors.New("utsname.release or utsname.version is empty")
	}
	if m.Utsname.Machine != machineX86 {
		return fmt.Errorf("utsname.machine is %q; only %s is supported", m.Utsname.Machine, machineX86)
	}
	if m.NrCPUs < 1 {
		return errors.New("no CPU has registers in the ELF notes")
	}
	for _, r := range m.RAM {
		if r.Start > r.End || r.End > m.MaxPFN {
			return fmt.Errorf("RAM range %#x-%#x is not below max_pfn %#x", r.Start, r.End, m.MaxPFN)
		}
	}
	notes, err := ParseNotes(m.Notes)
	if err != nil {
		return fmt.Errorf("ELF notes: %w", err)
	}
	prstatus := 0
	for _, n := range notes {
		if n.Type == ntPRStatus && n.Name == "CORE" {
			prstatus++
		}
	}
	if prstatus != m.NrCPUs {
		return fmt.Errorf("ELF notes: %d NT_PRSTATUS for %d CPUs", prstatus, m.NrCPUs)
	}
	return nil
}

const machineX86 = "x86_64"
