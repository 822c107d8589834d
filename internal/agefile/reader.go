// SPDX-License-Identifier: Apache-2.0

package agefile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"filippo.io/age"
)

// Reader reads an age file at any place. Its ReadAt may be called from several goroutines.
type Reader struct {
	io.ReaderAt
	// Size of the plain file in bytes.
	Size int64
}

// ErrEncrypted: the file cannot be read without an identity.
var ErrEncrypted = errors.New("encrypted")

// Info is what can be seen of an age file without an identity.
type Info struct {
	Owner Owner
	// Own says that livedump wrote it.
	Own bool
	// Size of the file; on a device it is less than that of the device.
	Size int64
	// Recipients by their kind, X25519 say. Who they are cannot be seen.
	Recipients []string
}

// Inspect looks at the header of an age file in the first size bytes of r. ErrNotAge; an error of a file of
// livedump that is shorter than its header says wraps io.ErrUnexpectedEOF.
func Inspect(r io.ReaderAt, size int64) (Info, error) {
	head := make([]byte, min(256, max(size, 0)))
	if n, err := r.ReadAt(head, 0); n < len(head) {
		return Info{}, fmt.Errorf("reading the beginning: %w", err)
	}
	if !IsAge(head) {
		return Info{}, ErrNotAge
	}
	i := Info{Size: size}
	if i.Owner, i.Own = OwnerOf(head); i.Own && i.Owner.Size > 0 {
		if i.Owner.Size > size {
			return i, fmt.Errorf("the encrypted file has %d bytes, %d are there: %w", i.Owner.Size, size, io.ErrUnexpectedEOF)
		}
		i.Size = i.Owner.Size
	}
	raw, err := age.ExtractHeader(io.NewSectionReader(r, 0, i.Size))
	if err != nil {
		return i, fmt.Errorf("age header: %w", err)
	}
	for line := range strings.Lines(string(raw)) {
		if kind, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "-> "); ok && !strings.HasPrefix(kind, stanzaType+" ") {
			kind, _, _ = strings.Cut(kind, " ")
			i.Recipients = append(i.Recipients, kind)
		}
	}
	return i, nil
}

// NewReader opens the age file in the first size bytes of r; what follows it on a device does not matter. The end of
// the file is authenticated at once, everything else when it is read.
func NewReader(r io.ReaderAt, size int64, identities ...age.Identity) (*Reader, error) {
	i, err := Inspect(r, size)
	if err != nil {
		return nil, err
	}
	plain, n, err := age.DecryptReaderAt(r, i.Size, identities...)
	if noMatch := (*age.NoIdentityMatchError)(nil); errors.As(err, &noMatch) {
		return nil, fmt.Errorf("%w for other recipients (%s): none of the identities is among them", ErrEncrypted, strings.Join(i.Recipients, ", "))
	}
	if err != nil {
		return nil, fmt.Errorf("decrypting: %w", err)
	}
	return &Reader{plain, n}, nil
}

// OpenFile is an age file that was opened by its path.
type OpenFile struct {
	*Reader
	f *os.File
}

// Close ends the use of the file.
func (o *OpenFile) Close() error { return o.f.Close() }

// openPath opens a file or block device and tells its size.
func openPath(path string) (*os.File, int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, 0, errors.Join(fmt.Errorf("size of %s: %w", path, err), f.Close())
	}
	return f, size, nil
}

// Open opens an age file, or a block device that begins with one. Without identities the error is ErrEncrypted.
func Open(path string, identities ...age.Identity) (*OpenFile, error) {
	if len(identities) == 0 {
		i, err := InspectFile(path)
		if err == nil {
			err = fmt.Errorf("%w for %s: give the file with the private key (-i)", ErrEncrypted, strings.Join(i.Recipients, ", "))
		}
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	f, size, err := openPath(path)
	if err != nil {
		return nil, err
	}
	r, err := NewReader(f, size, identities...)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), f.Close())
	}
	return &OpenFile{r, f}, nil
}

// InspectFile is Inspect of a file or a block device.
func InspectFile(path string) (Info, error) {
	f, size, err := openPath(path)
	if err != nil {
		return Info{}, err
	}
	defer f.Close()
	return Inspect(f, size)
}

// ReadIdentities reads private keys from a file of age-keygen.
func ReadIdentities(path string) ([]age.Identity, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the identity: %w", err)
	}
	ids, err := age.ParseIdentities(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return ids, nil
}
