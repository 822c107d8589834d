// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"livedump.io/internal/kdump"
	"livedump.io/internal/target"
)

// IsFlattened says whether a file is a flattened stream.
func IsFlattened(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	return kdump.IsFlattened(f), nil
}

const rearrangeBytes = 1 << 20

// Rearrange writes the plain dump that a flattened stream holds to a file, byte for byte; whatever format the dump is of. What is zeros
// becomes a hole. progress, if not nil, is told how far it is. It returns the size.
func Rearrange(ctx context.Context, source, path string, progress func(done, total int64)) (size int64, err error) {
	f, err := os.Open(source)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	flat, err := kdump.OpenFlattened(f, st.Size())
	if err != nil {
		return 0, fmt.Errorf("%s: %w", source, err)
	}
	size = flat.Size()
	out, err := target.CreateFile(path, target.FileOptions{Room: (size + rearrangeBytes) &^ (rearrangeBytes - 1)})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	buf, err := unix.Mmap(-1, 0, rearrangeBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return 0, fmt.Errorf("a buffer of %d bytes: %w", rearrangeBytes, err)
	}
	defer unix.Munmap(buf)
	zeros := make([]byte, rearrangeBytes)
	for off := int64(0); off < size; off += rearrangeBytes {
		if err := context.Cause(ctx); err != nil {
			return 0, err
		}
		n, err := flat.ReadAt(buf, off)
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, fmt.Errorf("%s: %w", source, err)
		}
		end := (n + kdump.PageSize - 1) &^ (kdump.PageSize - 1)
		clear(buf[n:end])
		if !bytes.Equal(buf[:end], zeros[:end]) {
			if _, err := out.WriteAt(buf[:end], off); err != nil {
				return 0, err
			}
		}
		if progress != nil {
			progress(off+int64(n), size)
		}
	}
	_, err = out.Commit(ctx, size)
	return size, err
}
