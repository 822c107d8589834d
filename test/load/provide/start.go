// SPDX-License-Identifier: Apache-2.0

package provide

import (
	"context"
	"fmt"
	"regexp"

	"golang.org/x/sys/unix"

	"livedump.io/test/guest"
)

// Running is what the program says when every load has finished its first round.
var Running = regexp.MustCompile("load: running")

// Start starts the program with these arguments in a guest that has its Files, and returns when
// all loads run. The function that it returns ends them and says what they found wrong.
func Start(ctx context.Context, g *guest.Guest, arguments ...string) (end func(context.Context) error, err error) {
	c := g.Command(append([]string{Program}, arguments...)...)
	said := &guest.Output{}
	c.Stdout, c.Stderr = said, said
	if err := c.Start(ctx); err != nil {
		return nil, err
	}
	if _, err := said.Wait(ctx, c, Running); err != nil {
		return nil, err
	}
	return func(ctx context.Context) error {
		if err := c.Signal(unix.SIGTERM); err != nil {
			return err
		}
		if err := c.Wait(ctx); err != nil {
			return fmt.Errorf("%w: %s", err, said)
		}
		return nil
	}, nil
}
