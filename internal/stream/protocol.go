// SPDX-License-Identifier: Apache-2.0

// Package stream carries a dump over TLS to somebody who keeps it: Dial makes the target of a dump, a Receiver is the other
// end.
//
// The sender's bytes go in frames: a byte that says what it is, the length of what follows, 32 bits, big-endian, and that
// many bytes. First comes a hello with the version of the protocol, then data, then one end with the number of all bytes and their
// SHA-256, or an abort with the reason. The receiver answers once: the checksum of what it has on stable storage under its
// final name, or why it has not. A dump is sent when that answer came and is right. A connection that ends before it
// is a failure for both, whatever was carried.
//
// The server proves who it is; the client does not. A Receiver therefore takes bytes from whoever can connect, and
// makes a file of them only if they are whole.
package stream

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// version of the protocol.
const version = "livedump stream 1"

// What a frame is.
const (
	frameHello = 'H' // version
	frameData  = 'D'
	frameEnd   = 'E' // number of bytes, 64 bits, and SHA-256
	frameAbort = 'A' // reason
	frameTaken = 'K' // SHA-256; from the receiver, as the last two
	frameError = 'X' // reason
)

const (
	headBytes = 5
	endBytes  = 8 + sha256.Size
	maxData   = 1 << 20
	maxText   = 1 << 10 // of a reason
)

var (
	// ErrCertificates: what the receiver is to be known by is no certificate.
	ErrCertificates = errors.New("the certificates to know the receiver by: there is none in PEM among them that can be used")
	// ErrConnect: the receiver cannot be reached, or is not who it should be.
	ErrConnect = errors.New("connecting to the receiver")
	// ErrProtocol: the other end does not speak this protocol, or not this version.
	ErrProtocol = errors.New("the other end is no livedump of a fitting version")
	// ErrIncomplete: the connection ended before the dump did.
	ErrIncomplete = errors.New("the connection ended before the dump did")
	// ErrSender: the sender gave the dump up.
	ErrSender = errors.New("the sender gave up")
	// ErrReceiver: the receiver could not keep the dump.
	ErrReceiver = errors.New("the receiver could not keep the dump")
)

// putHead fills in the head of a frame.
func putHead(b []byte, kind byte, n int) {
	b[0] = kind
	binary.BigEndian.PutUint32(b[1:], uint32(n))
}

func writeFrame(w io.Writer, kind byte, body []byte) error {
	b := make([]byte, headBytes, headBytes+len(body))
	putHead(b, kind, len(body))
	_, err := w.Write(append(b, body...))
	return err
}

// readHead reads the head of a frame and checks the length against what is possible.
func readHead(r io.Reader) (kind byte, n int, err error) {
	var b [headBytes]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return 0, 0, err
	}
	length := binary.BigEndian.Uint32(b[1:])
	most := uint32(maxText)
	if b[0] == frameData {
		most = maxData
	}
	if length > most {
		return 0, 0, fmt.Errorf("%w: a frame %q of %d bytes", ErrProtocol, b[0], length)
	}
	return b[0], int(length), nil
}

func readBody(r io.Reader, n int) ([]byte, error) {
	b := make([]byte, n)
	_, err := io.ReadFull(r, b)
	return b, err
}

// reason makes a text fit for a frame, and for a terminal.
func reason(err error) []byte {
	b := []byte(err.Error())
	b = b[:min(len(b), maxText)]
	for i, c := range b {
		if c < ' ' || c > '~' {
			b[i] = '?'
		}
	}
	return b
}
