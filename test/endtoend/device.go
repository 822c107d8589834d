// SPDX-License-Identifier: Apache-2.0

package endtoend

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// copyDump copies the first bytes of a disk's image to a file and returns their SHA-256 in hex.
func copyDump(image, file string, size int64) (string, error) {
	in, err := os.Open(image)
	if err != nil {
		return "", err
	}
	defer in.Close()
	out, err := os.Create(file)
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	_, err = io.CopyN(io.MultiWriter(out, sum), in, size)
	if err := errors.Join(err, out.Close()); err != nil {
		return "", fmt.Errorf("copy %d bytes of %s to %s: %w", size, image, file, err)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// contentDigest stands for all of an image's content. Holes and zeros are the
// same to it, so it reads only what was ever written.
func contentDigest(image string) (string, error) {
	f, err := os.Open(image)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum := sha256.New()
	const block = 64 << 10
	buf, zeros := make([]byte, block), make([]byte, block)
	for at := int64(0); ; {
		// The next written piece; ENXIO: there is none.
		data, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return hex.EncodeToString(sum.Sum(nil)), nil
		}
		if err != nil {
			return "", fmt.Errorf("find data in %s: %w", image, err)
		}
		at = data / block * block
		n, err := f.ReadAt(buf, at)
		if err != nil && err != io.EOF {
			return "", err
		}
		if !bytes.Equal(buf[:n], zeros[:n]) {
			if err := binary.Write(sum, binary.LittleEndian, at); err != nil {
				return "", err
			}
			sum.Write(buf[:n])
		}
		at += block
	}
}

// untouched takes the digests of both disks and returns a check that nothing was
// written to them since.
func (b *Bench) untouched() (check func() error, err error) {
	images := []string{b.Target, b.SmallTarget}
	before := make([]string, len(images))
	for i, image := range images {
		if before[i], err = contentDigest(image); err != nil {
			return nil, err
		}
	}
	return func() error {
		for i, image := range images {
			now, err := contentDigest(image)
			if err != nil {
				return err
			}
			if now != before[i] {
				return fmt.Errorf("something was written to the disk %s", filepath.Base(image))
			}
		}
		return nil
	}, nil
}

// livedump runs the project's own command on a dump.
func (b *Bench) livedump(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(b.Options.Root, "bin/livedump"), args...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("livedump %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}

// expectNoDump is an error if a disk carries something that a reader takes for a dump.
func (b *Bench) expectNoDump(ctx context.Context, image string) error {
	f, err := os.Open(image)
	if err != nil {
		return err
	}
	defer f.Close()
	signature := make([]byte, 8)
	if _, err := io.ReadFull(f, signature); err != nil {
		return err
	}
	for _, magic := range []string{"KDUMP   ", "DISKDUMP", "makedump", "\x7fELF"} {
		if strings.HasPrefix(string(signature), magic) {
			return fmt.Errorf("the disk begins with %q: readers take it for a dump", signature)
		}
	}
	if out, err := b.livedump(ctx, "verify", image); err == nil {
		return fmt.Errorf("livedump verify finds a valid dump on the disk: %s", out)
	}
	return nil
}
