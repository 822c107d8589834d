// SPDX-License-Identifier: Apache-2.0

// Package wire is the protocol between a test on the host and PID 1's child in
// a guest. It runs over one virtio-serial port and carries any number of
// commands and file transfers at once.
//
// A frame is a length (4 bytes, big-endian, of what follows), a type (1 byte),
// a stream (4 bytes) and a payload. Streams are numbered by the host; each is
// one command or one file. The host opens a stream with Exec, Put or Get, and
// the guest ends it with Exit or Error.
package wire

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
)

// PortName is the name of the virtio-serial port.
const PortName = "livedump.guest"

// MaxPayload keeps frames short, so that a file transfer does not hold up the
// output of a command for long.
const MaxPayload = 64 << 10

// Type says what a frame is.
type Type uint8

// Frame types and their payloads.
const (
	// Hello is the guest's first frame: JSON of a Greeting, stream 0.
	Hello Type = iota + 1
	// Exec starts a command: JSON of a Command.
	Exec
	// Stdin is input for a command; an empty payload closes it.
	Stdin
	// Signal sends a signal to a command: one byte, the number, and one that is not
	// zero if the command's whole process group is meant.
	Signal
	// Started reports a command's process: JSON of a Process.
	Started
	// Stdout is a command's output.
	Stdout
	// Stderr is a command's error output.
	Stderr
	// Exit ends a command or a transfer: JSON of a Status.
	Exit
	// Put opens a file for writing: JSON of a File; Data frames follow.
	Put
	// Get asks for a file's content: JSON of a File; Data frames come back.
	Get
	// Data is a piece of a file; an empty payload is its end.
	Data
	// Error ends a stream: a message.
	Error
)

// Greeting is what a guest says of itself when it is ready.
type Greeting struct {
	Release  string `json:"release"`
	Hostname string `json:"hostname"`
	BootID   string `json:"bootID"`
	// UptimeSeconds is the guest's clock since its boot.
	UptimeSeconds float64 `json:"uptimeSeconds"`
}

// Command is a program to run.
type Command struct {
	Argv []string `json:"argv"`
	Env  []string `json:"env,omitempty"`
	Dir  string   `json:"dir,omitempty"`
	// Stdin says that Stdin frames will follow; without it input is empty.
	Stdin bool `json:"stdin,omitempty"`
	// LogFile takes output and error output in the guest; nothing is sent.
	LogFile string `json:"logFile,omitempty"`
}

// Process is a command that was started.
type Process struct {
	PID int `json:"pid"`
}

// File is a path in the guest. Mode is that of a new file.
type File struct {
	Path string `json:"path"`
	Mode uint32 `json:"mode,omitempty"`
}

// Status is how a command ended. A signal of zero means that it exited.
type Status struct {
	Code   int `json:"code"`
	Signal int `json:"signal,omitempty"`
}

// Frame is one message.
type Frame struct {
	Type    Type
	Stream  uint32
	Payload []byte
}

// Unmarshal reads the payload as JSON.
func (f Frame) Unmarshal(v any) error {
	if err := json.Unmarshal(f.Payload, v); err != nil {
		return fmt.Errorf("frame type %d of stream %d: %w", f.Type, f.Stream, err)
	}
	return nil
}

// Conn sends and receives frames. Send may be called from several goroutines,
// Receive from one.
type Conn struct {
	r *bufio.Reader

	mu sync.Mutex
	w  io.Writer
}

// NewConn makes a Conn of a byte stream.
func NewConn(rw io.ReadWriter) *Conn {
	return &Conn{r: bufio.NewReaderSize(rw, 256<<10), w: rw}
}

// Send writes one frame, in one write.
func (c *Conn) Send(t Type, stream uint32, payload []byte) error {
	if len(payload) > MaxPayload {
		return fmt.Errorf("frame of %d bytes is too long", len(payload))
	}
	b := make([]byte, 9+len(payload))
	binary.BigEndian.PutUint32(b, uint32(5+len(payload)))
	b[4] = byte(t)
	binary.BigEndian.PutUint32(b[5:], stream)
	copy(b[9:], payload)
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := c.w.Write(b)
	return err
}

// SendJSON writes one frame with v as its payload.
func (c *Conn) SendJSON(t Type, stream uint32, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return c.Send(t, stream, b)
}

// Receive reads one frame. io.EOF means that the other side is gone.
func (c *Conn) Receive() (Frame, error) {
	var head [9]byte
	if _, err := io.ReadFull(c.r, head[:]); err != nil {
		return Frame{}, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n < 5 || n > MaxPayload+5 {
		return Frame{}, errors.New("frame of impossible length: the stream is out of step")
	}
	f := Frame{Type: Type(head[4]), Stream: binary.BigEndian.Uint32(head[5:]), Payload: make([]byte, n-5)}
	if _, err := io.ReadFull(c.r, f.Payload); err != nil {
		return Frame{}, err
	}
	return f, nil
}
