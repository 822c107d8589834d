// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"fmt"
	"regexp"
	"strings"
)

// consoleTrouble matches what a kernel prints when something is wrong with it.
var consoleTrouble = regexp.MustCompile(strings.Join([]string{
	`\bBUG: `,
	`\bkernel BUG at `,
	// SLUB puts the cache between the word and the colon.
	`\bBUG \S+ \(.*\): `,
	`\bWARNING: `,
	`\bOops\b`,
	`\bgeneral protection fault\b`,
	`\binvalid opcode: 0000\b`,
	`\bdouble fault\b`,
	`\bKernel panic\b`,
	`\bCall Trace:`,
	`\bsoft lockup\b`,
	`\bhard LOCKUP\b`,
	`\bblocked for more than \d+ seconds\b`,
	`\brcu: INFO: `,
	`\bdetected (expedited )?stalls? on\b`,
	// Checks that have given up see nothing from then on.
	`\bINFO: trying to register non-static key\b`,
	`\bINFO: lockdep is turned off\b`,
	`\bturning off the locking correctness validator\b`,
	`\bODEBUG: `,
	`\bpagealloc: (memory corruption|single bit error)\b`,
	`\bentered softirq \d+ .* with preempt_count\b`,
	`\bexited with (preempt_count|irqs disabled)\b`,
	`\bself-detected stall\b`,
	`\bunable to handle (page fault|kernel)\b`,
	`\bBad page (state|map)\b`,
	`\bbad p[gum4]d\b`,
	`\bWorkqueue lockup\b`,
	`\bworkqueue lockup\b`,
	`\bcut here\b`,
	`\bnobody cared\b`,
	`\bUBSAN:`,
	`\bKASAN:`,
	`\brefcount_t: `,
	`\blist_(add|del) corruption\b`,
	`\bOut of memory: Killed process\b`,
	`\bguest init:`,
}, "|"))

// consoleHarmless matches what only looks like trouble: advice on the machine.
var consoleHarmless = regexp.MustCompile(`\bWARNING: Unprivileged eBPF is enabled\b`)

// ConsoleError lists the lines of a guest's console that say that something is
// wrong with its kernel.
type ConsoleError struct {
	Lines []string
}

func (e *ConsoleError) Error() string {
	const shown = 10
	lines := e.Lines
	more := ""
	if len(lines) > shown {
		more = fmt.Sprintf("\n  ... and %d more", len(lines)-shown)
		lines = lines[:shown]
	}
	return "the guest's console has trouble:\n  " + strings.Join(lines, "\n  ") + more
}

// CheckConsole returns a *ConsoleError if the log of a console has a line of a
// BUG, WARNING, Oops, panic, lockup, hung task or RCU stall, or of a check of a debug kernel (KASAN, lockdep,
// sleeping where nobody may, DEBUG_OBJECTS) that found something or gave up.
func CheckConsole(log string) error {
	var found []string
	for _, line := range strings.Split(log, "\n") {
		if consoleTrouble.MatchString(line) && !consoleHarmless.MatchString(line) {
			found = append(found, strings.TrimRight(line, "\r"))
		}
	}
	if len(found) > 0 {
		return &ConsoleError{found}
	}
	return nil
}
