// SPDX-License-Identifier: Apache-2.0

package judge

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// crashOutput is the output of crash's commands, and what it said besides.
type crashOutput struct {
	sys, ps, btAll, btParked, btEach, mod, kmem, log string
	// session is everything that did not go to a command's file.
	session string
}

// crashSystem is what `sys` says.
type crashSystem struct {
	hostname, release string
	uptimeSeconds     float64
	cpus, tasks       int
}

var crashField = regexp.MustCompile(`(?m)^\s*([A-Z][A-Z ]*): (.*)$`)

func parseCrashSys(text string) (crashSystem, error) {
	fields := map[string]string{}
	for _, m := range crashField.FindAllStringSubmatch(text, -1) {
		fields[m[1]] = strings.TrimSpace(m[2])
	}
	s := crashSystem{hostname: fields["NODENAME"], release: fields["RELEASE"]}
	var err error
	if s.uptimeSeconds, err = parseCrashUptime(fields["UPTIME"]); err != nil {
		return s, fmt.Errorf("crash sys: uptime %q: %w", fields["UPTIME"], err)
	}
	// "2" or "2 [OFFLINE: 1]"
	cpus, _, _ := strings.Cut(fields["CPUS"], " ")
	if s.cpus, err = strconv.Atoi(cpus); err != nil {
		return s, fmt.Errorf("crash sys: CPUs: %w", err)
	}
	if s.tasks, err = strconv.Atoi(fields["TASKS"]); err != nil {
		return s, fmt.Errorf("crash sys: tasks: %w", err)
	}
	return s, nil
}

var crashUptime = regexp.MustCompile(`^(?:(\d+) days?, )?(\d+):(\d\d):(\d\d)$`)

func parseCrashUptime(text string) (float64, error) {
	m := crashUptime.FindStringSubmatch(text)
	if m == nil {
		return 0, errors.New("not of the form [N days, ]HH:MM:SS")
	}
	seconds := 0
	for i, unit := range []int{86400, 3600, 60, 1} {
		if m[i+1] == "" {
			continue
		}
		n, err := strconv.Atoi(m[i+1])
		if err != nil {
			return 0, err
		}
		seconds += n * unit
	}
	return float64(seconds), nil
}

var crashTask = regexp.MustCompile(`^>?\s*(\d+)\s+\d+\s+\d+\s+[0-9a-f]{16}\s+([A-Z]{2})\s+[\d.]+\s+\d+\s+\d+\s+(.*)$`)

// parseCrashPS returns the tasks that `ps` lists, but for the idle tasks, which
// all have the number 0 and are counted, and which of the tasks are zombies.
func parseCrashPS(text string) (tasks map[int]string, zombies map[int]bool, idle int, err error) {
	tasks, zombies = map[int]string{}, map[int]bool{}
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	if len(lines) < 2 || !strings.Contains(lines[0], "COMM") {
		return nil, nil, 0, fmt.Errorf("crash ps: no list of tasks, but %q", lines[0])
	}
	for _, line := range lines[1:] {
		m := crashTask.FindStringSubmatch(line)
		if m == nil {
			return nil, nil, 0, fmt.Errorf("crash ps: unexpected line %q", line)
		}
		tid, err := strconv.Atoi(m[1])
		if err != nil {
			return nil, nil, 0, err
		}
		if tid == 0 {
			idle++
			continue
		}
		if _, twice := tasks[tid]; twice {
			return nil, nil, 0, fmt.Errorf("crash ps: task %d is listed twice", tid)
		}
		comm := m[3]
		if strings.HasPrefix(comm, "[") && strings.HasSuffix(comm, "]") {
			comm = comm[1 : len(comm)-1]
		}
		tasks[tid] = comm
		zombies[tid] = m[2] == "ZO"
	}
	return tasks, zombies, idle, nil
}

// backtrace is one task of bt's output.
type backtrace struct {
	tid, cpu int
	comm     string
	// frames are functions, innermost first.
	frames []string
	// user says that the registers are of user mode: no frame need be there.
	user bool
	// noStack says that the task has given back its stack.
	noStack bool
	// misread says that crash took the registers from before an interrupt from the wrong place: see withoutIRQStackWarnings.
	misread bool
	// trouble are lines by which bt says that it could not go on.
	trouble []string
}

var (
	crashHeading = regexp.MustCompile(`^PID: (\d+)\s+TASK: [0-9a-f]+\s+CPU: (\d+)\s+COMMAND: "(.*)"$`)
	crashFrame   = regexp.MustCompile(`^\s*#\d+ \[[0-9a-f]+\] (\S+) at [0-9a-f]+`)
	crashRIP     = regexp.MustCompile(`^\s*\[exception RIP: ([^\]+]+)`)
	crashTrouble = regexp.MustCompile(`(?i)^bt: |invalid|cannot|failed|corrupt|seek error|page excluded|not in (the )?dump|unable`)
)

