// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"livedump.io/node-agent/engine"
)

// DieAt is an OnPoint for tests: when the file has the name of a point, it is removed and the process kills itself there as
// nothing else can.
func DieAt(file string) func(context.Context, engine.Step) {
	return func(_ context.Context, point engine.Step) {
		text, err := os.ReadFile(file)
		if err != nil || strings.TrimSpace(string(text)) != string(point) || os.Remove(file) != nil {
			return
		}
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		select {} // the signal may reach another thread first
	}
}
