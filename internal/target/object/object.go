// SPDX-License-Identifier: Apache-2.0

package object

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/minio/minio-go/v7"

	"livedump.io/internal/kdump"
	"livedump.io/internal/target"
)

// Object is an object that is being uploaded. It is a target.Stream.
type Object struct {
	o        Options
	core     *minio.Core
	uploadID string

	ctx    context.Context // of all requests but those that clean up
	cancel context.CancelCauseFunc
	// parts is the context of parts that are being sent. It ends later than ctx: a store may go on with a part whose sender
	// is gone, and keep it for ever if the upload was aborted meanwhile.
	parts  context.Context
	cutOff context.CancelFunc
	work   chan *part
	free   chan *part
	group  sync.WaitGroup

	writing sync.Mutex // held by Write and Commit
	sum     hash.Hash
	bytes   int64
	cur     *part
	next    int // number of the part that is begun next, from 0

	mu         sync.Mutex
	done       []minio.CompletePart
	completing bool // the object may be there
	ended      bool // committed, aborted or closed
	committed  bool
	cleanUp    sync.Once
	cleaned    error
}

// part is a piece of the object in memory.
type part struct {
	b      []byte
	free   func()
	filled int
	number int
}

// Open checks the place by beginning the upload, of which nobody sees anything: that the store answers, that it is the right one,
// that the bucket is there, and that the credentials allow to write there.
//
// Errors: ErrUnreachable, ErrCertificate, ErrDenied, ErrNoBucket, ErrStore.
func Open(ctx context.Context, o Options) (*Object, error) {
	core, err := o.client()
	if err != nil {
		return nil, err
	}
	t := &Object{o: o, core: core, sum: sha256.New(), work: make(chan *part), free: make(chan *part, o.Uploads+1)}
	t.ctx, t.cancel = context.WithCancelCause(context.Background())
	t.parts, t.cutOff = context.WithCancel(context.Background())
	err = t.retry(ctx, ctx, "beginning the upload", openPatience, requestTime, func(ctx context.Context) (err error) {
		t.uploadID, err = core.NewMultipartUpload(ctx, o.Bucket, o.Key, minio.PutObjectOptions{ContentType: "application/octet-stream"})
		return err
	})
	if err != nil {
		return nil, err
	}
	for range o.Uploads + 1 {
		t.free <- &part{free: func() {}}
	}
	for range o.Uploads {
		t.group.Go(t.upload)
	}
	return t, nil
}

// Exists says whether there is the object, written by whomever. The errors are those of Open: credentials may allow to write and not to look.
func Exists(ctx context.Context, o Options) (bool, error) {
	core, err := o.client()
	if err != nil {
		return false, err
	}
	t := &Object{o: o, core: core}
	there := false
	err = t.retry(ctx, ctx, "looking for the object", openPatience, requestTime, func(ctx context.Context) error {
		_, err := core.StatObject(ctx, o.Bucket, o.Key, minio.StatObjectOptions{})
		var r minio.ErrorResponse
		if errors.As(err, &r) && r.Code == minio.NoSuchKey {
			return nil
		}
		there = err == nil
		return err
	})
	return there, err
}

const (
	// openPatience: whether the store is there is to be known before memory is frozen.
	openPatience = 20 * time.Second
	// abortPatience is how long it is tried to take back an upload.
	abortPatience = 30 * time.Second
	// partGrace is how long parts that are being sent may take then.
	partGrace = 10 * time.Second
	// requestTime is how long the store may take for a request without data.
	requestTime = 30 * time.Second
	// completeTime: some stores put the object together only then.
	completeTime = 10 * time.Minute
	// slowest upload that is waited for, bytes per second.
	slowest = 128 << 10

	firstWait, longestWait = 100 * time.Millisecond, 5 * time.Second
)

