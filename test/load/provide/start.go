// SPDX-License-Identifier: Apache-2.0

package provide

import (
	"bytes"
	"context"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"livedump.io/test/guest"
)

// Start starts the program with these arguments in a guest that has its Files, and returns when
// all loads run. The function that it returns ends them and says what they found wrong.
func Start(ctx context.Context, g *guest.Guest, arguments ...string) (end func(context.Context) error, err error) {
	c := g.Command(append([]string{Program}, arguments...)...)
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
		return nil, fmt.Errorf("the load does not run: %w", context.Cause(ctx))
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
