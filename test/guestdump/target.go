// SPDX-License-Identifier: Apache-2.0

package guestdump

import (
	"context"
	"fmt"
	"io"
	"os"

	"livedump.io/internal/kdump"
	"livedump.io/node-agent/engine"
)

// CopyOff copies a dump off the image of the guest's disk into a file, and checks all of it.
func CopyOff(ctx context.Context, image, file string, r *engine.Report) error {
	in, err := os.Open(image)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	defer out.Close()
	if _, err := io.CopyN(out, in, int64(r.SizeBytes)); err != nil {
		return fmt.Errorf("copy the dump: %w", err)
	}
	if err := out.Close(); err != nil {
		return err
	}
	return Verify(ctx, file, r)
}

// Verify reads every page of a dump, which may be the image of a disk, and compares what it finds
// with the agent's report.
func Verify(ctx context.Context, file string, r *engine.Report) error {
	d, err := kdump.Open(file)
	if err != nil {
		return fmt.Errorf("verify the dump: %w", err)
	}
	defer d.Close()
	found, err := d.Verify(ctx, kdump.VerifyOptions{})
	if err != nil {
		return fmt.Errorf("verify the dump: %w", err)
	}
	if !found.OK || found.Pages != r.PagesDumped || found.Bytes != r.SizeBytes || found.SHA256 != r.SHA256 {
		return fmt.Errorf("verify the dump: found %+v, the agent reported %d pages, %d bytes, SHA-256 %s",
			found, r.PagesDumped, r.SizeBytes, r.SHA256)
	}
	return nil
}
