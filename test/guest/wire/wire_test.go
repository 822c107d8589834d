// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

func TestRoundTrip(t *testing.T) {
	var b bytes.Buffer
	c := NewConn(&b)
	payloads := [][]byte{{}, []byte("x"), bytes.Repeat([]byte{0xa5}, MaxPayload)}
	for i, p := range payloads {
		if err := c.Send(Stdout, uint32(i), p); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.SendJSON(Exit, 9, Status{Code: 3, Signal: 9}); err != nil {
		t.Fatal(err)
	}
	for i, p := range payloads {
		f, err := c.Receive()
		if err != nil {
			t.Fatal(err)
		}
		if f.Type != Stdout || f.Stream != uint32(i) || !bytes.Equal(f.Payload, p) {
			t.Errorf("frame %d: type %d, stream %d, %d bytes", i, f.Type, f.Stream, len(f.Payload))
		}
	}
	f, err := c.Receive()
	if err != nil {
		t.Fatal(err)
	}
	var s Status
	if err := f.Unmarshal(&s); err != nil || s.Code != 3 || s.Signal != 9 {
		t.Errorf("got %+v, %v", s, err)
	}
	if _, err := c.Receive(); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
}

func TestBadFrames(t *testing.T) {
	if err := NewConn(&bytes.Buffer{}).Send(Data, 1, make([]byte, MaxPayload+1)); err == nil {
		t.Error("a frame that is too long was sent")
	}
	for name, raw := range map[string][]byte{
		"too short": {0, 0, 0, 4, 1, 0, 0, 0, 0},
		"too long":  {0xff, 0, 0, 0, 1, 0, 0, 0, 0},
		"cut off":   {0, 0, 0, 9, 1, 0, 0, 0, 0, 'x'},
	} {
		if _, err := NewConn(bytes.NewBuffer(raw)).Receive(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
