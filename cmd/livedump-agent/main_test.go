// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"livedump.io/internal/blockdev"
	"livedump.io/internal/kdump"
	"livedump.io/internal/session"
	"livedump.io/node-agent/engine"
)

func TestUsage(t *testing.T) {
	t.Setenv("NODE_NAME", "")
	for _, tc := range []struct {
		args string
		says string
	}{
		{"nonsense", `unknown command "nonsense"`},
		{"dump", "one of --device, --output, --stdout and --connect is required"},
		{"dump --device /dev/x --device=", "it is empty"},
		{"dump --device /dev/x --output /dev/y", "one of --device"},
		{"dump --device /dev/x --device /dev/x", "/dev/x is given twice"},
		{"dump --device /dev/x extra", `unexpected argument "extra"`},
		{"dump --device /dev/x --compression lzo", `"lzo"`},
		{"dump --device /dev/x --dump-level 32", "want 0 to 31"},
		{"dump --device /dev/x --consistency strict", "Strict or BestEffort"},
		{"dump --device /dev/x --overwrite-policy Always", "Never or IfEmptyOrLiveDump"},
		{"dump --device /dev/x --session 12", "--session"},
		{"dump --device /dev/x --timeout 0s", "must be positive"},
		{"dump --device /dev/x --log-level loud", "--log-level"},
		{"dump --nonsense", "nonsense"},
		{"run", "$NODE_NAME is required"},
		{"--node-name n --namespaces a,B", `"B"`},
		{"run --node-name n --grace-period -1s", "--grace-period"},
		{"run --node-name n extra", `unexpected argument "extra"`},
	} {
		err := command(strings.Fields(tc.args), io.Discard)
		var wrong usageError
		if !errors.As(err, &wrong) || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: got %v, want a usage error with %q", tc.args, err, tc.says)
		}
	}
	for _, args := range []string{"--help", "--version", "dump --help", "run --help"} {
		var out bytes.Buffer
		if err := command(strings.Fields(args), &out); err != nil || !strings.Contains(out.String(), "livedump-agent") {
			t.Errorf("%s: %v, %q", args, err, out.String())
		}
	}
}

func TestDumpFlags(t *testing.T) {
	d, err := parseDump(strings.Fields("--device /dev/x"), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if d.policy != blockdev.IfEmptyOrLiveDump || d.options.Level != session.ExcludeAll || d.options.Mode != session.Strict ||
		d.options.Codec != kdump.CodecZstd || d.options.Deadline != 30*time.Minute || d.options.UUID == (kdump.Session{}) {
		t.Errorf("defaults: %+v", d)
	}
	d, err = parseDump(strings.Fields("--device /dev/x --module m.ko --compression none --dump-level 1 --consistency BestEffort "+
		"--reserve 4096 --overwrite-policy Never --session 11111111-2222-3333-4444-555555555555 --deadline 5s"), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if d.moduleFile != "m.ko" || d.policy != blockdev.Never || d.options.Level != session.ExcludeZero || d.options.Mode != session.BestEffort ||
		d.options.Codec != kdump.CodecNone || d.options.ReserveBytes != 4096 || d.options.Deadline != 5*time.Second ||
		d.options.UUID.String() != "11111111-2222-3333-4444-555555555555" {
		t.Errorf("all flags: %+v", d)
	}
}

// TestDumpRefused: a target that is no block device is refused before the module is loaded, and the report says so.
func TestDumpRefused(t *testing.T) {
	dir := t.TempDir()
	file, report := filepath.Join(dir, "file"), filepath.Join(dir, "report.json")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := command([]string{"dump", "--device", file, "--report", report}, io.Discard)
	if !errors.Is(err, blockdev.ErrNotBlock) {
		t.Fatalf("got %v, want %v", err, blockdev.ErrNotBlock)
	}
	text, err := os.ReadFile(report)
	if err != nil {
		t.Fatal(err)
	}
	var r engine.Report
	if err := json.Unmarshal(text, &r); err != nil {
		t.Fatal(err)
	}
	if r.Reason != "TargetInvalid" || !strings.Contains(r.Error, "regular file") || r.Module.How != "" {
		t.Errorf("report: %s", text)
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != "precious" {
		t.Errorf("the file: %q, %v", got, err)
	}
}

func TestPauseAt(t *testing.T) {
	in, release := io.Pipe()
	var out bytes.Buffer
	said, say := io.Pipe()
	pause := pauseAt([]engine.Step{engine.StepWrite}, say, in)
	pause(context.Background(), engine.StepFreeze) // another step: no pause
	done := make(chan struct{})
	go func() {
		defer close(done)
		pause(context.Background(), engine.StepWrite)
	}()
	line := make([]byte, 64)
	n, err := said.Read(line)
	if err != nil {
		t.Fatal(err)
	}
	out.Write(line[:n])
	if out.String() != "paused before Writing\n" {
		t.Errorf("%q", out.String())
	}
	select {
	case <-done:
		t.Fatal("it did not wait")
	default:
	}
	if _, err := release.Write([]byte("go\n")); err != nil {
		t.Fatal(err)
	}
	<-done

	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	pauseAt([]engine.Step{engine.StepWrite}, io.Discard, in)(ctx, engine.StepWrite) // must not wait for a dump that ended
}
