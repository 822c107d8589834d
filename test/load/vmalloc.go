// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"livedump.io/test/churn"
	"livedump.io/test/load/provide"
)

const (
	vmallocMaps    = 12
	vmallocEntries = 8 // of each map
	// An array map of more than 32 KiB is from vmalloc.
	vmallocValue   = 8 << 10
	vmallocImageKB = 512
)

var vmallocLoad = load{
	name:  "vmalloc",
	about: "the vmalloc area: BPF arrays, copies of module images, big extended attributes where the file system has any; kmod/test's churn module if it is at " + provide.ChurnModule,
	start: func(e *env) (*work, error) {
		dir, err := e.tempDir("vmalloc")
		if err != nil {
			return nil, err
		}
		if _, err := os.Stat(provide.ChurnModule); err == nil {
			// Without changes of attributes: they split the direct map for good, and tests
			// want to see that nothing else does.
			if err := insert(provide.ChurnModule, "attributes=0"); err != nil {
				return nil, err
			}
			e.atEnd(endChurn)
		}
		v := &vmallocWork{dir: dir, image: make([]byte, vmallocImageKB<<10)}
		e.atEnd(func() error {
			var errs []error
			for _, m := range v.maps {
				if m.fd != 0 {
					errs = append(errs, m.close())
				}
			}
			return errors.Join(errs...)
		})
		w := &work{round: v.round}
		switch err := v.attribute(0); {
		case errors.Is(err, unix.EOPNOTSUPP):
			v.noAttributes, w.without = true, "extended attributes"
		case err != nil:
			return nil, err
		}
		return w, nil
	},
}

type vmallocWork struct {
	dir   string
	image []byte
	maps  [vmallocMaps]bpfMap
	// noAttributes: the file system of dir had none at the start.
	noAttributes bool
}

func (v *vmallocWork) round(_ context.Context, n int64) (int, error) {
	i := n % vmallocMaps
	m := &v.maps[i]
	entries := func(n int64) uint32 { return uint32(vmallocEntries + n*7%23) }
	if m.fd != 0 {
		old := n - vmallocMaps
		for key := range entries(old) {
			if err := m.check(key, uint64(old)); err != nil {
				return 0, err
			}
		}
		if err := m.close(); err != nil {
			return 0, err
		}
		m.fd = 0
	}
	var err error
	if *m, err = newBPFMap(unix.BPF_MAP_TYPE_ARRAY, vmallocValue, entries(n), vmallocValue); err != nil {
		return 0, err
	}
	for key := range entries(n) {
		if err := m.put(key, uint64(n)); err != nil {
			return 0, err
		}
	}
	if err := v.images(uint64(n)); err != nil {
		return 1, err
	}
	if v.noAttributes {
		return 2, nil
	}
	return 3, v.attribute(uint64(n))
}

// images has the kernel copy module images of some sizes to the vmalloc area, and
// refuse them, for they are none.
func (v *vmallocWork) images(seed uint64) error {
	random := rand.New(rand.NewPCG(seed, 2))
	for range 4 {
		image := v.image[:4096+random.IntN(len(v.image)-4096)]
		err := unix.InitModule(image, "")
		if !errors.Is(err, unix.ENOEXEC) && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("the kernel said to a module image of zeros: %w", err)
		}
	}
	return nil
}

// attribute gives a file an attribute of the largest size and reads it again.
func (v *vmallocWork) attribute(seed uint64) error {
	file := v.dir + "/file"
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	value := make([]byte, 60<<10)
	churn.Fill(value, seed)
	const name = "trusted.livedump"
	if err := unix.Fsetxattr(int(f.Fd()), name, value, 0); err != nil {
		return fmt.Errorf("set an extended attribute: %w", err)
	}
	clear(value)
	if n, err := unix.Fgetxattr(int(f.Fd()), name, value); err != nil || n != len(value) {
		return fmt.Errorf("get an extended attribute: %d bytes of %d: %w", n, len(value), err)
	}
	if err := churn.Check(value, seed); err != nil {
		return fmt.Errorf("extended attribute: %w", err)
	}
	return os.Remove(file)
}

// churnErrors is where the churn module counts what it found wrong in its memory.
const churnErrors = "/sys/module/livedump_churn/parameters/errors"

func endChurn() error {
	b, err := os.ReadFile(churnErrors)
	if err != nil {
		return err
	}
	if found := strings.TrimSpace(string(b)); found != "0" {
		err = fmt.Errorf("the churn module found wrong data %s times; see the kernel's log", found)
	}
	return errors.Join(err, unix.DeleteModule("livedump_churn", unix.O_NONBLOCK))
}
