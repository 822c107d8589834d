// SPDX-License-Identifier: Apache-2.0

package judge

import (
	"fmt"
	"io"
	"strings"
)

// What follows is for readers that run where this package cannot run them, as in
// a guest on its own frozen memory.

// CrashScript is what crash is to run (crash -s -i FILE): each command writes a file into the directory.
func CrashScript(parked int, dir string) string { return crashScript(commands(parked, nil), dir) }

func crashScript(list [][2]string, dir string) string {
	var script strings.Builder
	for _, command := range list {
		fmt.Fprintf(&script, "%s > %s/%s\n", command[1], dir, command[0])
	}
	script.WriteString("quit\n")
	return script.String()
}

// DrgnScript is what drgn is to run, with the number of the parked task as its argument if there is one.
func DrgnScript() []byte { return drgnScript }

// CheckCrash compares what crash wrote and said with what the guest said of itself. read gives a file of the
// script's directory; text, if not nil, takes everything.
func CheckCrash(session string, read func(name string) ([]byte, error), e Expectation, text io.Writer) error {
	if text == nil {
		text = io.Discard
	}
	out, err := readCrashOutput(session, commands(e.ParkedTID, nil), read, text)
	if err != nil {
		return err
	}
	return checkCrash(out, e)
}

// CheckDrgn does the same for drgn's output.
func CheckDrgn(said string, e Expectation) error {
	out, err := parseDrgn(said)
	if err != nil {
		return err
	}
	return checkDrgn(out, e)
}

func readCrashOutput(session string, list [][2]string, read func(name string) ([]byte, error), text io.Writer) (crashOutput, error) {
	out := crashOutput{session: session}
	into := map[string]*string{
		"sys": &out.sys, "ps": &out.ps, "btParked": &out.btParked, "btAll": &out.btAll,
		"btEach": &out.btEach, "mod": &out.mod, "kmem": &out.kmem, "log": &out.log,
	}
	var missing error
	for _, command := range list {
		b, err := read(command[0])
		if err != nil {
			if missing == nil {
				missing = fmt.Errorf("crash: no output of %s: %s", command[1], strings.TrimSpace(session))
			}
			continue
		}
		if text, ok := into[command[0]]; ok {
			*text = string(b)
		}
		fmt.Fprintf(text, "crash> %s\n%s\n", command[1], b)
	}
	return out, missing
}
