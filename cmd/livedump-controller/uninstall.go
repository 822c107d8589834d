// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"time"

	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"

	"livedump.io/controllers"
)

// uninstall is "livedump-controller uninstall", what the chart runs before it is removed.
func uninstall(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("livedump-controller uninstall", flag.ContinueOnError)
	flags.SetOutput(out)
	patience := flags.Duration("patience", 2*time.Minute, "how long controller and agents get to end the LiveDumps that run")
	var logging zap.Options
	logging.BindFlags(flags)
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil
	} else if err != nil {
		return usageError{err}
	}
	if flags.NArg() > 0 {
		return usageError{fmt.Errorf("unexpected argument %q", flags.Arg(0))}
	}
	ctrl.SetLogger(zap.New(zap.UseFlagOptions(&logging)))
	config, err := ctrl.GetConfig()
	if err != nil {
		return fmt.Errorf("finding the API server: %w", err)
	}
	scheme, err := newScheme()
	if err != nil {
		return err
	}
	c, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		return fmt.Errorf("reaching the API server: %w", err)
	}
	u := controllers.Uninstaller{Client: c, Clock: clock.RealClock{}, Patience: *patience}
	return u.Run(ctx)
}
