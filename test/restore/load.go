// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"livedump.io/test/load/provide"
)

// startLoad starts a load and returns when it runs; the function that it returns
// ends it and says what the load found wrong.
func (b *bench) startLoad(ctx context.Context, arguments ...string) (end func(context.Context) error, err error) {
	c := b.Command(append([]string{provide.Program}, arguments...)...)
	said := &watcher{word: "load: running", seen: make(chan struct{})}
	running := said.seen
	c.Stdout, c.Stderr = said, said
	if err := c.Start(ctx); err != nil {
		return nil, err
	}
	select {
	case <-running:
	case <-c.Exited():
		return nil, fmt.Errorf("the load ended before it ran: %s", said.text.String())
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	return func(ctx context.Context) error {
		if err := c.Signal(unix.SIGTERM); err != nil {
			return err
		}
		if err := c.Wait(ctx); err != nil {
			return fmt.Errorf("%w: %s", err, said.text.String())
		}
		return nil
	}, nil
}

// watcher keeps what is written, and closes seen when a word was.
type watcher struct {
	text bytes.Buffer
	word string
	seen chan struct{}
}

func (w *watcher) Write(b []byte) (int, error) {
	w.text.Write(b)
	if w.seen != nil && strings.Contains(w.text.String(), w.word) {
		close(w.seen)
		w.seen = nil
	}
	return len(b), nil
}
