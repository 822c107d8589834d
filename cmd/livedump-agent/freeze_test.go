// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"livedump.io/internal/session"
	"livedump.io/internal/session/sessiontest"
)

func TestFreezeFlags(t *testing.T) {
	f, err := parseFreeze([]string{"--for", "90s", "--reserve", "4096", "--dump-level", "3", "--consistency", "BestEffort"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	o := f.options
	if !o.Keep || o.Deadline != 90*time.Second || o.ReserveBytes != 4096 || o.Level != 3 || o.Mode != session.BestEffort || o.UUID == [16]byte{} {
		t.Errorf("%+v", o)
	}
	for _, args := range [][]string{{"--for", "0s"}, {"--dump-level", "32"}, {"--consistency", "Best"}, {"extra"}, {"--no-such"}} {
		var wrong usageError
		if _, err := parseFreeze(args, io.Discard); !errors.As(err, &wrong) {
			t.Errorf("%v: %v", args, err)
		}
	}
}

func TestHoldThawsWhenInterrupted(t *testing.T) {
	m := &sessiontest.Memory{Pages: map[uint64][]byte{1: nil}}
	s, err := m.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	said, say := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		ended <- hold(ctx, s, session.Options{Keep: true, Deadline: time.Hour}, say)
		say.Close()
	}()
	first := make([]byte, 512)
	n, err := said.Read(first)
	if err != nil || !strings.HasPrefix(string(first[:n]), "frozen in ") || !m.Frozen() {
		t.Fatalf("%q, %v, frozen: %v", first[:n], err, m.Frozen())
	}
	cancel()
	rest, err := io.ReadAll(said)
	if err != nil || !strings.HasPrefix(string(rest), "thawed: ") {
		t.Errorf("%q, %v", rest, err)
	}
	if err := <-ended; err != nil || m.Frozen() || m.Thaws() != 1 {
		t.Errorf("%v, frozen: %v, thaws: %d", err, m.Frozen(), m.Thaws())
	}
}

func TestHoldReportsAFailedFreeze(t *testing.T) {
	m := &sessiontest.Memory{FreezeError: session.ErrStopFailed}
	s, err := m.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := hold(context.Background(), s, session.Options{Keep: true}, &out); !errors.Is(err, session.ErrStopFailed) || out.Len() > 0 {
		t.Errorf("%v, %q", err, out.String())
	}
}
