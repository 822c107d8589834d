// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"time"

	"livedump.io/internal/target"
)

// Receiver takes one dump and keeps it in a file.
type Receiver struct {
	// Path of the file, which is there when the dump is whole, and not before.
	Path string
	// MaxBytes that are taken; 0: what the file system has room for.
	MaxBytes int64
	// Idle is how long a sender may be silent; 0: five minutes.
	Idle time.Duration
	// Progress, if not nil, is told how many bytes came.
	Progress func(bytes int64)
	// Failed, if not nil, is told of a sender whose dump was not whole.
	Failed func(from net.Addr, err error)
}

// Received is a dump that came.
type Received struct {
	From   net.Addr
	Bytes  int64
	SHA256 [sha256.Size]byte
}

// Receive waits for senders, one at a time, until one has sent a whole dump. It closes the listener.
func (r *Receiver) Receive(ctx context.Context, l net.Listener) (Received, error) {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	defer l.Close()
	for {
		conn, err := l.Accept()
		if cause := context.Cause(ctx); cause != nil {
			if err == nil {
				_ = conn.Close()
			}
			return Received{}, cause
		}
		if err != nil {
			return Received{}, fmt.Errorf("waiting for a dump: %w", err)
		}
		got, err := r.take(ctx, conn)
		if err == nil {
			return got, nil
		}
		if r.Failed != nil {
			r.Failed(conn.RemoteAddr(), err)
		}
	}
}

// take takes a dump from one sender.
func (r *Receiver) take(ctx context.Context, conn net.Conn) (got Received, err error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	defer conn.Close()
	idle := r.Idle
	if idle == 0 {
		idle = 5 * time.Minute
	}
	in := bufio.NewReaderSize(&impatient{conn, idle}, 256<<10)
	got.From = conn.RemoteAddr()
	if err := hello(in); err != nil {
		return got, err
	}
	room := r.MaxBytes
	if room == 0 {
		room = 1 << 62
	}
	file, err := target.CreateFile(r.Path, target.FileOptions{Room: (room + 4095) &^ 4095})
	if err != nil {
		return got, r.answer(conn, err)
	}
	out, err := target.NewAppender(file)
	if err != nil {
		return got, errors.Join(r.answer(conn, err), file.Close())
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	sum := sha256.New()
	for {
		kind, n, err := readHead(in)
		if err != nil {
			return got, cut(err)
		}
		switch kind {
		case frameData:
			err = r.data(in, n, out, sum, &got)
		case frameEnd:
			return got, r.end(ctx, conn, in, n, out, sum, &got)
		case frameAbort:
			why, err := readBody(in, n)
			if err != nil {
				return got, cut(err)
			}
			return got, fmt.Errorf("%w: %s", ErrSender, reason(errors.New(string(why))))
		default:
			err = fmt.Errorf("%w: frame %q", ErrProtocol, kind)
		}
		if err != nil {
			if errors.Is(err, ErrIncomplete) {
				return got, err
			}
			return got, r.answer(conn, err)
		}
	}
}

func hello(in io.Reader) error {
	kind, n, err := readHead(in)
	if err != nil {
		return cut(err)
	}
	if kind != frameHello {
		return fmt.Errorf("%w: frame %q", ErrProtocol, kind)
	}
	said, err := readBody(in, n)
	if err != nil {
		return cut(err)
	}
	if string(said) != version {
		return fmt.Errorf("%w: it says %q, want %q", ErrProtocol, reason(errors.New(string(said))), version)
	}
	return nil
}

// data copies the body of a frame.
func (r *Receiver) data(in io.Reader, n int, out io.Writer, sum hash.Hash, got *Received) error {
	if r.MaxBytes > 0 && got.Bytes+int64(n) > r.MaxBytes {
		return fmt.Errorf("the dump has more than the %d bytes that are allowed", r.MaxBytes)
	}
	body, err := readBody(in, n)
	if err != nil {
		return cut(err)
	}
	if _, err := out.Write(body); err != nil {
		return err
	}
	sum.Write(body)
	got.Bytes += int64(n)
	if r.Progress != nil {
		r.Progress(got.Bytes)
	}
	return nil
}

// end compares what came with what was sent, makes it a file, and says so to the sender.
func (r *Receiver) end(ctx context.Context, conn net.Conn, in io.Reader, n int, out target.Stream, sum hash.Hash, got *Received) error {
	body, err := readBody(in, n)
	if err != nil {
		return cut(err)
	}
	sum.Sum(got.SHA256[:0])
	if n != endBytes || int64(binary.BigEndian.Uint64(body)) != got.Bytes || !bytes.Equal(body[8:], got.SHA256[:]) {
		return r.answer(conn, fmt.Errorf("%w: what came is not what was sent", ErrProtocol))
	}
	if _, err := out.Commit(ctx, got.Bytes); err != nil {
		return r.answer(conn, err)
	}
	if err := writeFrame(conn, frameTaken, got.SHA256[:]); err != nil {
		// The sender reports a failure. That the file is there all the same is said here.
		return fmt.Errorf("%s is whole, but the sender could not be told so: %w", r.Path, err)
	}
	return nil
}

// answer tells the sender what went wrong here.
func (r *Receiver) answer(conn net.Conn, err error) error {
	_ = conn.SetWriteDeadline(time.Now().Add(10 * time.Second))
	if werr := writeFrame(conn, frameError, reason(err)); werr != nil {
		return errors.Join(err, fmt.Errorf("telling the sender: %w", werr))
	}
	// Were the connection closed with data unread, the answer could be lost with it.
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, _ = io.Copy(io.Discard, conn)
	return err
}

func cut(err error) error {
	if errors.Is(err, ErrProtocol) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrIncomplete, err)
}

// impatient gives up on a sender that is silent.
type impatient struct {
	net.Conn
	idle time.Duration
}

func (i *impatient) Read(b []byte) (int, error) {
	if err := i.SetReadDeadline(time.Now().Add(i.idle)); err != nil {
		return 0, err
	}
	return i.Conn.Read(b)
}