// What crash shows where it has taken the registers from before an interrupt from the wrong place.
const (
	irqStackEnds = "--- <IRQ stack> ---"
	nowhere      = "    [exception RIP: no symbolic reference]"
)

func parseBacktraces(text string) []backtrace {
	var all []backtrace
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		if m := crashHeading.FindStringSubmatch(line); m != nil {
			tid, _ := strconv.Atoi(m[1]) // digits by the expression
			cpu, _ := strconv.Atoi(m[2])
			all = append(all, backtrace{tid: tid, cpu: cpu, comm: m[3]})
			continue
		}
		if len(all) == 0 {
			if crashTrouble.MatchString(line) {
				all = append(all, backtrace{tid: -1, cpu: -1, trouble: []string{line}})
			}
			continue
		}
		b := &all[len(all)-1]
		switch {
		case crashFrame.MatchString(line):
			b.frames = append(b.frames, crashFrame.FindStringSubmatch(line)[1])
		case crashRIP.MatchString(line):
			b.frames = append(b.frames, crashRIP.FindStringSubmatch(line)[1])
			b.misread = b.misread || line == nowhere && lines[i-1] == irqStackEnds
		case strings.TrimSpace(line) == "(no stack)":
			b.noStack = true
		case strings.Contains(line, "CS: 0033"):
			b.user = true
		case crashTrouble.MatchString(line):
			b.trouble = append(b.trouble, strings.TrimSpace(line))
		}
	}
	return all
}

// checkActive checks `bt -a`: each CPU has a backtrace that is not empty, free of
// complaints. wanted is what CPUs must have been at.
func checkActive(text string, cpus int, wanted map[int]ActiveTask) error {
	all := parseBacktraces(text)
	seen := map[int]bool{}
	var problems []error
	for _, b := range all {
		if len(b.trouble) > 0 {
			problems = append(problems, fmt.Errorf("crash bt -a: CPU %d: %s", b.cpu, strings.Join(b.trouble, "; ")))
		}
		if len(b.frames) == 0 && !b.user {
			problems = append(problems, fmt.Errorf("crash bt -a: CPU %d (%s): no backtrace", b.cpu, b.comm))
		}
		seen[b.cpu] = true
		if want, ok := wanted[b.cpu]; ok {
			if b.tid != want.TID {
				problems = append(problems, fmt.Errorf("crash bt -a: CPU %d: task %d, want %d", b.cpu, b.tid, want.TID))
			}
			// Where crash has lost its way it can't name the function. drgn does, and must.
			if err := want.inFunction(fmt.Sprintf("crash bt -a: CPU %d", b.cpu), b.frames); err != nil && !b.misread {
				problems = append(problems, err)
			}
		}
	}
	for cpu := range cpus {
		if !seen[cpu] {
			problems = append(problems, fmt.Errorf("crash bt -a: nothing of CPU %d", cpu))
		}
	}
	return errors.Join(problems...)
}

// checkFrames checks that frames holds the wanted functions in their order.
// Others may stand between them. Newer kernels have functions of their own for pipes without a name (anon_pipe_read).
func checkFrames(who string, frames, wanted []string) error {
	rest := frames
	for _, name := range wanted {
		at := -1
		for i, frame := range rest {
			if frame == name || frame == "anon_"+name {
				at = i
				break
			}
		}
		if at < 0 {
			return fmt.Errorf("%s: %s is not in its place in %s", who, name, strings.Join(frames, " < "))
		}
		rest = rest[at+1:]
	}
	return nil
}

var crashModule = regexp.MustCompile(`(?m)^[0-9a-f]{16}\s+(\S+)\s+[0-9a-f]{16}\s+\d+`)

func parseCrashMod(text string) map[string]bool {
	modules := map[string]bool{}
	for _, m := range crashModule.FindAllStringSubmatch(text, -1) {
		modules[m[1]] = true
	}
	return modules
}

var crashTotalMem = regexp.MustCompile(`(?m)^\s*TOTAL MEM\s+(\d+)\s`)

// parseCrashTotalMem returns the pages that `kmem -i` counts.
func parseCrashTotalMem(text string) (int64, error) {
	m := crashTotalMem.FindStringSubmatch(text)
	if m == nil {
		return 0, errors.New("crash kmem -i: no line TOTAL MEM")
	}
	return strconv.ParseInt(m[1], 10, 64)
}

