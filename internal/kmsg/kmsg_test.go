// SPDX-License-Identifier: Apache-2.0

package kmsg

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	for record, want := range map[string]string{
		"3,100,5,-;livedump: Xen PV\n SUBSYSTEM=x\n":      "Xen PV",
		"4,100,5,-;livedump: a warning\n":                 "a warning",
		"12,100,5,-;livedump: from user space\n":          "from user space",
		"6,100,5,-;livedump: information\n":               "",
		"3,100,5,-;other: livedump: text\n":               "",
		"no record":                                       "",
		"x,1;livedump: no number\n":                       "",
		"3,100,5,-,caller=T1;livedump: with a caller;x\n": "with a caller;x",
	} {
		got, ok := parse(record, "livedump: ", Warning)
		if ok != (want != "") || ok && got != want {
			t.Errorf("%q: got %q %v, want %q", record, got, ok, want)
		}
	}
}

// TestTail writes to the log of the running kernel, as any program may that is root.
func TestTail(t *testing.T) {
	w, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0)
	if err != nil {
		t.Skipf("cannot write to the kernel log here: %v", err)
	}
	defer w.Close()
	mark := fmt.Sprintf("livedump-test-%d: ", time.Now().UnixNano())
	if _, err := w.WriteString("<12>" + mark + "before\n"); err != nil {
		t.Skipf("cannot write to the kernel log here: %v", err)
	}
	tail, err := Open("/dev/kmsg")
	if err != nil {
		t.Fatal(err)
	}
	defer tail.Close()
	for _, line := range []string{"<12>" + mark + "one\n", "<14>" + mark + "not serious\n", "<11>" + mark + "two\n"} {
		if _, err := w.WriteString(line); err != nil {
			t.Fatal(err)
		}
	}
	got, err := tail.Messages(mark, Warning)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"one", "two"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, err := tail.Messages(mark, Warning); err != nil || len(got) > 0 {
		t.Errorf("second look: %q, %v", got, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("3,100,5,-;livedump: Xen PV\n SUBSYSTEM=x\n", "livedump: ", 4)
	f.Fuzz(func(t *testing.T, record, prefix string, level int) {
		message, ok := parse(record, prefix, level)
		if !strings.Contains(record, message) || ok && strings.Contains(message, "\n") {
			t.Errorf("%q of %q", message, record)
		}
	})
}
