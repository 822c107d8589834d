// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"livedump.io/internal/kdump"
	"livedump.io/internal/session"
	"livedump.io/node-agent/engine"
)

// hiddenLoad is the program of test/truth/hidden instead of a load.
const (
	hiddenLoad = "hidden"
)

var hiddenReady = regexp.MustCompile("hidden: holding")

var hiddenLine = regexp.MustCompile(`(?m)^hidden: holding secret=(.*) poisoned=(.*)$`)

// checkHidden checks that no page that is out of the kernel's reach is in the dump, and that the
// module has counted them.
func checkHidden(dump source, said string, report *engine.Report) (string, error) {
	m := hiddenLine.FindStringSubmatch(said)
	if m == nil {
		return "", fmt.Errorf("the program said %q", said)
	}
	summary := "secret: " + m[1]
	if !strings.HasPrefix(m[1], "none") {
		secret, err := absent(dump, m[1])
		if err != nil {
			return "", fmt.Errorf("secret memory: %w", err)
		}
		if n := report.PagesByClass[session.ClassUnmapped.String()]; n < uint64(secret) {
			return "", fmt.Errorf("%d pages are secret, the module counted %d that are not in the direct map", secret, n)
		}
		summary = fmt.Sprintf("%d secret pages absent", secret)
	}
	if strings.HasPrefix(m[2], "none") {
		return summary + ", poisoned: " + m[2], nil
	}
	poisoned, err := absent(dump, m[2])
	if err != nil {
		return "", fmt.Errorf("poisoned memory: %w", err)
	}
	if n := report.PagesByClass[session.ClassHwpoison.String()]; n < uint64(poisoned) { // others are from an earlier run
		return "", fmt.Errorf("%d pages are poisoned, the module counted %d", poisoned, n)
	}
	return fmt.Sprintf("%s, %d poisoned pages absent", summary, poisoned), nil
}

func absent(dump source, frames string) (int, error) {
	page := make([]byte, session.PageSize)
	list := strings.Split(frames, ",")
	for _, frame := range list {
		pfn, err := strconv.ParseUint(frame, 16, 64)
		if err != nil {
			return 0, err
		}
		if _, err := dump.ReadPage(pfn, page); !errors.Is(err, kdump.ErrExcluded) {
			return 0, fmt.Errorf("page frame %#x is in the dump (%w)", pfn, err)
		}
	}
	return len(list), nil
}