// retry does something until it succeeds, fails for good, or has failed for so long. Each attempt has a time limit. The end of ctx ends
// the trying, the end of request also an attempt that is under way.
func (t *Object) retry(ctx, request context.Context, doing string, patience, each time.Duration, do func(context.Context) error) error {
	var failing time.Time
	for wait := firstWait; ; wait = min(2*wait, longestWait) {
		attempt, cancel := context.WithTimeout(request, each)
		err := do(attempt)
		cancel()
		if err == nil {
			return nil
		}
		if cause := context.Cause(ctx); cause != nil {
			return fmt.Errorf("%s: %s: %w", t.o.Place(), doing, cause)
		}
		now := time.Now()
		if failing.IsZero() {
			failing = now
		}
		if _, again := explain(err); !again || now.Sub(failing) >= patience {
			return storeError(&t.o, doing, err)
		}
		t.o.Log.Warn("the object store fails; trying again", "doing", doing, "error", err, "in", wait)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
}

// Describe implements target.Target.
func (t *Object) Describe() string { return t.o.Place() }

// Abilities implements target.Target.
func (t *Object) Abilities() target.Abilities { return target.Abilities{} }

// Write takes bytes, and waits while all parts are under way.
func (t *Object) Write(b []byte) (int, error) {
	t.writing.Lock()
	defer t.writing.Unlock()
	t.mu.Lock()
	ended := t.committed
	t.mu.Unlock()
	if ended {
		return 0, fmt.Errorf("%s: %w", t.o.Place(), target.ErrEnded)
	}
	n := 0
	for n < len(b) {
		if err := t.room(); err != nil {
			return n, err
		}
		k := copy(t.cur.b[t.cur.filled:], b[n:])
		t.sum.Write(b[n : n+k])
		t.cur.filled += k
		t.bytes += int64(k)
		n += k
		if t.cur.filled == len(t.cur.b) {
			if err := t.send(); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

// room sees to it that there is a part to be filled.
func (t *Object) room() error {
	if t.ctx.Err() != nil {
		return context.Cause(t.ctx)
	}
	if t.cur != nil {
		return nil
	}
	if t.next == mostParts {
		return t.fail(fmt.Errorf("%s: %w: it has %d bytes", t.o.Place(), ErrTooLarge, t.bytes))
	}
	select {
	case p := <-t.free:
		if size := t.o.partSize(t.next); len(p.b) < size {
			p.free()
			b, free, err := kdump.NewBuffer(size)
			if err != nil {
				p.free = func() {}
				t.free <- p
				return t.fail(err)
			}
			p.b, p.free = b[:size], free
		}
		p.filled, p.number = 0, t.next+1
		t.cur = p
		t.next++
		return nil
	case <-t.ctx.Done():
		return context.Cause(t.ctx)
	}
}

// send hands the part over to whoever is free.
func (t *Object) send() error {
	select {
	case t.work <- t.cur:
		t.cur = nil
		return nil
	case <-t.ctx.Done():
		return context.Cause(t.ctx)
	}
}

func (t *Object) fail(err error) error {
	t.cancel(err)
	return err
}

// upload sends parts, each until it is acknowledged.
func (t *Object) upload() {
	for {
		var p *part
		select {
		case p = <-t.work:
		case <-t.ctx.Done():
			return
		}
		if p == nil {
			return // Commit has closed the channel
		}
		content := p.b[:p.filled]
		sum := sha256.Sum256(content)
		options := minio.PutObjectPartOptions{Sha256Hex: hex.EncodeToString(sum[:])}
		limit := requestTime + time.Duration(len(content)/slowest)*time.Second
		err := t.retry(t.ctx, t.parts, fmt.Sprintf("uploading part %d", p.number), t.o.Patience, limit, func(ctx context.Context) error {
			got, err := t.core.PutObjectPart(ctx, t.o.Bucket, t.o.Key, t.uploadID, p.number, bytes.NewReader(content), int64(len(content)), options)
			if err != nil {
				return err
			}
			t.mu.Lock()
			t.done = append(t.done, minio.CompletePart{PartNumber: p.number, ETag: got.ETag})
			t.mu.Unlock()
			return nil
		})
		t.free <- p
		if err != nil {
			t.cancel(err)
			return
		}
	}
}

// Commit sends the last part, completes the upload, and reads the object back.
func (t *Object) Commit(ctx context.Context, size int64) (r target.Receipt, err error) {
	t.writing.Lock()
	defer t.writing.Unlock()
	t.mu.Lock()
	ended := t.ended
	t.ended = true
	t.mu.Unlock()
	if ended {
		return r, fmt.Errorf("%s: %w", t.o.Place(), target.ErrEnded)
	}
	stop := context.AfterFunc(ctx, func() { t.cancel(context.Cause(ctx)) })
	defer stop()
	r = target.Receipt{Bytes: size}
	t.sum.Sum(r.SHA256[:0])
	if r.ReadBack, err = t.commit(size, r.SHA256); err != nil {
		t.cancel(err)
		return target.Receipt{}, errors.Join(err, t.discard())
	}
	t.mu.Lock()
	t.committed = true
	t.mu.Unlock()
	t.releaseParts()
	t.cancel(target.ErrEnded)
	t.cutOff()
	return r, nil
}

func (t *Object) commit(size int64, sum [sha256.Size]byte) (readBack bool, err error) {
	if size != t.bytes || size == 0 {
		return false, fmt.Errorf("%s: %d bytes were written, the dump has %d", t.o.Place(), t.bytes, size)
	}
	if t.cur != nil {
		if err := t.send(); err != nil {
			return false, err
		}
	}
	close(t.work)
	t.group.Wait()
	if t.ctx.Err() != nil {
		return false, context.Cause(t.ctx)
	}
	if err := t.complete(size); err != nil {
		return false, err
	}
	return t.readBack(size, sum)
}

// complete makes the object of its parts. The answer may get lost, so one that says that there is no such upload any more
// is a success if the object is there.
func (t *Object) complete(size int64) error {
	slices.SortFunc(t.done, func(a, b minio.CompletePart) int { return a.PartNumber - b.PartNumber })
	t.mu.Lock()
	t.completing = true
	t.mu.Unlock()
	attempts := 0
	return t.retry(t.ctx, t.ctx, "completing the upload", t.o.Patience, completeTime, func(ctx context.Context) error {
		attempts++
		_, err := t.core.CompleteMultipartUpload(ctx, t.o.Bucket, t.o.Key, t.uploadID, t.done, minio.PutObjectOptions{})
		var r minio.ErrorResponse
		if attempts > 1 && errors.As(err, &r) && r.Code == "NoSuchUpload" {
			if i, serr := t.core.StatObject(ctx, t.o.Bucket, t.o.Key, minio.StatObjectOptions{}); serr == nil && i.Size == size {
				return nil
			}
		}
		return err
	})
}

// readBack compares the object with what was sent. Credentials that may only write are no error: then the store's word has to do,
// which compared every part with its checksum.
func (t *Object) readBack(size int64, want [sha256.Size]byte) (done bool, err error) {
	h := sha256.New()
	var at int64
	err = t.retry(t.ctx, t.ctx, "reading the object back", t.o.Patience, requestTime+time.Duration(size/slowest)*time.Second, func(ctx context.Context) error {
		o := minio.GetObjectOptions{}
		if at >= size {
			return nil
		}
		if at > 0 {
			if err := o.SetRange(at, 0); err != nil {
				return err
			}
		}
		body, _, _, err := t.core.GetObject(ctx, t.o.Bucket, t.o.Key, o)
		if err != nil {
			return err
		}
		defer body.Close()
		n, err := io.Copy(h, body)
		at += n
		if err == nil && at < size {
			err = io.ErrUnexpectedEOF
		}
		return err
	})
	if errors.Is(err, ErrDenied) {
		t.o.Log.Warn("the credentials do not allow to read the object back; the store has compared each part with its checksum", "object", t.o.Place())
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if at != size || [sha256.Size]byte(h.Sum(nil)) != want {
		return false, fmt.Errorf("%s: %w: %d bytes", t.o.Place(), kdump.ErrReadBack, at)
	}
	return true, nil
}

// Abort takes the upload back.
func (t *Object) Abort(reason error) error {
	t.mu.Lock()
	t.ended = true
	committed := t.committed
	t.mu.Unlock()
	if committed {
		return nil
	}
	if reason == nil {
		reason = target.ErrAborted
	}
	t.cancel(fmt.Errorf("%s: %w: %w", t.o.Place(), target.ErrAborted, reason))
	t.writing.Lock() // a Commit that is under way cleans up itself
	defer t.writing.Unlock()
	t.mu.Lock()
	committed = t.committed
	t.mu.Unlock()
	if committed {
		return nil
	}
	return t.discard()
}

// discard leaves nothing in the store, once nothing is being sent any more.
func (t *Object) discard() error {
	t.cleanUp.Do(func() {
		timer := time.AfterFunc(partGrace, t.cutOff)
		t.group.Wait()
		timer.Stop()
		t.cutOff()
		t.releaseParts()
		ctx := context.Background()
		t.cleaned = t.retry(ctx, ctx, "aborting the upload", abortPatience, requestTime, t.abortUpload)
		t.mu.Lock()
		completing := t.completing
		t.mu.Unlock()
		if completing {
			// It may have been completed without our hearing of it; or what was read back is not what was sent.
			err := t.retry(ctx, ctx, "removing the object", abortPatience, requestTime, func(ctx context.Context) error {
				return t.core.RemoveObject(ctx, t.o.Bucket, t.o.Key, minio.RemoveObjectOptions{})
			})
			t.cleaned = errors.Join(t.cleaned, err)
		}
	})
	return t.cleaned
}

// abortUpload aborts until the store does not know the upload any more: a part that was cut off may come after an abort.
func (t *Object) abortUpload(ctx context.Context) error {
	gone := func(err error) bool {
		var r minio.ErrorResponse
		return errors.As(err, &r) && r.Code == "NoSuchUpload"
	}
	for range 3 {
		if err := t.core.AbortMultipartUpload(ctx, t.o.Bucket, t.o.Key, t.uploadID); err != nil {
			if gone(err) {
				return nil
			}
			return err
		}
		// Credentials that may not look are no reason to go on.
		if _, err := t.core.ListObjectParts(ctx, t.o.Bucket, t.o.Key, t.uploadID, 0, 1); err != nil {
			return nil
		}
	}
	return nil
}

// releaseParts gives memory back. Nothing uses it any more.
func (t *Object) releaseParts() {
	if t.cur != nil {
		t.cur.free()
		t.cur = nil
	}
	for {
		select {
		case p := <-t.free:
			p.free()
		default:
			return
		}
	}
}

// Close implements target.Target.
func (t *Object) Close() error { return t.Abort(target.ErrAborted) }
