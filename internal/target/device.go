// SPDX-License-Identifier: Apache-2.0

package target

import (
	"context"
	"fmt"
	"sync"

	"livedump.io/internal/blockdev"
)

// Device is a block device that passed every check. It has no name to give and nothing to cut off: whether it holds a
// dump is said by block 0, which the writer writes last and marks when it gives up.
type Device struct {
	*blockdev.Device

	mu    sync.Mutex
	ended bool
	shut  bool
}

// NewDevice makes a target of a device, which it closes in the end.
func NewDevice(d *blockdev.Device) *Device { return &Device{Device: d} }

// Describe implements Target.
func (d *Device) Describe() string { return d.Identity().String() }

// Abilities implements Target.
func (d *Device) Abilities() Abilities { return Abilities{RandomAccess: true} }

// Commit returns when everything is on stable storage.
func (d *Device) Commit(ctx context.Context, size int64) (Receipt, error) {
	d.mu.Lock()
	ended := d.ended
	d.ended = true
	d.mu.Unlock()
	if ended {
		return Receipt{}, fmt.Errorf("%s: %w", d.Identity().Name, ErrEnded)
	}
	if err := context.Cause(ctx); err != nil {
		return Receipt{}, fmt.Errorf("%s: %w", d.Identity().Name, err)
	}
	if err := d.Sync(); err != nil {
		return Receipt{}, err
	}
	return Receipt{Bytes: size}, nil
}

// Abort implements Target.
func (d *Device) Abort(error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ended = true
	return nil
}

// Close implements Target.
func (d *Device) Close() error {
	d.mu.Lock()
	shut := d.shut
	d.ended, d.shut = true, true
	d.mu.Unlock()
	if shut {
		return nil
	}
	return d.Device.Close()
}
