// SPDX-License-Identifier: Apache-2.0

// Package guestdump has the agent make a dump in a guest.
package guestdump

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"livedump.io/node-agent/engine"
	"livedump.io/test/guest"
)

// Paths in the guest.
const (
	Module = "/opt/livedump.ko"
	Agent  = "/opt/livedump-agent"
	report = "/tmp/livedump-report.json"
)

// Files are the module and the agent, which are built already.
func Files(module, agent string) []guest.File {
	return []guest.File{{Path: Module, Source: module}, {Path: Agent, Source: agent, Mode: 0o755}}
}

// Run dumps to a device with the module that is loaded, and leaves it loaded. The
// report is returned even if the dump failed; nil if there is none.
func Run(ctx context.Context, g *guest.Guest, device string, flags ...string) (*engine.Report, error) {
	argv := append([]string{Agent, "dump", "--device", device, "--module", Module, "--keep-module", "--report", report}, flags...)
	_, runErr := g.Run(ctx, argv...)
	var exit *guest.ExitError
	if errors.As(runErr, &exit) {
		// Its log tells every step; the last words are the reason.
		lines := bytes.Split(bytes.TrimSpace([]byte(exit.Stderr)), []byte("\n"))
		exit.Stderr = string(lines[len(lines)-1])
	} else if runErr != nil {
		return nil, runErr
	}
	raw, err := g.ReadFile(ctx, report)
	if err != nil {
		return nil, errors.Join(runErr, err)
	}
	r := &engine.Report{}
	if err := json.Unmarshal(raw, r); err != nil {
		return nil, errors.Join(runErr, fmt.Errorf("the agent's report: %w", err))
	}
	return r, runErr
}
