// SPDX-License-Identifier: Apache-2.0

package agefile

import (
	"bytes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"filippo.io/age"
	"github.com/google/uuid"
	"golang.org/x/crypto/chacha20poly1305"

	"livedump.io/internal/kdump"
)

// The format of age, as far as it is written here.
const (
	intro       = "age-encryption.org/v1\n"
	lineBytes   = 48 // of a stanza's body, 64 characters
	fileKeySize = 16
	nonceSize   = 16

	// CellSize is what of the plain file is encrypted together.
	CellSize = 64 << 10
	tagSize  = chacha20poly1305.Overhead
	sealed   = CellSize + tagSize
)

// stanzaType of livedump's own stanza. Programs that do not know it pass over it.
const stanzaType = "livedump.io/v1"

// secret is what a file is encrypted with. It never leaves the process.
type secret struct {
	fileKey []byte
	nonce   []byte
	aead    cipher.AEAD
}

func newSecret() (*secret, error) {
	s := &secret{fileKey: make([]byte, fileKeySize), nonce: make([]byte, nonceSize)}
	_, _ = rand.Read(s.fileKey) // never fails
	_, _ = rand.Read(s.nonce)
	key, err := hkdf.Key(sha256.New, s.fileKey, s.nonce, "payload", chacha20poly1305.KeySize)
	if err != nil {
		return nil, fmt.Errorf("key of the age file: %w", err)
	}
	if s.aead, err = chacha20poly1305.New(key); err != nil {
		return nil, fmt.Errorf("key of the age file: %w", err)
	}
	return s, nil
}

// wrapped are the stanzas from which the recipients get the file key.
func (s *secret) wrapped(recipients []age.Recipient) ([]*age.Stanza, error) {
	var all []*age.Stanza
	var labels []string
	for i, r := range recipients {
		stanzas, l, err := wrap(r, s.fileKey)
		if err != nil {
			return nil, fmt.Errorf("encrypting for recipient %d: %w", i+1, err)
		}
		if i == 0 {
			labels = l
		} else if strings.Join(l, ",") != strings.Join(labels, ",") {
			return nil, fmt.Errorf("recipient %d: post-quantum recipients and others cannot be mixed: the others would make the file as weak as they are", i+1)
		}
		all = append(all, stanzas...)
	}
	return all, nil
}

func wrap(r age.Recipient, key []byte) ([]*age.Stanza, []string, error) {
	if l, ok := r.(age.RecipientWithLabels); ok {
		return l.WrapWithLabels(key)
	}
	s, err := r.Wrap(key)
	return s, nil, err
}

// header is everything before the first cell, padded to size bytes; 0: to whole blocks.
func (s *secret) header(owner Owner, stanzas []*age.Stanza, size int64) ([]byte, error) {
	plain, err := s.marshal(owner.stanza(0, 1), stanzas)
	if err != nil {
		return nil, err
	}
	if size == 0 {
		size = (int64(len(plain)) + kdump.PageSize - 1) &^ (kdump.PageSize - 1)
	}
	pad := int(size) - len(plain)
	if pad < 0 {
		return nil, fmt.Errorf("the header of the age file has %d bytes, %d are there", len(plain), size)
	}
	// A line of the body takes 65 bytes, a character of the argument one.
	b, err := s.marshal(owner.stanza(pad/65, 1+pad%65), stanzas)
	if err == nil && int64(len(b)) != size {
		err = fmt.Errorf("the header of the age file has %d bytes, expected %d", len(b), size)
	}
	return b, err
}

func (s *secret) marshal(own *age.Stanza, stanzas []*age.Stanza) ([]byte, error) {
	var b bytes.Buffer
	b.WriteString(intro)
	for _, st := range append([]*age.Stanza{own}, stanzas...) {
		b.WriteString("-> " + strings.Join(append([]string{st.Type}, st.Args...), " ") + "\n")
		body := st.Body
		for ; len(body) >= lineBytes; body = body[lineBytes:] {
			b.WriteString(base64.RawStdEncoding.EncodeToString(body[:lineBytes]) + "\n")
		}
		// The last line is shorter than a whole one, and may be empty.
		b.WriteString(base64.RawStdEncoding.EncodeToString(body) + "\n")
	}
	b.WriteString("---")
	key, err := hkdf.Key(sha256.New, s.fileKey, nil, "header", sha256.Size)
	if err != nil {
		return nil, fmt.Errorf("key of the age header: %w", err)
	}
	mac := hmac.New(sha256.New, key)
	mac.Write(b.Bytes())
	b.WriteString(" " + base64.RawStdEncoding.EncodeToString(mac.Sum(nil)) + "\n")
	b.Write(s.nonce)
	return b.Bytes(), nil
}

