// SPDX-License-Identifier: Apache-2.0

package judge

import (
	"fmt"
	"strings"
	"testing"
)

// observation is a guest with two CPUs and a few tasks.
func observation(uptime float64, tasks ...Task) *Observation {
	o := &Observation{
		Hostname: "g1", Release: "6.1.0-56-cloud-amd64", UptimeSeconds: uptime, CPUs: 2,
		MemTotalKiB: 480040, Tasks: map[int]Task{},
	}
	for _, t := range tasks {
		o.Tasks[t.TID] = t
	}
	return o
}

var (
	initTask   = Task{TID: 1, Comm: "init", Start: 5}
	kworker    = Task{TID: 7, Comm: "kworker/0:0-events", Start: 6}
	longName   = Task{TID: 9, Comm: "a_kernel_thread_of_long_name", Start: 7}
	parkedTask = Task{TID: 101, Comm: "ld-parked", Start: 900}
	shortLived = Task{TID: 200, Comm: "sh", Start: 1000}
)

func expectation() Expectation {
	return Expectation{
		Before:    observation(62.5, initTask, kworker, longName, parkedTask, shortLived),
		After:     observation(75, initTask, kworker, longName, parkedTask),
		Churn:     1,
		ParkedTID: 101, ParkedFrames: ParkedFrames,
		Modules: []string{"livedump"},
	}
}

// good is what crash says of a dump of that guest.
func good() crashOutput {
	return crashOutput{
		sys: `      KERNEL: /judge/vmlinux  [TAINTED]
    DUMPFILE: /judge/dump  [PARTIAL DUMP]
        CPUS: 2
        DATE: Sat Nov 21 16:12:50 UTC 2026
      UPTIME: 00:01:10
LOAD AVERAGE: 0.91, 0.21, 0.07
       TASKS: 6
    NODENAME: g1
     RELEASE: 6.1.0-56-cloud-amd64
     VERSION: #1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2 (2026-11-16)
     MACHINE: x86_64  (2600 Mhz)
      MEMORY: 1 GB
       PANIC: ""
`,
		ps: `      PID    PPID  CPU       TASK        ST  %MEM      VSZ      RSS  COMM
        0       0   0  ffffffffa381aa40  RU   0.0        0        0  [swapper/0]
>       0       0   1  ffff88a481254800  RU   0.0        0        0  [swapper/1]
        1       0   1  ffff88a4811fc800  IN   0.7  1227932     3732  init
        7       2   0  ffff88a4811fc801  ID   0.0        0        0  [kworker/0:0]
        9       2   0  ffff88a4811fc802  IN   0.0        0        0  [a_kernel_thread]
>     101       1   0  ffff88a4811fc803  IN   0.1  1227932     3732  ld-parked
      201       1   0  ffff88a4811fc804  ZO   0.0        0        0  sh
`,
		btParked: `PID: 101      TASK: ffff88a4811fc803  CPU: 0    COMMAND: "ld-parked"
 #0 [ffffcf4280423d00] __schedule at ffffffffa2810e3d
 #1 [ffffcf4280423d58] schedule at ffffffffa281154a
 #2 [ffffcf4280423d70] pipe_read at ffffffffa215897f
 #3 [ffffcf4280423e00] vfs_read at ffffffffa214cf2e
 #4 [ffffcf4280423ea0] ksys_read at ffffffffa214d877
 #5 [ffffcf4280423ed8] do_syscall_64 at ffffffffa2803f4d
 #6 [ffffcf4280423f50] entry_SYSCALL_64_after_hwframe at ffffffffa2a00126
    RIP: 000000000047b6fd  RSP: 00007ffdc140b808  RFLAGS: 00000246
    ORIG_RAX: 0000000000000000  CS: 0033  SS: 002b
`,
		btAll: `PID: 101      TASK: ffff88a4811fc803  CPU: 0    COMMAND: "ld-parked"
    RIP: 000000000047b6fd  RSP: 00007ffdc140b808  RFLAGS: 00000246
    ORIG_RAX: ffffffffffffffff  CS: 0033  SS: 002b

PID: 0        TASK: ffff88a481254800  CPU: 1    COMMAND: "swapper/1"
    [exception RIP: native_safe_halt+11]
    RIP: ffffffff8a017a0b  RSP: ff6d9a548009bed8  RFLAGS: 00000246
    CS: 0010  SS: 0018
 #0 [ff6d9a548009bed8] amd_e400_idle at ffffffff8963c09d
 #1 [ff6d9a548009bee0] default_idle_call at ffffffff8a017b58
`,
		btEach: eachTask(1, 7, 9, 101, 201),
		mod: `     MODULE       NAME                         BASE          SIZE  OBJECT FILE
ffffffffc0238340  virtio_ring            ffffffffc0231000   49152  (not loaded)  [CONFIG_KALLSYMS]
ffffffffc027f1c0  livedump               ffffffffc0274000  323584  (not loaded)  [CONFIG_KALLSYMS]
`,
		kmem: `                 PAGES        TOTAL      PERCENTAGE
    TOTAL MEM   120263     469.8 MB         ----
         FREE   111703     436.3 MB   92% of TOTAL MEM
`,
		log: "[    0.000000] Linux version 6.1.0-56-cloud-amd64 (debian-kernel@lists.debian.org)\n",
	}
}

