// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"filippo.io/age"
	"golang.org/x/sys/unix"

	"livedump.io/internal/agefile"
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
	return flat.Size(), writePlain(ctx, flat, flat.Size(), path, func(err error) error { return fmt.Errorf("%s: %w", source, err) }, progress)
}

// Decrypt writes the plain dump that is in an encrypted file or on a device to a file; one that is a flattened stream
// inside is put in order. Everything that is written has been authenticated. It returns the size.
func Decrypt(ctx context.Context, source, path string, identities []age.Identity, progress func(done, total int64)) (size int64, err error) {
	f, err := agefile.Open(source, identities...)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	said := func(err error) error { return fmt.Errorf("%s, decrypted: %w", source, err) }
	plain, size := io.ReaderAt(f), f.Size
	if kdump.IsFlattened(f) {
		flat, err := kdump.OpenFlattened(f, f.Size)
		if err != nil {
			return 0, said(err)
		}
		plain, size = flat, flat.Size()
	}
	return size, writePlain(ctx, plain, size, path, said, progress)
}

// writePlain copies size bytes to a file, which gets its name when it is complete. said puts the source before an error of
// reading.
func writePlain(ctx context.Context, source io.ReaderAt, size int64, path string, said func(error) error, progress func(done, total int64)) (err error) {
	out, err := target.CreateFile(path, target.FileOptions{Room: (size + rearrangeBytes) &^ (rearrangeBytes - 1)})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	buf, err := unix.Mmap(-1, 0, rearrangeBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return fmt.Errorf("a buffer of %d bytes: %w", rearrangeBytes, err)
	}
	defer unix.Munmap(buf)
	zeros := make([]byte, rearrangeBytes)
	for off := int64(0); off < size; off += rearrangeBytes {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		want := int(min(rearrangeBytes, size-off))
		n, err := source.ReadAt(buf[:want], off)
		if n < want {
			return said(fmt.Errorf("reading %d bytes at %d: %w", want, off, err))
		}
		end := (n + kdump.PageSize - 1) &^ (kdump.PageSize - 1)
		clear(buf[n:end])
		if !bytes.Equal(buf[:end], zeros[:end]) {
			if _, err := out.WriteAt(buf[:end], off); err != nil {
				return err
			}
		}
		if progress != nil {
			progress(off+int64(n), size)
		}
	}
	_, err = out.Commit(ctx, size)
	return err
}
