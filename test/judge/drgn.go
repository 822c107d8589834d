// SPDX-License-Identifier: Apache-2.0

package judge

import (
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// drgnScript is what drgn runs in the chroot.
//
//go:embed judge.py
var drgnScript []byte

// drgnOutput is what judge.py says.
type drgnOutput struct {
	Hostname      string  `json:"hostname"`
	Release       string  `json:"release"`
	UptimeSeconds float64 `json:"uptimeSeconds"`
	CPUs          int     `json:"cpus"`
	Tasks         []struct {
		TID  int    `json:"tid"`
		CPU  int    `json:"cpu"`
		Comm string `json:"comm"`
	} `json:"tasks"`
	Modules  []string            `json:"modules"`
	Stacks   map[string][]string `json:"stacks"`
	Unwound  int                 `json:"unwound"`
	Failures []string            `json:"failures"`
}

// parseDrgn reads the JSON of the last line.
func parseDrgn(text string) (drgnOutput, error) {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	var out drgnOutput
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &out); err != nil {
		return out, fmt.Errorf("drgn: the last line is not its result: %w", err)
	}
	return out, nil
}

func checkDrgn(out drgnOutput, e Expectation) error {
	var problems []error
	add := func(err error) {
		if err != nil {
			problems = append(problems, err)
		}
	}
	add(checkSystem("drgn", out.Hostname, out.Release, out.CPUs, e))
	add(checkUptime("drgn", out.UptimeSeconds, 1, e))
	tasks := map[int]string{}
	for _, task := range out.Tasks {
		if _, twice := tasks[task.TID]; twice {
			add(fmt.Errorf("drgn: task %d is listed twice", task.TID))
		}
		tasks[task.TID] = task.Comm
	}
	add(checkTasks("drgn", tasks, e))
	if len(out.Failures) > 0 {
		add(fmt.Errorf("drgn: %d tasks without a stack: %s", len(out.Failures), few(out.Failures)))
	}
	if out.Unwound+len(out.Failures) != len(out.Tasks) {
		add(fmt.Errorf("drgn: %d stacks of %d tasks", out.Unwound, len(out.Tasks)))
	}
	if e.ParkedTID != 0 {
		frames, ok := out.Stacks[strconv.Itoa(e.ParkedTID)]
		if !ok {
			add(fmt.Errorf("drgn: no task %d", e.ParkedTID))
		} else {
			add(checkFrames(fmt.Sprintf("drgn, stack of %d", e.ParkedTID), frames, e.ParkedFrames))
		}
	}
	for cpu, want := range e.Active {
		who := fmt.Sprintf("drgn, stack of %d on CPU %d", want.TID, cpu)
		for _, task := range out.Tasks {
			if task.TID == want.TID && task.CPU != cpu {
				add(fmt.Errorf("%s: it is on CPU %d", who, task.CPU))
			}
		}
		add(want.inFunction(who, out.Stacks[strconv.Itoa(want.TID)]))
	}
	modules := map[string]bool{}
	for _, name := range out.Modules {
		modules[name] = true
	}
	for _, name := range e.Modules {
		if !modules[name] {
			add(fmt.Errorf("drgn: module %s is not listed", name))
		}
	}
	return errors.Join(problems...)
}
