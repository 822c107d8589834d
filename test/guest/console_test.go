// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"errors"
	"strings"
	"testing"
)

func TestCheckConsoleFindsTrouble(t *testing.T) {
	for _, line := range []string{
		"[   10.1] BUG: unable to handle page fault for address: ff48",
		"[   10.1] BUG: kernel NULL pointer dereference, address: 0000000000000008",
		"[   10.1] kernel BUG at mm/slub.c:310!",
		"[   10.1] WARNING: CPU: 1 PID: 12 at arch/x86/mm/fault.c:1091 spurious_kernel_fault+0x5a",
		"[   10.1] WARNING: possible circular locking dependency detected",
		"[   10.1] Oops: 0003 [#1] PREEMPT SMP PTI",
		"[   10.1] general protection fault, probably for non-canonical address",
		"[   10.1] watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [cat:120]",
		"[   10.1] NMI watchdog: Watchdog detected hard LOCKUP on cpu 0",
		"[   10.1] INFO: task jbd2/vda-8:77 blocked for more than 120 seconds.",
		"[   10.1] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
		"[   10.1] rcu: INFO: rcu_preempt self-detected stall on CPU",
		"[   10.1] Kernel panic - not syncing: Attempted to kill init!",
		"[   10.1] ------------[ cut here ]------------",
		"[   10.1] BUG: Bad page state in process cat  pfn:12345",
		"[   10.1] BUG: workqueue lockup - pool cpus=0 node=0",
		"[   10.1] Call Trace:",
		"guest init: load /lib/modules/x.ko: exec format error",
	} {
		err := CheckConsole("[    0.1] Linux version 6.1\r\n" + line + "\r\n")
		var trouble *ConsoleError
		if !errors.As(err, &trouble) {
			t.Errorf("%q: not found", line)
			continue
		}
		if len(trouble.Lines) != 1 || trouble.Lines[0] != line {
			t.Errorf("%q: got %q", line, trouble.Lines)
		}
	}
}

func TestCheckConsoleOfHealthyGuest(t *testing.T) {
	const log = `[    0.000000] Linux version 6.1.0-56-cloud-amd64
[    0.000000] BIOS-provided physical RAM map:
[    0.051234] Spectre V2 : WARNING: Unprivileged eBPF is enabled with eIBRS on, data leaks possible via Spectre v2 BHB attacks!
[    0.061234] debug: ignoring loglevel setting.
[    1.606000] pci_bus 0000:00: root bus resource [io  0x0000-0x0cf7 window]
[    6.964840] livedump: loading out-of-tree module taints kernel.
[    9.290734] livedump: session x: frozen in 74410 us
[    9.300000] rcu: Hierarchical SRCU implementation.
`
	if err := CheckConsole(log); err != nil {
		t.Error(err)
	}
}

func TestConsoleErrorIsShort(t *testing.T) {
	err := CheckConsole(strings.Repeat("Call Trace:\n", 1000))
	if n := strings.Count(err.Error(), "\n"); n > 12 || !strings.Contains(err.Error(), "990 more") {
		t.Errorf("%d lines: %v", n, err)
	}
}
