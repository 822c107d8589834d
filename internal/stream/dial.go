// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"net"
	"sync"
	"time"

	"livedump.io/internal/target"
)

// Options of Dial.
type Options struct {
	// Address is host:port.
	Address string
	// ServerName that the server's certificate must have; empty: the host of Address.
	ServerName string
	// CA certificates in PEM that the server's must come from; empty: those of the system.
	CA []byte
}

// Check says whether the options can be used at all: ErrCertificates.
func (o Options) Check() error {
	_, err := o.authorities()
	return err
}

// authorities are those of CA; nil: those of the system.
func (o Options) authorities() (*x509.CertPool, error) {
	if len(o.CA) == 0 {
		return nil, nil
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(o.CA) {
		return nil, ErrCertificates
	}
	return pool, nil
}

// dialTimeout bounds how long a receiver may take to accept a connection and to prove who it is.
const dialTimeout = 30 * time.Second

// Dial connects to a Receiver and makes a target of it. Nothing of a dump has been sent when it returns.
func Dial(ctx context.Context, o Options) (target.Stream, error) {
	config := &tls.Config{ServerName: o.ServerName, MinVersion: tls.VersionTLS13}
	var err error
	if config.RootCAs, err = o.authorities(); err != nil {
		return nil, err
	}
	dialCtx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := (&tls.Dialer{Config: config}).DialContext(dialCtx, "tcp", o.Address)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return nil, fmt.Errorf("%w: %s: %w", ErrConnect, o.Address, err)
	}
	if err := writeFrame(conn, frameHello, []byte(version)); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %s: %w", ErrConnect, o.Address, err), conn.Close())
	}
	s := &sender{conn: conn, address: o.Address, sum: sha256.New(), answer: make(chan struct{})}
	go s.listen()
	return s, nil
}

// sender is the target at the sender's end. Write, Commit and Abort do not overlap but for Abort, which ends the others.
type sender struct {
	conn    net.Conn
	address string
	sum     hash.Hash
	bytes   int64
	head    [headBytes]byte

	// answer is closed when the receiver has said something, or the connection has ended.
	answer chan struct{}
	taken  [sha256.Size]byte
	refuse error // nil: taken

	mu     sync.Mutex
	ended  bool
	closed bool
}

func (s *sender) Describe() string { return "tls://" + s.address }

func (s *sender) Abilities() target.Abilities { return target.Abilities{} }

// listen waits for the one answer.
func (s *sender) listen() {
	defer close(s.answer)
	kind, n, err := readHead(s.conn)
	var body []byte
	if err == nil {
		body, err = readBody(s.conn, n)
	}
	switch {
	case err != nil:
		s.refuse = fmt.Errorf("%w: %w", ErrIncomplete, err)
	case kind == frameTaken && len(body) == sha256.Size:
		copy(s.taken[:], body)
	case kind == frameError:
		s.refuse = fmt.Errorf("%w: %s", ErrReceiver, reason(errors.New(string(body))))
	default:
		s.refuse = fmt.Errorf("%w: frame %q", ErrProtocol, kind)
	}
	if s.refuse != nil {
		_ = s.conn.Close() // a Write that waits returns
	}
}

func (s *sender) hasEnded() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ended
}

func (s *sender) Write(b []byte) (int, error) {
	if s.hasEnded() {
		return 0, s.wrap(target.ErrEnded)
	}
	done := 0
	for done < len(b) {
		part := b[done:min(len(b), done+maxData)]
		putHead(s.head[:], frameData, len(part))
		_, err := s.conn.Write(s.head[:])
		if err == nil {
			_, err = s.conn.Write(part)
		}
		if err != nil {
			return done, s.failed(err)
		}
		s.sum.Write(part)
		done += len(part)
		s.bytes += int64(len(part))
	}
	return done, nil
}

// answerWait is how long the reason of a receiver that has hung up may take to arrive.
const answerWait = 2 * time.Second

// failed prefers what the receiver says to what the connection says.
func (s *sender) failed(err error) error {
	if s.hasEnded() {
		return s.wrap(target.ErrEnded)
	}
	select {
	case <-s.answer:
		if errors.Is(s.refuse, ErrReceiver) || errors.Is(s.refuse, ErrProtocol) {
			return s.wrap(s.refuse)
		}
	case <-time.After(answerWait):
	}
	return s.wrap(fmt.Errorf("%w: %w", ErrIncomplete, err))
}

func (s *sender) wrap(err error) error {
	return fmt.Errorf("sending the dump to %s: %w", s.address, err)
}

func (s *sender) Commit(ctx context.Context, size int64) (target.Receipt, error) {
	if s.hasEnded() {
		return target.Receipt{}, s.wrap(target.ErrEnded)
	}
	r, err := s.commit(ctx, size)
	if err != nil {
		return target.Receipt{}, errors.Join(err, s.Abort(err))
	}
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	return r, nil
}

func (s *sender) commit(ctx context.Context, size int64) (target.Receipt, error) {
	if err := context.Cause(ctx); err != nil {
		return target.Receipt{}, s.wrap(err)
	}
	if size != s.bytes {
		return target.Receipt{}, s.wrap(fmt.Errorf("%d bytes were written, the dump has %d", s.bytes, size))
	}
	r := target.Receipt{Bytes: size}
	s.sum.Sum(r.SHA256[:0])
	stop := context.AfterFunc(ctx, func() { _ = s.conn.Close() })
	defer stop()
	if err := writeFrame(s.conn, frameEnd, append(binary.BigEndian.AppendUint64(nil, uint64(size)), r.SHA256[:]...)); err != nil {
		return target.Receipt{}, s.failed(err)
	}
	select {
	case <-s.answer:
	case <-ctx.Done():
		return target.Receipt{}, s.wrap(context.Cause(ctx))
	}
	switch {
	case ctx.Err() != nil && s.refuse != nil:
		return target.Receipt{}, s.wrap(context.Cause(ctx))
	case s.refuse != nil:
		return target.Receipt{}, s.wrap(s.refuse)
	case !bytes.Equal(s.taken[:], r.SHA256[:]):
		return target.Receipt{}, s.wrap(fmt.Errorf("%w: it has the checksum %x, sent was %x", ErrReceiver, s.taken, r.SHA256))
	}
	return r, nil
}

// Abort tells the receiver why, if a frame can be told from data at that moment, and hangs up.
func (s *sender) Abort(reason error) error { return s.hangUp(reason) }

func (s *sender) hangUp(why error) error {
	s.mu.Lock()
	tell, shut := !s.ended, !s.closed
	s.ended, s.closed = true, true
	s.mu.Unlock()
	if !shut {
		return nil
	}
	// A frame in the middle of another is data, and then the connection ends: the same to the receiver, but for the reason.
	if tell {
		_ = s.conn.SetWriteDeadline(time.Now().Add(time.Second))
		_ = writeFrame(s.conn, frameAbort, reason(why)) // the receiver sees the connection end in any case
	}
	_ = s.conn.Close() // what it could complain of is not there any more
	<-s.answer
	return nil
}

func (s *sender) Close() error { return s.hangUp(target.ErrAborted) }