func eachTask(tids ...int) string {
	var b strings.Builder
	for _, tid := range tids {
		fmt.Fprintf(&b, "PID: %d  TASK: ffff88a4811fc800  CPU: 0  COMMAND: \"x\"\n #0 [ffffcf4280423d00] __schedule at ffffffffa2810e3d\n\n", tid)
	}
	return b.String()
}

func stackless(tid int) string {
	return fmt.Sprintf("PID: %d  TASK: ffff88a4811fc800  CPU: 0  COMMAND: \"x\"\n(no stack)\n\n", tid)
}

func TestCrashOfGoodDump(t *testing.T) {
	if err := checkCrash(good(), expectation()); err != nil {
		t.Fatal(err)
	}
}

const misreadIRQStack = "--- <IRQ stack> ---\n    [exception RIP: no symbolic reference]\n"

func TestCrashMisreadsAnIRQStack(t *testing.T) {
	out := good()
	out.session = "WARNING: possibly bogus exception frame\n"
	out.btAll += misreadIRQStack
	if err := checkCrash(out, expectation()); err != nil {
		t.Fatal(err)
	}
}

func TestCrashTakesTicksForFaster(t *testing.T) {
	e := expectation()
	e.Before.UptimeSeconds, e.After.UptimeSeconds = 49, 54.4
	for release, want := range map[string]bool{"6.12.117+deb13-cloud-amd64": true, "6.1.0-56-cloud-amd64": false} {
		e.Before.Release = release
		if got := takenForFaster(237, e); got != want {
			t.Errorf("%s: %t, want %t", release, got, want)
		}
	}
	if e.Before.Release = "6.12.117"; takenForFaster(54, e) || takenForFaster(220, e) {
		t.Error("an uptime that is wrong either way passes")
	}
}

