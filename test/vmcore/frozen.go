// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"livedump.io/test/guest"
	"livedump.io/test/trial"
)

// The functions of the script that runs in the guest. Descriptor 7 tells the agent
// to go on. Every task says on standard output when it begins and how it ended.
const scriptHead = `
set -u
say() { echo "vmcore: $*"; }
run() {
	name=$1
	shift
	say begin "$name"
	read -r begin rest </proc/uptime
	"$@" >` + guestResults + `/"$name".txt 2>&1 </dev/null
	status=$?
	read -r end rest </proc/uptime
	say end "$name" $status $begin $end
}
await() {
	until grep -q "^paused before $1\$" /tmp/agent.out; do
		kill -0 $agent || { tail -n 1 /tmp/agent.log; exit 1; }
		sleep 0.2
	done
	read -r now rest </proc/uptime
	say paused "$1" $now
}
rm -f /tmp/go
mkfifo /tmp/go
`

// The node is open when memory is thawed, and is read afterwards.
const scriptTail = `
exec 8<` + node + `
echo >&7
wait $agent
say thawed $?
say begin late-reader
cat <&8 >/dev/null 2>` + guestResults + `/late-reader.txt
say end late-reader $? 0 0
`

// quoted is a word for the shell.
func quoted(words ...string) string {
	var all []string
	for _, word := range words {
		all = append(all, "'"+strings.ReplaceAll(word, "'", `'\''`)+"'")
	}
	return strings.Join(all, " ")
}

func frozenScript(agent []string, before, after []task) string {
	var s strings.Builder
	s.WriteString(scriptHead)
	fmt.Fprintf(&s, "%s </tmp/go >/tmp/agent.out 2>/tmp/agent.log &\nagent=$!\nexec 7>/tmp/go\n", quoted(agent...))
	add := func(tasks []task) {
		for _, t := range tasks {
			fmt.Fprintf(&s, "run %s\n", quoted(append([]string{t.name}, t.argv...)...))
		}
	}
	s.WriteString("await Writing\n")
	add(before)
	s.WriteString("echo >&7\nawait Thawing\n")
	add(after)
	s.WriteString(scriptTail)
	return s.String()
}

// runFrozen freezes memory, runs tasks before and after the pages are streamed, thaws, and takes
// note of how each ended. It sends nothing to the guest meanwhile.
func (b *bench) runFrozen(ctx context.Context, before, after []task) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	agent := b.agent("Writing,Thawing", "--reserve", strconv.Itoa(reserveBytes), "--deadline", limit.String(), "--timeout", limit.String())
	trial.Step("freeze")
	said := &guest.Output{}
	c := b.guest.Command("sh", "-c", frozenScript(agent, before, after))
	c.Stdout, c.Stderr = said, said
	if err := c.Start(ctx); err != nil {
		return err
	}
	m, err := said.Wait(ctx, c, regexp.MustCompile(`(?m)^vmcore: paused Writing (\S+)$`))
	if err != nil {
		return err
	}
	if b.expect.After.UptimeSeconds, err = strconv.ParseFloat(m[1], 64); err != nil {
		return err
	}
	if err := waitTasks(ctx, said, c, before); err != nil {
		return err
	}
	trial.Step("stream the dump")
	if _, err := said.Wait(ctx, c, regexp.MustCompile(`(?m)^vmcore: paused Thawing `)); err != nil {
		return err
	}
	late := task{name: "late-reader", argv: []string{"cat"}, fails: "No data available"}
	if err := waitTasks(ctx, said, c, append(after, late)); err != nil {
		return err
	}
	if err := c.Wait(ctx); err != nil {
		return fmt.Errorf("%w: %s", err, said.LastLine())
	}
	if !strings.Contains(said.String(), "vmcore: thawed 0\n") {
		return fmt.Errorf("the agent failed: %s", said)
	}
	return b.check(ctx, late)
}

// waitTasks waits for the end of each task.
func waitTasks(ctx context.Context, said *guest.Output, c *guest.Cmd, tasks []task) error {
	for _, t := range tasks {
		if t.tool != nil {
			trial.Step("%s of Debian %s", t.tool.Command, t.tool.Release)
		}
		m, err := said.Wait(ctx, c, regexp.MustCompile(`(?m)^vmcore: end `+regexp.QuoteMeta(t.name)+` (\d+) (\S+) (\S+)$`))
		if err != nil {
			return err
		}
		if failed := m[1] != "0"; failed != (t.fails != "") {
			return fmt.Errorf("%s: exit status %s", strings.Join(t.argv, " "), m[1])
		}
		if t.tool == nil {
			continue
		}
		begin, err := strconv.ParseFloat(m[2], 64)
		if err != nil {
			return err
		}
		end, err := strconv.ParseFloat(m[3], 64)
		if err != nil {
			return err
		}
		t.tool.Seconds = (time.Duration((end-begin)*1000) * time.Millisecond).Seconds()
	}
	return nil
}
