// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"livedump.io/internal/session"
	"livedump.io/node-agent/engine"
)

// ringLoad is the program of test/truth/ring instead of a load: while memory is frozen it maps memory that the kernel
// had before, and writes it.
const ringLoad = "ring"

const (
	guestRing     = "/opt/ring"
	guestRingSaid = "/tmp/ring.wrote"
)

// ringScript runs the agent, its words from the fourth on. When it stands before its step $3, the program $1 is told to
// go on; what it says then is left in the file $2.
const ringScript = `
ring=$1 said=$2 step=$3
shift 3
rm -f /tmp/ring.go /tmp/ring.said /tmp/agent.go /tmp/agent.said
mkfifo /tmp/ring.go /tmp/ring.said /tmp/agent.go /tmp/agent.said
"$ring" </tmp/ring.go >/tmp/ring.said &
exec 3>/tmp/ring.go 4</tmp/ring.said
read -r line <&4
[ "$line" = "ring: ready" ] || { echo "$line"; exit 1; }
"$@" --pause-at "$step" </tmp/agent.go >/tmp/agent.said 3>&- 4<&- &
agent=$!
exec 5>/tmp/agent.go 6</tmp/agent.said
read -r line <&6
echo >&3
read -r line <&4
echo "$line" >"$said"
echo >&5
wait $agent
status=$?
exec 3>&-
exit $status
`

// mappingRing is the command of a dump during which a ring is mapped and written.
func mappingRing(dump []string) []string {
	return append([]string{"sh", "-c", ringScript, "sh", guestRing, guestRingSaid, string(engine.StepWrite)}, dump...)
}

// checkRing checks that the dump has all that the program has overwritten, and claims to know most of it; that it does,
// the comparison of all pages has to show. Some may be flagged: a task's stack can hold the address of a page that it
// had in hand long ago.
func (b *bench) checkRing(ctx context.Context, records []record) error {
	raw, err := b.guest.ReadFile(ctx, guestRingSaid)
	if err != nil {
		return err
	}
	list, ok := strings.CutPrefix(strings.TrimSpace(string(raw)), "ring: wrote ")
	if !ok {
		return fmt.Errorf("the program said %q", raw)
	}
	frames, flagged := strings.Split(list, ","), 0
	for _, frame := range frames {
		pfn, err := strconv.ParseUint(frame, 16, 64)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(records, func(r record) bool { return r.PFN == pfn })
		if i < 0 {
			return fmt.Errorf("page frame %#x of the ring is not in the dump", pfn)
		}
		if records[i].Flags&session.PageCopy == 0 {
			return fmt.Errorf("page frame %#x of the ring was not saved", pfn)
		}
		if records[i].Flags&session.PageUncovered != 0 {
			flagged++
		}
	}
	if 2*flagged > len(frames) {
		return fmt.Errorf("of %d pages of the ring %d are flagged as uncovered", len(frames), flagged)
	}
	return nil
}
