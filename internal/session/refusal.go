// SPDX-License-Identifier: Apache-2.0

package session

import "fmt"

// Refusal is why the kernel module refused to prepare a session; see enum livedump_refusal.
type Refusal uint32

const (
	RefusalNone Refusal = iota
	RefusalSession
	RefusalSuspend
	RefusalMemoryHotplug
	RefusalLockdown
	RefusalXenPV
	RefusalTracepoint
	RefusalEntryBits
	RefusalStacks
	RefusalLayout
	RefusalVMCoreInfo
	RefusalTSC
	RefusalMemory
	RefusalShutdown
)

var refusals = map[Refusal]string{
	RefusalSession:       "another session exists",
	RefusalSuspend:       "the machine is about to suspend or hibernate",
	RefusalMemoryHotplug: "memory is going online or offline",
	RefusalLockdown:      "kernel lockdown (confidentiality) forbids reading kernel memory",
	RefusalXenPV:         "a Xen PV guest does not own its page tables",
	RefusalTracepoint:    "the kernel's tracepoint exceptions:page_fault_kernel is missing or cannot be used",
	RefusalEntryBits:     "something else uses the page-table bits that mark protected entries",
	RefusalStacks:        "kernel stacks lie in the direct map (a kernel without CONFIG_VMAP_STACK)",
	RefusalLayout:        "RAM, per-CPU areas or idle tasks do not lie where this module knows them",
	RefusalVMCoreInfo:    "the kernel has no VMCOREINFO",
	RefusalTSC:           "the machine has no usable time stamp counter",
	RefusalMemory:        "not enough free memory for the reserve and the session's own tables",
	RefusalShutdown:      "the machine goes down",
}

func (r Refusal) String() string {
	if s, ok := refusals[r]; ok {
		return s
	}
	return fmt.Sprintf("refusal %d, which this program does not know", uint32(r))
}

// RefusedError says why Prepare was refused. It wraps what the errno means: ErrBusy, ErrLockedDown, ErrUnsupported, ErrNoMemory.
type RefusedError struct {
	Refusal Refusal
	err     error
}

func (e *RefusedError) Error() string { return fmt.Sprintf("%v: %v", e.err, e.Refusal) }

func (e *RefusedError) Unwrap() error { return e.err }
