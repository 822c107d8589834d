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
		"[   10.1] WARNING: possible recursive locking detected",
		"[   10.1] WARNING: possible irq lock inversion dependency detected",
		"[   10.1] WARNING: inconsistent lock state",
		"[   10.1] WARNING: HARDIRQ-safe -> HARDIRQ-unsafe lock order detected",
		"[   10.1] WARNING: suspicious RCU usage",
		"[   10.1] WARNING: bad unlock balance detected!",
		"[   10.1] WARNING: held lock freed!",
		"[   10.1] WARNING: lock held when returning to user space!",
		"[   10.1] WARNING: arch/x86/mm/fault.c:1091 at spurious_kernel_fault+0x5a, CPU#1: abi/12",
		"[   10.1] [ BUG: Invalid wait context ]",
		"[   10.1] INFO: trying to register non-static key.",
		"[   10.1] INFO: lockdep is turned off.",
		"[   10.1] turning off the locking correctness validator.",
		"[   10.1] BUG: KASAN: use-after-free in ld_truth_take+0x2d2/0x630 [livedump]",
		"[   10.1] BUG: sleeping function called from invalid context at mm/slab.h:420",
		"[   10.1] BUG: scheduling while atomic: livedump-agent/121/0x00000002",
		"[   10.1] BUG: using smp_processor_id() in preemptible [00000000] code: abi/12",
		"[   10.1] BUG kmalloc-64 (Tainted: G           OE     ): Redzone overwritten",
		"[   10.1] BUG: Bad page map in process cat  pte:8000 pmd:6000",
		"[   10.1] pagealloc: memory corruption",
		"[   10.1] ODEBUG: free active (active state 0) object type: timer_list hint: expire+0x0/0x10",
		"[   10.1] softirq: huh, entered softirq 3 NET_RX with preempt_count 00000101, exited with 00000100?",
		"[   10.1] note: livedump-agent[121] exited with preempt_count 1",
		"[   10.1] INFO: rcu_tasks detected stalls on tasks:",
		"[   10.1] rcu: INFO: rcu_preempt detected expedited stalls on CPUs/tasks: { 0-... } 21 jiffies s: 33",
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
[    7.000000] Lock dependency validator: Copyright (c) 2006 Red Hat, Inc., Ingo Molnar
[    7.010000] Running RCU self tests
[    7.020000] kasan: KernelAddressSanitizer initialized
[    7.030000] INFO: NMI handler (perf_event_nmi_handler) took too long to run: 2.345 msecs
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
