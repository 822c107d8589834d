// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os/exec"
	"strings"
	"testing"
)

func TestFrozenScriptIsShell(t *testing.T) {
	script := frozenScript([]string{"agent", "--pause-at", "Writing,Thawing"},
		[]task{{name: "a", argv: []string{"echo", "it's", "%s $b", ""}}}, []task{{name: "b", argv: []string{"true"}}})
	if out, err := exec.Command("sh", "-n", "-c", script).CombinedOutput(); err != nil {
		t.Errorf("%v: %s\n%s", err, out, script)
	}
}

func TestQuoted(t *testing.T) {
	words := []string{"it's", "%s $HOME `x`", "", "a b"}
	out, err := exec.Command("sh", "-c", "printf '[%s]' "+quoted(words...)).Output()
	if want := "[" + strings.Join(words, "][") + "]"; err != nil || string(out) != want {
		t.Errorf("%q, %v, want %q", out, err, want)
	}
}
