// SPDX-License-Identifier: Apache-2.0

package target

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"filippo.io/age"

	"livedump.io/internal/agefile"
	"livedump.io/internal/kdump"
)

// Encrypt makes a target of another: what is written to it lies there as an age file for the recipients. It closes
// the other one in the end. The dump must be kdump-compressed or flattened: one with holes cannot be encrypted.
func Encrypt(t Target, recipients []age.Recipient, session kdump.Session) (Target, error) {
	if random, ok := t.(Random); ok {
		f, err := agefile.New(random, recipients, session)
		if err != nil {
			return nil, fmt.Errorf("encrypting for %s: %w", t.Describe(), err)
		}
		return &encryptedRandom{File: f, inner: random, session: session}, nil
	}
	if parts, ok := t.(*Parts); ok {
		encrypted := &Parts{}
		for _, p := range parts.Parts {
			e, err := Encrypt(p, recipients, session)
			if err != nil {
				return nil, err
			}
			encrypted.Parts = append(encrypted.Parts, e.(Random)) // what is made of a Random
		}
		return encrypted, nil
	}
	stream, ok := t.(Stream)
	if !ok {
		return nil, fmt.Errorf("%s takes bytes neither at any place nor one after the other", t.Describe())
	}
	if len(recipients) == 0 {
		return nil, errors.New("no recipients")
	}
	c := &sent{Stream: stream}
	begin := func() (io.WriteCloser, error) { return agefile.NewStream(c, recipients, session) }
	return &encryptedStream{inner: c, begin: begin}, nil
}

// encryptedRandom is an age file that is written in any order.
type encryptedRandom struct {
	*agefile.File
	inner   Random
	session kdump.Session

	mu    sync.Mutex
	ended bool
}

func (e *encryptedRandom) Describe() string { return e.inner.Describe() }

// Abilities: the plain file has no end that could be cut, and no holes.
func (e *encryptedRandom) Abilities() Abilities {
	return Abilities{RandomAccess: true, ReadsBack: true}
}

func (e *encryptedRandom) Commit(ctx context.Context, size int64) (Receipt, error) {
	e.mu.Lock()
	ended := e.ended
	e.ended = true
	e.mu.Unlock()
	if ended {
		return Receipt{}, fmt.Errorf("%s: %w", e.Describe(), ErrEnded)
	}
	s, err := e.File.Commit(ctx, size)
	if err != nil {
		err = fmt.Errorf("encrypting to %s: %w", e.Describe(), err)
		return Receipt{}, errors.Join(err, kdump.MarkFailed(e.inner, e.session, err), e.inner.Abort(err))
	}
	if _, err := e.inner.Commit(ctx, s.Bytes); err != nil {
		// Its header is there already.
		return Receipt{}, errors.Join(err, kdump.MarkFailed(e.inner, e.session, err), e.inner.Abort(err))
	}
	return Receipt{Bytes: s.Bytes, SHA256: s.SHA256, ReadBack: true}, nil
}

func (e *encryptedRandom) Abort(reason error) error {
	e.mu.Lock()
	e.ended = true
	e.mu.Unlock()
	return e.inner.Abort(reason)
}

func (e *encryptedRandom) Close() error {
	err := errors.Join(e.Abort(ErrAborted), e.inner.Close())
	e.File.Close()
	return err
}

// encryptedStream encrypts what goes through it.
type encryptedStream struct {
	inner *sent
	begin func() (io.WriteCloser, error)
	age   io.WriteCloser // from the first byte on

	mu    sync.Mutex // not held while the inner target waits
	plain int64
	ended bool
}

// sent counts what the inner target gets.
type sent struct {
	Stream
	bytes int64
}

func (s *sent) Write(b []byte) (int, error) {
	n, err := s.Stream.Write(b)
	s.bytes += int64(n)
	return n, err
}

func (e *encryptedStream) Describe() string     { return e.inner.Describe() }
func (e *encryptedStream) Abilities() Abilities { return e.inner.Abilities() }

func (e *encryptedStream) Write(b []byte) (int, error) {
	if e.isEnded() {
		return 0, fmt.Errorf("%s: %w", e.Describe(), ErrEnded)
	}
	if err := e.start(); err != nil {
		return 0, err
	}
	n, err := e.age.Write(b)
	e.mu.Lock()
	e.plain += int64(n)
	e.mu.Unlock()
	return n, err
}

// start writes the header of the age file.
func (e *encryptedStream) start() (err error) {
	if e.age == nil {
		e.age, err = e.begin()
	}
	return err
}

func (e *encryptedStream) isEnded() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.ended
}

func (e *encryptedStream) Commit(ctx context.Context, size int64) (Receipt, error) {
	e.mu.Lock()
	ended, plain := e.ended, e.plain
	e.ended = true
	e.mu.Unlock()
	if ended {
		return Receipt{}, fmt.Errorf("%s: %w", e.Describe(), ErrEnded)
	}
	var err error
	if plain != size {
		err = fmt.Errorf("%s: %d bytes were written, the dump has %d", e.Describe(), plain, size)
	} else if err = errors.Join(context.Cause(ctx), e.start()); err == nil {
		err = e.age.Close()
	}
	if err != nil {
		return Receipt{}, errors.Join(err, e.inner.Abort(err))
	}
	return e.inner.Commit(ctx, e.inner.bytes)
}

func (e *encryptedStream) Abort(reason error) error {
	e.mu.Lock()
	e.ended = true
	e.mu.Unlock()
	return e.inner.Abort(reason)
}

func (e *encryptedStream) Close() error { return errors.Join(e.Abort(ErrAborted), e.inner.Close()) }