// Owner is what livedump's stanza says of a file.
type Owner struct {
	Session kdump.Session
	// Size of the whole encrypted file in bytes; 0 if it was not known, in a stream.
	Size int64
}

const sizeDigits = 19 // always as many, so that the header's length does not depend on the size

func (o Owner) stanza(lines, pad int) *age.Stanza {
	return &age.Stanza{Type: stanzaType, Body: make([]byte, lines*lineBytes),
		Args: []string{o.Session.String(), fmt.Sprintf("%0*d", sizeDigits, o.Size), strings.Repeat(".", pad)}}
}

// ErrNotAge: this is no age file.
var ErrNotAge = errors.New("not an age file")

// IsAge says whether a file that begins like this is an age file.
func IsAge(head []byte) bool { return bytes.HasPrefix(head, []byte(intro)) }

// OwnerOf reads livedump's stanza from the beginning of an age file, of which 256 bytes are enough.
// found is false if it is an age file of another program. Nothing here is authenticated: that takes an identity.
func OwnerOf(head []byte) (o Owner, found bool) {
	rest, ok := bytes.CutPrefix(head, []byte(intro+"-> "+stanzaType+" "))
	if !ok {
		return o, false
	}
	if end := bytes.IndexByte(rest, '\n'); end >= 0 {
		rest = rest[:end]
	}
	fields := strings.SplitN(string(rest[:min(len(rest), 128)]), " ", 3)
	if len(fields) != 3 || len(fields[1]) != sizeDigits {
		return o, false
	}
	id, err := uuid.Parse(fields[0])
	if err != nil {
		return o, false
	}
	size, err := strconv.ParseInt(fields[1], 10, 64)
	if err != nil || size < 0 {
		return o, false
	}
	return Owner{Session: kdump.Session(id), Size: size}, true
}

// ParseRecipients reads public keys as age-keygen prints them: age1... or, post-quantum, age1pq1...
func ParseRecipients(keys []string) ([]age.Recipient, error) {
	var all []age.Recipient
	for i, key := range keys {
		var r age.Recipient
		var err error
		switch {
		case strings.HasPrefix(key, "AGE-"):
			// Not to be repeated in an error that goes to logs and conditions.
			return nil, fmt.Errorf("recipient %d is a private key: it must not get here, make a new one; its public key begins with age1", i+1)
		case strings.HasPrefix(key, "age1pq1"):
			r, err = age.ParseHybridRecipient(key)
		case strings.HasPrefix(key, "age1"):
			r, err = age.ParseX25519Recipient(key)
		default:
			err = errors.New("want a public key of age-keygen, age1...")
		}
		if err != nil {
			return nil, fmt.Errorf("recipient %d: %w", i+1, err)
		}
		all = append(all, r)
	}
	if len(all) > 0 {
		// What does not fit together must be known before memory is frozen.
		s, err := newSecret()
		if err == nil {
			_, err = s.wrapped(all)
		}
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}

// ownerRecipient puts livedump's stanza before those of the first recipient.
type ownerRecipient struct {
	age.Recipient
	owner Owner
}

func (r ownerRecipient) WrapWithLabels(key []byte) ([]*age.Stanza, []string, error) {
	stanzas, labels, err := wrap(r.Recipient, key)
	return append([]*age.Stanza{r.owner.stanza(0, 1)}, stanzas...), labels, err
}

// NewStream encrypts what is written one after the other to an age file that begins with livedump's
// stanza. Close writes its end.
func NewStream(dst io.Writer, recipients []age.Recipient, session kdump.Session) (io.WriteCloser, error) {
	if len(recipients) == 0 {
		return nil, errors.New("no recipients")
	}
	all := append([]age.Recipient{ownerRecipient{recipients[0], Owner{Session: session}}}, recipients[1:]...)
	w, err := age.Encrypt(dst, all...)
	if err != nil {
		return nil, fmt.Errorf("encrypting: %w", err)
	}
	return w, nil
}
