// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Tools finds what hack/tools/build has built.
type Tools struct {
	// Root is the top of the source tree.
	Root string
}

// Path is where a tool is. The error tells how to build a tool that is not there.
func (t Tools) Path(binary string) (string, error) {
	path, err := t.script("hack/tools/path", binary)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%s is not built: run make tools", binary)
	}
	return path, nil
}

// script runs a script of the source tree and returns the one line it prints.
func (t Tools) script(script string, args ...string) (string, error) {
	cmd := exec.Command(filepath.Join(t.Root, script), args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", script, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(string(out)), nil
}
