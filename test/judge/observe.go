// SPDX-License-Identifier: Apache-2.0

package judge

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"livedump.io/test/guest"
)

// Task is a thread as /proc shows it.
type Task struct {
	TID int
	// Comm is the name, as long as /proc gives it.
	Comm string
	// Start is the start time in clock ticks since boot: with the TID it names a
	// task even if TIDs are used again.
	Start uint64
}

// Observation is what a guest says of itself at one moment.
type Observation struct {
	Hostname      string
	Release       string
	UptimeSeconds float64
	CPUs          int
	MemTotalKiB   int64
	Modules       []string
	Tasks         map[int]Task
}

// observeScript prints everything with as few processes as can be: a process of
// its own for every task would change what it looks at.
const observeScript = `
read -r hostname < /proc/sys/kernel/hostname && echo "hostname $hostname"
read -r release < /proc/sys/kernel/osrelease && echo "release $release"
read -r uptime rest < /proc/uptime && echo "uptime $uptime"
while read -r name value rest; do
	[ "$name" = MemTotal: ] && echo "memtotal $value"
done < /proc/meminfo
while read -r name rest; do
	case $name in cpu[0-9]*) echo "cpu $name" ;; esac
done < /proc/stat
while read -r name rest; do echo "module $name"; done < /proc/modules
for stat in /proc/[0-9]*/task/[0-9]*/stat; do
	read -r line < "$stat" && echo "task $line"
done 2>/dev/null
echo "end"
`

// Observe asks a guest for the facts that its dump must show.
func Observe(ctx context.Context, g *guest.Guest) (*Observation, error) {
	result, err := g.Run(ctx, "sh", "-c", observeScript)
	if err != nil {
		return nil, fmt.Errorf("observe the guest: %w", err)
	}
	return parseObservation(result.Stdout)
}

func parseObservation(text string) (*Observation, error) {
	o := &Observation{Tasks: map[int]Task{}}
	ended := false
	for _, line := range strings.Split(text, "\n") {
		kind, value, _ := strings.Cut(line, " ")
		var err error
		switch kind {
		case "hostname":
			o.Hostname = value
		case "release":
			o.Release = value
		case "uptime":
			o.UptimeSeconds, err = strconv.ParseFloat(value, 64)
		case "memtotal":
			o.MemTotalKiB, err = strconv.ParseInt(value, 10, 64)
		case "cpu":
			o.CPUs++
		case "module":
			o.Modules = append(o.Modules, value)
		case "task":
			var t Task
			if t, err = parseStat(value); err == nil {
				o.Tasks[t.TID] = t
			}
		case "end":
			ended = true
		}
		if err != nil {
			return nil, fmt.Errorf("observe the guest: %q: %w", line, err)
		}
	}
	if !ended || o.Hostname == "" || o.Release == "" || o.CPUs == 0 || o.MemTotalKiB == 0 || len(o.Tasks) == 0 {
		return nil, fmt.Errorf("observe the guest: incomplete answer of %d bytes", len(text))
	}
	return o, nil
}

// parseStat reads a line of /proc/<tid>/stat. The name is in parentheses and may
// hold any character, parentheses included.
func parseStat(line string) (Task, error) {
	open, end := strings.Index(line, "("), strings.LastIndex(line, ")")
	if open < 0 || end < open {
		return Task{}, fmt.Errorf("no name in parentheses")
	}
	tid, err := strconv.Atoi(strings.TrimSpace(line[:open]))
	if err != nil {
		return Task{}, err
	}
	// Fields after the name begin with the third of the line; the start time is the 22nd.
	fields := strings.Fields(line[end+1:])
	const start = 22 - 3
	if len(fields) <= start {
		return Task{}, fmt.Errorf("only %d fields", len(fields)+2)
	}
	ticks, err := strconv.ParseUint(fields[start], 10, 64)
	if err != nil {
		return Task{}, err
	}
	return Task{TID: tid, Comm: line[open+1 : end], Start: ticks}, nil
}
