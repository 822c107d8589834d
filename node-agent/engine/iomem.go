// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"livedump.io/internal/kdump"
	"livedump.io/internal/session"
)

// SystemRAM reads the ranges of memory from /proc/iomem. It needs CAP_SYS_ADMIN: others see zeros.
func SystemRAM() ([]kdump.PFNRange, error) {
	f, err := os.Open("/proc/iomem")
	if err != nil {
		return nil, fmt.Errorf("ranges of RAM: %w", err)
	}
	defer f.Close()
	return parseIOMem(f)
}

func parseIOMem(r io.Reader) ([]kdump.PFNRange, error) {
	var ram []kdump.PFNRange
	scanner := bufio.NewScanner(r)
	for scanner.Scan() {
		line := scanner.Text()
		// Indented lines are parts of the range above them.
		addresses, name, ok := strings.Cut(line, " : ")
		if !ok || strings.HasPrefix(line, " ") || !strings.HasPrefix(name, "System RAM") {
			continue
		}
		var first, last uint64
		if _, err := fmt.Sscanf(addresses, "%x-%x", &first, &last); err != nil {
			return nil, fmt.Errorf("ranges of RAM: %q: %w", line, err)
		}
		if last == 0 {
			return nil, errors.New("ranges of RAM: the kernel hides the addresses in /proc/iomem; CAP_SYS_ADMIN is needed")
		}
		// A page that is RAM only in part is none for the kernel.
		start := (first + session.PageSize - 1) / session.PageSize
		end := (last + 1) / session.PageSize
		if start < end {
			ram = append(ram, kdump.PFNRange{Start: start, End: end})
		}
	}
	if err := scanner.Err(); err != nil {
		return nil, fmt.Errorf("ranges of RAM: %w", err)
	}
	if len(ram) == 0 {
		return nil, errors.New("ranges of RAM: /proc/iomem names none")
	}
	return ram, nil
}
