// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"bytes"
	"context"
	"fmt"
	"regexp"
	"strings"
	"sync"
)

// Output takes what a command says, for those who wait for a part of it. The
// zero value is empty.
type Output struct {
	mu   sync.Mutex
	text bytes.Buffer
	// more, if somebody waits, is closed when there is more.
	more chan struct{}
}

// Write implements io.Writer.
func (o *Output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.more != nil {
		close(o.more)
		o.more = nil
	}
	return o.text.Write(b)
}

func (o *Output) read() (string, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.more == nil {
		o.more = make(chan struct{})
	}
	return o.text.String(), o.more
}

// String returns everything so far.
func (o *Output) String() string {
	text, _ := o.read()
	return text
}

// LastLine returns the last line so far.
func (o *Output) LastLine() string {
	lines := strings.Split(strings.TrimSpace(o.String()), "\n")
	return lines[len(lines)-1]
}

// Wait returns the first match of an expression. It gives up when the command
// that writes has ended without it.
func (o *Output) Wait(ctx context.Context, c *Cmd, expression *regexp.Regexp) ([]string, error) {
	for {
		// Before the text: what was said at the end is seen.
		ended := false
		select {
		case <-c.Exited():
			ended = true
		default:
		}
		text, more := o.read()
		if m := expression.FindStringSubmatch(text); m != nil {
			return m, nil
		}
		if ended {
			return nil, fmt.Errorf("%s ended without saying %q; its last words: %s", c.Argv[0], expression, o.LastLine())
		}
		select {
		case <-more:
		case <-c.Exited():
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for %s to say %q: %w; its last words: %s",
				c.Argv[0], expression, context.Cause(ctx), o.LastLine())
		}
	}
}
