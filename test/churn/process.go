// SPDX-License-Identifier: Apache-2.0

package churn

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// ChildVerb is the first argument with which NewProcess starts this program; main hands the rest to Child.
const ChildVerb = "child"

// NewProcess runs this program again and again; each child computes a
// number from its arguments and its parent checks number and exit status.
func NewProcess() *Churn {
	return &Churn{Name: "process", Round: func(ctx context.Context, n int64) error {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		exit := int(n % 7)
		cmd := exec.CommandContext(ctx, self, ChildVerb, strconv.FormatInt(n, 10), strconv.Itoa(exit))
		cmd.Env = append(os.Environ(), "GOMAXPROCS=1")
		out, err := cmd.Output()
		if ctx.Err() != nil {
			return ctx.Err() // the child was killed by the end of the program
		}
		if cmd.ProcessState == nil {
			return fmt.Errorf("start a child: %w", err)
		}
		if got := cmd.ProcessState.ExitCode(); got != exit {
			return fmt.Errorf("child ended with %s, want exit status %d", cmd.ProcessState, exit)
		}
		if got, want := strings.TrimSpace(string(out)), childAnswer(uint64(n)); got != want {
			return fmt.Errorf("child said %q, want %q", got, want)
		}
		return nil
	}}
}

// Child is the main of such a child; it returns the exit status.
func Child(seed, exit string) int {
	n, err := strconv.ParseUint(seed, 10, 64)
	if err != nil {
		return 100
	}
	status, err := strconv.Atoi(exit)
	if err != nil {
		return 100
	}
	fmt.Println(childAnswer(n))
	return status
}

func childAnswer(seed uint64) string {
	var sum uint64
	for i := range 10000 {
		sum += word(seed, i)
	}
	return strconv.FormatUint(sum, 16)
}
