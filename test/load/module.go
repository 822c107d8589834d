// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"livedump.io/test/load/provide"
)

var moduleLoad = load{
	name:  "module",
	about: "kernel modules: load, see in sysfs, unload",
	start: func(e *env) (*work, error) {
		files := map[string]string{}
		for _, name := range provide.LoopModules {
			list, err := moduleFiles(name)
			if err != nil {
				return nil, err
			}
			if len(list) != 1 {
				return nil, fmt.Errorf("module %s is to be one file of its own, but it is %q", name, list)
			}
			if _, err := os.Stat("/sys/module/" + name); err == nil {
				return nil, fmt.Errorf("module %s is loaded already", name)
			}
			files[name] = list[0]
		}
		return &work{round: func(ctx context.Context, n int64) (int, error) {
			name := provide.LoopModules[int(n%int64(len(provide.LoopModules)))]
			return 1, moduleRound(name, files[name])
		}}, nil
	},
}

func moduleRound(name, file string) error {
	if err := insert(file, ""); err != nil {
		return err
	}
	_, statErr := os.Stat("/sys/module/" + name)
	if err := unix.DeleteModule(name, unix.O_NONBLOCK); err != nil {
		return fmt.Errorf("unload %s: %w", name, err)
	}
	if statErr != nil {
		return fmt.Errorf("%s was loaded, but: %w", name, statErr)
	}
	if _, err := os.Stat("/sys/module/" + name); !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s was unloaded, but sysfs still has it (%w)", name, err)
	}
	return nil
}
