// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"livedump.io/node-agent/engine"
	"livedump.io/test/guest"
	"livedump.io/test/load/provide"
)

// codeLoad is no load: a kernel module is loaded while memory is frozen, and stays. After the thaw its code must not be
// writable through the direct map, as it is not if it is loaded at any other time.
const codeLoad = "code"

// codeScript runs the agent, its words from the third on, and loads the module ($1 and what it needs) when the agent
// stands before its step $2.
const codeScript = `
module=$1 step=$2
shift 2
mkfifo /tmp/code.go /tmp/code.said
"$@" --pause-at "$step" </tmp/code.go >/tmp/code.said &
exec 3>/tmp/code.go 4</tmp/code.said
read -r line <&4
status=1
for file in $module; do
	insmod "$file" && status=0
done
echo >&3
wait $! || exit
exit $status
`

// insertingCode is the command of a dump during which a module is loaded.
func (b *bench) insertingCode(ctx context.Context, dump []string) ([]string, error) {
	list, err := b.guest.ReadFile(ctx, provide.ModuleList)
	if err != nil {
		return nil, err
	}
	for _, line := range strings.Split(string(list), "\n") {
		if name, files, _ := strings.Cut(line, " "); name == provide.LoopModules[0] {
			return append([]string{"sh", "-c", codeScript, "sh", files, string(engine.StepWrite)}, dump...), nil
		}
	}
	return nil, fmt.Errorf("the guest has no module %s", provide.LoopModules[0])
}

// Bits of a page-table entry.
const (
	entryWritable  = 1 << 1
	entryNoExecute = 1 << 63
)

var leafPages = map[string]uint64{"pte": 1, "pmd": 512, "pud": 512 * 512}

// eachPage calls f for every page that the leaves of a region map.
func eachPage(t guest.PageTables, region guest.Region, f func(pfn, flags uint64)) {
	for _, e := range t[region] {
		if !e.Leaf {
			continue
		}
		for i := range uint64(e.Count) * leafPages[e.Level] {
			f(e.PA>>12+i, e.Flags)
		}
	}
}

// code returns the pages that are mapped as a module's code or constants, and of these the ones that the direct map
// lets the kernel write nevertheless.
func code(t guest.PageTables) (pages, writable map[uint64]bool) {
	pages, writable = map[uint64]bool{}, map[uint64]bool{}
	eachPage(t, guest.RegionModules, func(pfn, flags uint64) {
		if flags&entryWritable == 0 {
			pages[pfn] = true
		}
	})
	eachPage(t, guest.RegionDirect, func(pfn, flags uint64) {
		if pages[pfn] && flags&entryWritable != 0 {
			writable[pfn] = true
		}
	})
	return pages, writable
}

// checkCode compares the tables from before a session in which code was loaded with those after.
func checkCode(before, after guest.PageTables) error {
	was, wasWritable := code(before)
	is, isWritable := code(after)
	added, bad := 0, 0
	for pfn := range is {
		if !was[pfn] {
			added++
		}
		if isWritable[pfn] && !wasWritable[pfn] {
			bad++
		}
	}
	if added == 0 {
		return errors.New("no code was loaded while memory was frozen")
	}
	if bad > 0 {
		return fmt.Errorf("of %d pages of code that were loaded while memory was frozen, %d can be written in the direct map", added, bad)
	}
	return nil
}
