// SPDX-License-Identifier: Apache-2.0

package judge

import (
	"errors"
	"fmt"
	"sort"
	"strings"
)

// ParkedFrames are the functions of a task asleep in read(2) of an empty pipe,
// innermost first, as every kernel of the last years has them.
var ParkedFrames = []string{"pipe_read", "vfs_read", "ksys_read", "do_syscall_64"}

// Expectation is what a dump must show.
type Expectation struct {
	// Before is what the guest said before the freeze and After what it said when
	// the dump was complete. A task that is in both must be in the dump.
	Before, After *Observation
	// Churn is by how many tasks the dump may differ from Before and After, in number, and
	// how many tasks it may have that neither observation has.
	Churn int
	// ParkedTID is a task whose stack is known; 0: none. ParkedFrames are its
	// functions, innermost first; others may stand between them.
	ParkedTID    int
	ParkedFrames []string
	// Modules must be listed.
	Modules []string
	// Active says what CPUs must have been at, by CPU.
	Active map[int]ActiveTask
}

// ActiveTask is a task that was running, in a function.
type ActiveTask struct {
	TID      int
	Function string
}

// inFunction checks that a function is among the frames.
func (a ActiveTask) inFunction(who string, frames []string) error {
	for _, frame := range frames {
		if name, _, _ := strings.Cut(frame, "+"); name == a.Function {
			return nil
		}
	}
	return fmt.Errorf("%s: %s is not in %q", who, a.Function, strings.Join(frames, " < "))
}

func checkSystem(who, hostname, release string, cpus int, e Expectation) error {
	var problems []error
	if hostname != e.Before.Hostname {
		problems = append(problems, fmt.Errorf("%s: hostname is %q, the guest's is %q", who, hostname, e.Before.Hostname))
	}
	if release != e.Before.Release {
		problems = append(problems, fmt.Errorf("%s: kernel release is %q, the guest's is %q", who, release, e.Before.Release))
	}
	if cpus != e.Before.CPUs {
		problems = append(problems, fmt.Errorf("%s: %d CPUs, the guest has %d", who, cpus, e.Before.CPUs))
	}
	return errors.Join(problems...)
}

// checkUptime checks that the dump is from between the two observations, give or
// take some seconds.
func checkUptime(who string, seconds, slack float64, e Expectation) error {
	if seconds < e.Before.UptimeSeconds-slack || seconds > e.After.UptimeSeconds+slack {
		return fmt.Errorf("%s: uptime is %.1f s, the dump was made between %.1f s and %.1f s",
			who, seconds, e.Before.UptimeSeconds, e.After.UptimeSeconds)
	}
	return nil
}

// checkTasks compares a reader's list of tasks with the guest's.
func checkTasks(who string, listed map[int]string, e Expectation) error {
	var problems []error
	// Between the two, pods start whose threads are in both the dump and the later observation.
	least, most := min(len(e.Before.Tasks), len(e.After.Tasks)), max(len(e.Before.Tasks), len(e.After.Tasks))
	if len(listed) < least-e.Churn || len(listed) > most+e.Churn {
		problems = append(problems, fmt.Errorf("%s: %d tasks, the guest had %d before and %d after (allowed difference %d)",
			who, len(listed), len(e.Before.Tasks), len(e.After.Tasks), e.Churn))
	}
	var missing, unknown []string
	for tid, before := range e.Before.Tasks {
		after, stayed := e.After.Tasks[tid]
		if !stayed || after.Start != before.Start {
			continue
		}
		comm, ok := listed[tid]
		switch {
		case !ok:
			missing = append(missing, fmt.Sprintf("%d %s", tid, before.Comm))
		case before.Comm == after.Comm && !sameName(comm, before.Comm):
			problems = append(problems, fmt.Errorf("%s: task %d is %q, the guest's is %q", who, tid, comm, before.Comm))
		}
	}
	for tid, comm := range listed {
		_, before := e.Before.Tasks[tid]
		_, after := e.After.Tasks[tid]
		if !before && !after {
			unknown = append(unknown, fmt.Sprintf("%d %s", tid, comm))
		}
	}
	if len(missing) > 0 {
		sort.Strings(missing)
		problems = append(problems, fmt.Errorf("%s: %d tasks that lived throughout are missing: %s", who, len(missing), few(missing)))
	}
	if len(unknown) > e.Churn {
		sort.Strings(unknown)
		problems = append(problems, fmt.Errorf("%s: %d tasks that the guest never had: %s", who, len(unknown), few(unknown)))
	}
	return errors.Join(problems...)
}

// few shortens a list for a message.
func few(list []string) string {
	const shown = 8
	if len(list) > shown {
		return strings.Join(list[:shown], ", ") + ", ..."
	}
	return strings.Join(list, ", ")
}

// sameName compares the name in a task's structure with that of /proc, which
// adds the work to a kworker's name and gives long names of kernel threads whole.
func sameName(comm, proc string) bool {
	if strings.HasPrefix(proc, "kworker/") {
		proc, _, _ = strings.Cut(proc, "-")
		proc, _, _ = strings.Cut(proc, "+")
		comm, _, _ = strings.Cut(comm, "-")
		comm, _, _ = strings.Cut(comm, "+")
	}
	const length = 15 // TASK_COMM_LEN without its end
	if len(proc) > length {
		proc = proc[:length]
	}
	return comm == proc
}