func TestCrashNamesTheFunctionUnlessItMisreads(t *testing.T) {
	const heading = "PID: 119      TASK: ffff98ed04daddc0  CPU: 2    COMMAND: \"stuck\"\n"
	const interrupted = heading + " #0 [ffffaf4a400ecfe8] __sysvec_call_function_single at ffffffff9564fb4c\n"
	cpus := "PID: 0  TASK: ffff98ed04daddc1  CPU: 0  COMMAND: \"swapper/0\"\n #0 [ffffaf4a400ecfe8] default_idle at ffffffff9564fb4c\n" +
		"PID: 0  TASK: ffff98ed04daddc2  CPU: 1  COMMAND: \"swapper/1\"\n #0 [ffffaf4a400ecfe8] default_idle at ffffffff9564fb4c\n"
	want := map[int]ActiveTask{2: {TID: 119, Function: "spins"}}
	for name, test := range map[string]struct {
		text, want string
	}{
		"named":           {heading + "    [exception RIP: spins+34]\n", ""},
		"not named":       {interrupted, "spins is not in"},
		"misread":         {interrupted + misreadIRQStack, ""},
		"misread another": {interrupted + strings.Replace(heading, "CPU: 2", "CPU: 3", 1) + misreadIRQStack, "spins is not in"},
		"another task":    {strings.Replace(interrupted, "119", "120", 1) + misreadIRQStack, "task 120, want 119"},
	} {
		err := checkActive(cpus+test.text, 3, want)
		switch {
		case test.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}

// Each change is one thing that can be wrong with a dump, and each must be told.
func TestCrashOfBadDump(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*crashOutput, *Expectation)
		want   string
	}{
		"complaint": {func(o *crashOutput, _ *Expectation) { o.session = "WARNING: something\n" }, "crash complains: WARNING"},
		"bogus registers": {func(o *crashOutput, _ *Expectation) {
			o.session = "WARNING: possibly bogus exception frame\nWARNING: possibly bogus exception frame\n"
			o.btAll += misreadIRQStack
		}, "crash complains: WARNING"},
		"hostname":      {replace("g1", "localhost"), `hostname is "localhost"`},
		"release":       {replace("RELEASE: 6.1.0-56", "RELEASE: 6.1.0-55"), "kernel release is"},
		"uptime early":  {replace("00:01:10", "00:00:50"), "uptime is 50.0 s"},
		"uptime late":   {replace("00:01:10", "1 days, 00:01:10"), "uptime is 86470.0 s"},
		"uptime unread": {replace("00:01:10", "(unknown)"), "not of the form"},
		"CPUs":          {replace("CPUS: 2", "CPUS: 1"), "1 CPUs, the guest has 2"},
		"no tasks":      {func(o *crashOutput, _ *Expectation) { o.ps = "" }, "no list of tasks"},
		"task missing":  {cutLine("[kworker/0:0]"), "1 tasks that lived throughout are missing: 7 kworker"},
		"too few tasks": {func(o *crashOutput, e *Expectation) {
			e.Before = observation(62.5, many(50)...)
			e.After.Tasks = e.Before.Tasks
		}, "the guest had 50 before and 50 after"},
		"unknown tasks":    {addTasks(300, 301), "3 tasks that the guest never had"},
		"task twice":       {addTasks(7), "task 7 is listed twice"},
		"task name":        {replace("  init", "  inid"), `task 1 is "inid"`},
		"idle task":        {cutLine("[swapper/0]"), "1 idle tasks for 2 CPUs"},
		"no parked task":   {func(o *crashOutput, _ *Expectation) { o.btParked = "" }, "no backtrace of the parked task"},
		"parked elsewhere": {replace("pipe_read at", "futex_wait at"), "pipe_read is not in its place"},
		"parked in disorder": {func(o *crashOutput, _ *Expectation) {
			o.btParked = strings.NewReplacer("pipe_read", "ksys_read", "ksys_read", "pipe_read").Replace(o.btParked)
		}, "vfs_read is not in its place"},
		"parked broken": {func(o *crashOutput, _ *Expectation) {
			o.btParked += "bt: cannot transition from exception stack\n"
		}, "cannot transition"},
		"CPU without backtrace": {func(o *crashOutput, _ *Expectation) {
			o.btAll = o.btAll[:strings.Index(o.btAll, "    [exception RIP")]
		}, "CPU 1 (swapper/1): no backtrace"},
		"CPU missing": {func(o *crashOutput, _ *Expectation) {
			o.btAll = o.btAll[:strings.Index(o.btAll, "PID: 0")]
		}, "nothing of CPU 1"},
		"CPU's stack unread": {func(o *crashOutput, _ *Expectation) {
			o.btAll += "bt: read of stack at fffffe0000014000 failed\n"
		}, "read of stack"},
		"bt before any task": {func(o *crashOutput, _ *Expectation) { o.btAll = "bt: invalid size request: 0\n" + o.btAll }, "invalid size request"},
		"stack missing":      {func(o *crashOutput, _ *Expectation) { o.btEach = eachTask(1, 7) }, "2 backtraces of 5 tasks"},
		"stack unread": {func(o *crashOutput, _ *Expectation) {
			o.btEach += "bt: page excluded: kernel virtual address: ffff888000000000\n"
		}, "page excluded"},
		"zombie without a stack": {func(o *crashOutput, _ *Expectation) {
			o.btEach = eachTask(1, 7, 9, 101) + stackless(201)
		}, ""},
		"task without a stack": {func(o *crashOutput, _ *Expectation) {
			o.btEach = eachTask(1, 7, 101, 201) + stackless(9)
		}, "task 9 (x): no backtrace"},
		"module":   {cutLine("livedump  "), "crash mod: livedump is not listed"},
		"memory":   {replace("120263", "240263"), "961052 KiB of memory"},
		"no kmem":  {func(o *crashOutput, _ *Expectation) { o.kmem = "" }, "no line TOTAL MEM"},
		"no log":   {func(o *crashOutput, _ *Expectation) { o.log = "" }, "first message"},
		"new task": {func(_ *crashOutput, e *Expectation) { e.Before.Tasks[1] = Task{TID: 1, Comm: "init", Start: 4} }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			out, e := good(), expectation()
			test.change(&out, &e)
			err := checkCrash(out, e)
			if test.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("got %v, want an error with %q", err, test.want)
			}
		})
	}
}

// replace changes a text in all outputs.
func replace(old, with string) func(*crashOutput, *Expectation) {
	return func(o *crashOutput, _ *Expectation) {
		for _, text := range []*string{&o.sys, &o.ps, &o.btParked, &o.kmem} {
			*text = strings.ReplaceAll(*text, old, with)
		}
	}
}

// cutLine removes the lines with a text.
func cutLine(with string) func(*crashOutput, *Expectation) {
	return func(o *crashOutput, _ *Expectation) {
		for _, text := range []*string{&o.ps, &o.mod} {
			var kept []string
			for _, line := range strings.Split(*text, "\n") {
				if !strings.Contains(line, with) {
					kept = append(kept, line)
				}
			}
			*text = strings.Join(kept, "\n")
		}
	}
}