// withoutIRQStackWarnings is what crash complains of, but for what it makes of a CPU of 5.10 that was on its
// IRQ stack: there it expects the registers from before the interrupt one word off, shows nonsense, and says so.
func (o crashOutput) withoutIRQStackWarnings() string {
	const misread = irqStackEnds + "\n" + nowhere + "\n"
	return strings.Replace(o.session, "WARNING: possibly bogus exception frame\n", "", strings.Count(o.btAll+o.btEach, misread))
}

// takenForFaster says whether an uptime is right if crash took the 250 ticks a second of Debian's 6.12 for 1000, as
// crash 8.0.6 and 9.0.2 do: jiffies begin 300 s before they wrap, and all of crash's seconds are a quarter as long but
// for these.
func takenForFaster(seconds float64, e Expectation) bool {
	const wrap, times = 300, 4
	// Whole seconds, each of them four.
	return strings.HasPrefix(e.Before.Release, "6.12.") && checkUptime("", (seconds-wrap)*times+wrap, 3+times, e) == nil
}

// checkCrash compares crash's output with what the guest said. bt -a is checked
// only if this crash can read the active tasks of this kernel.
func checkCrash(out crashOutput, e Expectation) error {
	var problems []error
	add := func(err error) {
		if err != nil {
			problems = append(problems, err)
		}
	}
	if text := strings.TrimSpace(out.withoutIRQStackWarnings()); text != "" {
		add(fmt.Errorf("crash complains: %s", text))
	}
	sys, err := parseCrashSys(out.sys)
	add(err)
	if err == nil {
		add(checkSystem("crash sys", sys.hostname, sys.release, sys.cpus, e))
		// crash reads jiffies, which idle CPUs may leave behind by some ticks, and cuts.
		if err := checkUptime("crash sys", sys.uptimeSeconds, 3, e); err != nil && !takenForFaster(sys.uptimeSeconds, e) {
			add(err)
		}
	}
	tasks, zombies, idle, err := parseCrashPS(out.ps)
	add(err)
	if err == nil {
		add(checkTasks("crash ps", tasks, e))
		if idle != e.Before.CPUs {
			add(fmt.Errorf("crash ps: %d idle tasks for %d CPUs", idle, e.Before.CPUs))
		}
	}
	if e.ParkedTID != 0 {
		add(checkParked(out.btParked, e))
	}
	add(checkActive(out.btAll, e.Before.CPUs, e.Active))
	add(checkEach(out.btEach, len(tasks), zombies))
	modules := parseCrashMod(out.mod)
	for _, name := range e.Modules {
		if !modules[name] {
			add(fmt.Errorf("crash mod: %s is not listed", name))
		}
	}
	if pages, err := parseCrashTotalMem(out.kmem); err != nil {
		add(err)
	} else if kib := pages * 4; kib < e.Before.MemTotalKiB*9/10 || kib > e.Before.MemTotalKiB*11/10 {
		add(fmt.Errorf("crash kmem -i: %d KiB of memory, the guest has %d KiB", kib, e.Before.MemTotalKiB))
	}
	if !strings.Contains(out.log, "Linux version "+e.Before.Release) {
		add(errors.New("crash log: the kernel's first message is not there"))
	}
	return errors.Join(problems...)
}

func checkParked(text string, e Expectation) error {
	all := parseBacktraces(text)
	if len(all) != 1 || all[0].tid != e.ParkedTID {
		return fmt.Errorf("crash bt %d: no backtrace of the parked task", e.ParkedTID)
	}
	if len(all[0].trouble) > 0 {
		return fmt.Errorf("crash bt %d: %s", e.ParkedTID, strings.Join(all[0].trouble, "; "))
	}
	return checkFrames(fmt.Sprintf("crash bt %d", e.ParkedTID), all[0].frames, e.ParkedFrames)
}

// checkEach checks `foreach bt`: every task has a backtrace, but for zombies that
// have given back their stack.
func checkEach(text string, tasks int, zombies map[int]bool) error {
	all := parseBacktraces(text)
	if len(all) < tasks {
		return fmt.Errorf("crash foreach bt: %d backtraces of %d tasks", len(all), tasks)
	}
	var problems []error
	for _, b := range all {
		switch {
		case len(b.trouble) > 0:
			problems = append(problems, fmt.Errorf("crash foreach bt: task %d (%s): %s", b.tid, b.comm, strings.Join(b.trouble, "; ")))
		case len(b.frames) == 0 && !b.user && !(b.noStack && zombies[b.tid]):
			problems = append(problems, fmt.Errorf("crash foreach bt: task %d (%s): no backtrace", b.tid, b.comm))
		}
	}
	return errors.Join(problems...)
}