func addTasks(tids ...int) func(*crashOutput, *Expectation) {
	return func(o *crashOutput, _ *Expectation) {
		for _, tid := range tids {
			o.ps += fmt.Sprintf("   %d       1   0  ffff88a4811fc804  IN   0.0        0        0  new\n", tid)
		}
	}
}

func many(n int) []Task {
	var tasks []Task
	for tid := 1000; len(tasks) < n; tid++ {
		tasks = append(tasks, Task{TID: tid, Comm: "x", Start: 1})
	}
	return tasks
}

const goodDrgn = `stack of 101 (ld-parked):
#0  context_switch (kernel/sched/core.c:5257:2)
{"hostname": "g1", "release": "6.1.0-56-cloud-amd64", "uptimeSeconds": 70.2, "cpus": 2, "tasks": [{"tid": 1, "comm": "init"}, {"tid": 7, "comm": "kworker/0:0"}, {"tid": 9, "comm": "a_kernel_thread"}, {"tid": 101, "comm": "ld-parked"}], "modules": ["livedump"], "stacks": {"101": ["__schedule", "schedule", "pipe_read", "new_sync_read", "vfs_read", "ksys_read", "do_syscall_x64", "do_syscall_64", "entry_SYSCALL_64"]}, "unwound": 4, "failures": []}
`

func TestDrgn(t *testing.T) {
	for name, test := range map[string]struct{ old, with, want string }{
		"good":           {"x", "x", ""},
		"hostname":       {`"g1"`, `"g2"`, "hostname"},
		"release":        {"6.1.0-56", "6.1.0-57", "kernel release"},
		"uptime":         {"70.2", "20.2", "uptime is 20.2 s"},
		"CPUs":           {`"cpus": 2`, `"cpus": 3`, "3 CPUs"},
		"task missing":   {`{"tid": 7, "comm": "kworker/0:0"}, `, "", "missing: 7 kworker"},
		"task twice":     {`{"tid": 7,`, `{"tid": 9,`, "task 9 is listed twice"},
		"module":         {`"livedump"`, `"lifedump"`, "module livedump"},
		"parked stack":   {`"pipe_read"`, `"futex_wait"`, "pipe_read is not in its place"},
		"no parked task": {`"101": [`, `"102": [`, "no task 101"},
		"stack fails":    {`"failures": []`, `"failures": ["7: cannot unwind"]`, "1 tasks without a stack"},
		"stacks too few": {`"unwound": 4`, `"unwound": 3`, "3 stacks of 4 tasks"},
		"no result":      {`{"hostname"`, `Traceback {"hostname"`, "not its result"},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := parseDrgn(strings.Replace(goodDrgn, test.old, test.with, 1))
			if err == nil {
				err = checkDrgn(out, expectation())
			}
			if test.want == "" && err != nil {
				t.Fatal(err)
			}
			if test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Fatalf("got %v, want an error with %q", err, test.want)
			}
		})
	}
}

func TestParseObservation(t *testing.T) {
	const answer = `hostname g1
release 6.1.0-56-cloud-amd64
uptime 62.50
memtotal 480040
cpu cpu0
cpu cpu1
module livedump
task 1 (init) S 0 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 5 0 5 1227932 3732
task 44 (a (strange) name) S 1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 5 0 77 1227932 3732
end
`
	o, err := parseObservation(answer)
	if err != nil {
		t.Fatal(err)
	}
	if o.Hostname != "g1" || o.CPUs != 2 || o.UptimeSeconds != 62.5 || o.MemTotalKiB != 480040 || len(o.Modules) != 1 {
		t.Errorf("got %+v", o)
	}
	if got, want := o.Tasks[44], (Task{TID: 44, Comm: "a (strange) name", Start: 77}); got != want {
		t.Errorf("task: got %+v, want %+v", got, want)
	}
	if got, want := o.Tasks[1], (Task{TID: 1, Comm: "init", Start: 5}); got != want {
		t.Errorf("task: got %+v, want %+v", got, want)
	}
	for name, bad := range map[string]string{
		"cut off":    strings.TrimSuffix(answer, "end\n"),
		"no tasks":   strings.ReplaceAll(answer, "task ", "tusk "),
		"broken":     strings.Replace(answer, "(init)", "init", 1),
		"no release": strings.Replace(answer, "release", "rel", 1),
	} {
		if _, err := parseObservation(bad); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestParseCrashUptime(t *testing.T) {
	for text, want := range map[string]float64{"00:00:03": 3, "23:59:59": 86399, "1 days, 00:00:01": 86401, "12 days, 01:00:00": 12*86400 + 3600} {
		got, err := parseCrashUptime(text)
		if err != nil || got != want {
			t.Errorf("%q: got %v, %v, want %v", text, got, err, want)
		}
	}
	if _, err := parseCrashUptime("a while"); err == nil {
		t.Error("no error for nonsense")
	}
}
