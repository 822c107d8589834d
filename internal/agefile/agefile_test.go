// SPDX-License-Identifier: Apache-2.0

package agefile

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"filippo.io/age"

	"livedump.io/internal/kdump"
)

// memory is a device: it has old content, and keeps what is written.
type memory struct {
	mu     sync.Mutex
	b      []byte
	writes int
	broken func(off int64, b []byte) error
}

func newMemory(n int) *memory {
	m := &memory{b: make([]byte, n)}
	for i := range m.b {
		m.b[i] = 0xa5
	}
	return m
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if off%4096 != 0 || len(p)%4096 != 0 {
		return 0, errors.New("not whole blocks")
	}
	if m.broken != nil {
		if err := m.broken(off, p); err != nil {
			return 0, err
		}
	}
	m.writes++
	return copy(m.b[off:], p), nil
}

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return copy(p, m.b[off:]), nil
}

func (m *memory) Sync() error { return nil }
func (m *memory) Size() int64 { return int64(len(m.b)) }

func identity(t testing.TB) *age.X25519Identity {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func content(n int, seed uint64) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed)})
	_, _ = r.Read(b)
	return b
}

var testSession = kdump.Session{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}

// write puts the plain file into f in pieces of random size and order, from several goroutines.
func write(t *testing.T, f *File, plain []byte, seed uint64) {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 1))
	type piece struct{ off, n int }
	var pieces []piece
	for off := 0; off < len(plain); {
		n := min(len(plain)-off, 4096*(1+r.IntN(600)))
		pieces = append(pieces, piece{off, n})
		off += n
	}
	r.Shuffle(len(pieces), func(i, j int) { pieces[i], pieces[j] = pieces[j], pieces[i] })
	next := make(chan piece)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for p := range next {
				if n, err := f.WriteAt(plain[p.off:p.off+p.n], int64(p.off)); err != nil || n != p.n {
					t.Errorf("WriteAt(%d, %d): %d, %v", p.off, p.n, n, err)
				}
			}
		})
	}
	for _, p := range pieces {
		next <- p
	}
	close(next)
	wg.Wait()
}

func TestAnyOrderMakesAnAgeFile(t *testing.T) {
	id, second := identity(t), identity(t)
	for _, size := range []int{4096, CellSize, CellSize + 4096, 16 * CellSize, 5<<20 + 3*4096, 9 << 20} {
		for seed := range uint64(4) {
			plain := content(size, seed)
			m := newMemory(size + size/100 + 64<<10)
			f, err := New(m, []age.Recipient{id.Recipient(), second.Recipient()}, testSession)
			if err != nil {
				t.Fatal(err)
			}
			write(t, f, plain, seed)
			back := make([]byte, size)
			if _, err := f.ReadAt(back, 0); err != nil || !bytes.Equal(back, plain) {
				t.Fatalf("size %d: ReadAt before Commit: %v", size, err)
			}
			if IsAge(m.b) {
				t.Fatal("there is a header before Commit")
			}
			s, err := f.Commit(context.Background(), int64(size))
			if err != nil {
				t.Fatalf("size %d, seed %d: %v", size, seed, err)
			}
			f.Close()
			file := m.b[:s.Bytes]
			if sha256.Sum256(file) != s.SHA256 {
				t.Error("the checksum is not that of the file")
			}
			if owner, own := OwnerOf(file); !own || owner.Session != testSession || owner.Size != s.Bytes {
				t.Errorf("owner %+v, %v", owner, own)
			}
			// As any program does that knows age.
			for _, who := range []*age.X25519Identity{id, second} {
				d, err := age.Decrypt(bytes.NewReader(file), who)
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(d)
				if err != nil || !bytes.Equal(got, plain) {
					t.Fatalf("size %d, seed %d: age decrypts %d bytes: %v", size, seed, len(got), err)
				}
			}
			// As from a device, with what follows the file.
			r, err := NewReader(bytes.NewReader(m.b), int64(len(m.b)), id)
			if err != nil || r.Size != int64(size) {
				t.Fatalf("reader: %v", err)
			}
		}
	}
}

func TestNothingInClear(t *testing.T) {
	const size = 3 << 20
	plain := bytes.Repeat([]byte("secret of a tenant, sixteen x 2!"), size/32)
	m := newMemory(size + 64<<10)
	seen := func(off int64, b []byte) error {
		if bytes.Contains(b, []byte("secret of a tenant")) {
			return errors.New("plain text on the target")
		}
		return nil
	}
	m.broken = seen
	f, err := New(m, []age.Recipient{identity(t).Recipient()}, testSession)
	if err != nil {
		t.Fatal(err)
	}
	write(t, f, plain, 7)
	if _, err := f.Commit(context.Background(), size); err != nil {
		t.Fatal(err)
	}
	// The check itself must bite.
	if _, err := m.WriteAt(plain[:4096], 0); err == nil {
		t.Error("plain text was not noticed")
	}
}

func committed(t *testing.T, size int) (m *memory, s Summary, plain []byte, id *age.X25519Identity) {
	t.Helper()
	id = identity(t)
	plain = content(size, 3)
	m = newMemory(size + 128<<10)
	f, err := New(m, []age.Recipient{id.Recipient()}, testSession)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	write(t, f, plain, 5)
	if s, err = f.Commit(context.Background(), int64(size)); err != nil {
		t.Fatal(err)
	}
	return m, s, plain, id
}

func TestDamageIsRefused(t *testing.T) {
	m, s, plain, id := committed(t, 3*CellSize+4096)
	read := func(b []byte) error {
		r, err := NewReader(bytes.NewReader(b), int64(len(b)), id)
		if err != nil {
			return err
		}
		got := make([]byte, r.Size)
		if n, err := r.ReadAt(got, 0); n < len(got) {
			return err
		}
		if !bytes.Equal(got, plain) {
			t.Error("other content was read without an error")
		}
		return nil
	}
	good := m.b[:s.Bytes]
	if err := read(good); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func([]byte) []byte{
		"cut in the last cell":       func(b []byte) []byte { return b[:len(b)-100] },
		"without the last cell":      func(b []byte) []byte { return b[:4096+3*sealed] },
		"empty":                      func(b []byte) []byte { return nil },
		"only the intro":             func(b []byte) []byte { return b[:len(intro)] },
		"bit of a cell":              func(b []byte) []byte { b[4096+sealed+17] ^= 1; return b },
		"bit of a tag":               func(b []byte) []byte { b[4096+2*sealed-1] ^= 1; return b },
		"bit of the session":         func(b []byte) []byte { b[len(intro)+20] ^= 1; return b },
		"bit of the padding":         func(b []byte) []byte { b[3000] ^= 1; return b },
		"bit of the nonce":           func(b []byte) []byte { b[4095] ^= 1; return b },
		"cells exchanged":            func(b []byte) []byte { swap(b[4096:][:sealed], b[4096+sealed:][:sealed]); return b },
		"the size made smaller":      func(b []byte) []byte { return bytes.Replace(b, sizeText(s.Bytes), sizeText(s.Bytes-sealed), 1) },
		"the last cell's mark moved": func(b []byte) []byte { return append(b[:4096+2*sealed], b[4096+3*sealed:]...) },
	} {
		if err := read(change(bytes.Clone(good))); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := NewReader(bytes.NewReader(good), s.Bytes, identity(t)); !errors.Is(err, ErrEncrypted) {
		t.Errorf("another identity: %v", err)
	}
}

func sizeText(n int64) []byte {
	return []byte(Owner{Size: n}.stanza(0, 1).Args[1])
}

func swap(a, b []byte) {
	c := bytes.Clone(a)
	copy(a, b)
	copy(b, c)
}

func TestCommitReadsBack(t *testing.T) {
	id := identity(t)
	for _, at := range []int64{4096 + sealed*5, 1 << 20, 4096 + 30*sealed - 1} {
		m := newMemory(2<<20 + 128<<10)
		f, err := New(m, []age.Recipient{id.Recipient()}, testSession)
		if err != nil {
			t.Fatal(err)
		}
		write(t, f, content(2<<20, 1), 2)
		m.broken = func(off int64, b []byte) error {
			m.b[at] ^= 4 // something else writes there
			m.broken = nil
			return nil
		}
		_, err = f.Commit(context.Background(), 2<<20)
		if !errors.Is(err, kdump.ErrReadBack) {
			t.Errorf("damage at %d: %v", at, err)
		}
		if err != nil && IsAge(m.b) {
			t.Errorf("damage at %d: there is a header", at)
		}
	}
}

func TestCommitNeedsAll(t *testing.T) {
	m := newMemory(2 << 20)
	f, err := New(m, []age.Recipient{identity(t).Recipient()}, testSession)
	if err != nil {
		t.Fatal(err)
	}
	plain := content(1<<20, 1)
	for _, p := range [][2]int{{0, 300 << 10}, {304 << 10, 1 << 20}} { // all but a block
		if _, err := f.WriteAt(plain[p[0]:p[1]], int64(p[0])); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.Commit(context.Background(), 1<<20); err == nil || !strings.Contains(err.Error(), "never written") {
		t.Errorf("a hole: %v", err)
	}
}

func TestNoSecondTime(t *testing.T) {
	m := newMemory(2 << 20)
	f, err := New(m, []age.Recipient{identity(t).Recipient()}, testSession)
	if err != nil {
		t.Fatal(err)
	}
	plain := content(1<<20, 1)
	if _, err := f.WriteAt(plain, 0); err != nil {
		t.Fatal(err)
	}
	// The same nonce for other content would give both away.
	if _, err := f.WriteAt(plain[:4096], 128<<10); !errors.Is(err, ErrRewritten) {
		t.Errorf("rewriting a cell: %v", err)
	}
	if _, err := f.WriteAt(plain[4096:8192], 0); err != nil {
		t.Errorf("rewriting block 0: %v", err)
	}
}

func TestScatteredIsRefused(t *testing.T) {
	m := newMemory(128 << 20)
	f, err := New(m, []age.Recipient{identity(t).Recipient()}, testSession)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	page := content(4096, 1)
	for off := int64(0); off < 100<<20 && err == nil; off += CellSize {
		_, err = f.WriteAt(page, off)
	}
	if !errors.Is(err, ErrScattered) {
		t.Errorf("a page in each cell: %v", err)
	}
}

func TestMarksGoThrough(t *testing.T) {
	m := newMemory(1 << 20)
	f, err := New(m, []age.Recipient{identity(t).Recipient()}, testSession)
	if err != nil {
		t.Fatal(err)
	}
	if err := kdump.MarkFailed(f, testSession, errors.New("the reason")); err != nil {
		t.Fatal(err)
	}
	rec, found, err := kdump.ReadRecord(m)
	if err != nil || !found || rec.State != kdump.StateFailed || rec.Reason != "the reason" {
		t.Errorf("record %+v, %v, %v", rec, found, err)
	}
}

func TestRoom(t *testing.T) {
	for _, n := range []int64{0, 4096, 8192, 16384, 1 << 20, 1<<20 + 4096, 10<<20 - 4096, 1 << 30} {
		f := &File{out: sized(n), base: 4096}
		size := f.Size()
		if size%4096 != 0 || size < 0 {
			t.Fatalf("room %d: size %d", n, size)
		}
		need := func(plain int64) int64 { return 4096 + plain + (plain+CellSize-1)/CellSize*tagSize }
		if size > 0 && need(size) > n {
			t.Errorf("room %d: %d bytes do not fit", n, size)
		}
		if need(size+4096) <= n {
			t.Errorf("room %d: more than %d bytes fit", n, size)
		}
	}
}

type sized int64

func (sized) WriteAt([]byte, int64) (int, error) { return 0, nil }
func (sized) ReadAt([]byte, int64) (int, error)  { return 0, nil }
func (sized) Sync() error                        { return nil }
func (s sized) Size() int64                      { return int64(s) }

func TestRecipients(t *testing.T) {
	good := identity(t)
	pq, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	for _, keys := range [][]string{{good.Recipient().String()}, {pq.Recipient().String()}, {good.Recipient().String(), identity(t).Recipient().String()}} {
		if _, err := ParseRecipients(keys); err != nil {
			t.Errorf("%d good recipients: %v", len(keys), err)
		}
	}
	for name, c := range map[string]struct {
		keys []string
		says string
	}{
		"nonsense":      {[]string{"age1abc"}, "recipient 1"},
		"private key":   {[]string{good.Recipient().String(), good.String()}, "private key"},
		"ssh":           {[]string{"ssh-ed25519 AAAA"}, "public key of age-keygen"},
		"mixed":         {[]string{good.Recipient().String(), pq.Recipient().String()}, "post-quantum"},
		"one character": {[]string{flipLast(good.Recipient().String())}, "recipient 1"},
	} {
		_, err := ParseRecipients(c.keys)
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && strings.Contains(err.Error(), good.String()) {
			t.Errorf("%s: the error has the private key", name)
		}
	}
	// A header of many blocks.
	m := newMemory(1 << 20)
	var all []age.Recipient
	for range 4 {
		id, err := age.GenerateHybridIdentity()
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, id.Recipient())
	}
	f, err := New(m, append(all, pq.Recipient()), testSession)
	if err != nil {
		t.Fatal(err)
	}
	plain := content(200<<10, 2)
	write(t, f, plain, 2)
	s, err := f.Commit(context.Background(), 200<<10)
	if err != nil {
		t.Fatal(err)
	}
	d, err := age.Decrypt(bytes.NewReader(m.b[:s.Bytes]), pq)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(d); err != nil || !bytes.Equal(got, plain) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func flipLast(s string) string {
	c := byte('q')
	if s[len(s)-1] == c {
		c = 'p'
	}
	return s[:len(s)-1] + string(c)
}

func TestStream(t *testing.T) {
	id := identity(t)
	var b bytes.Buffer
	w, err := NewStream(&b, []age.Recipient{id.Recipient()}, testSession)
	if err != nil {
		t.Fatal(err)
	}
	plain := content(1<<20+17, 1)
	if _, err := w.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if o, own := OwnerOf(b.Bytes()); !own || o.Session != testSession || o.Size != 0 {
		t.Errorf("owner %+v, %v", o, own)
	}
	r, err := NewReader(bytes.NewReader(b.Bytes()), int64(b.Len()), id)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(plain))
	if n, err := r.ReadAt(got, 0); !bytes.Equal(got, plain) || r.Size != int64(len(plain)) {
		t.Errorf("%d of %d bytes, %v", n, r.Size, err)
	}
}

// BenchmarkWrite is the encryption of a dump in the order in which its writer writes, without a device, and its reading back.
func BenchmarkWrite(b *testing.B) {
	const size = 64 << 20
	id := identity(b)
	plain := content(size, 1)
	m := newMemory(size + 1<<20)
	b.SetBytes(size)
	for b.Loop() {
		f, err := New(m, []age.Recipient{id.Recipient()}, testSession)
		if err != nil {
			b.Fatal(err)
		}
		for off := 0; off < size; off += 1 << 20 {
			if _, err := f.WriteAt(plain[off:off+1<<20], int64(off)); err != nil {
				b.Fatal(err)
			}
		}
		if _, err := f.Commit(context.Background(), size); err != nil {
			b.Fatal(err)
		}
		f.Close()
	}
}

// FuzzReader: whatever the file, opening and reading it ends with an error or with what is in it.
func FuzzReader(f *testing.F) {
	id, err := age.ParseX25519Identity("AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX")
	if err != nil {
		f.Fatal(err)
	}
	var b bytes.Buffer
	w, err := NewStream(&b, []age.Recipient{id.Recipient()}, testSession)
	if err != nil {
		f.Fatal(err)
	}
	plain := content(100, 1)
	_, _ = w.Write(plain)
	_ = w.Close()
	f.Add(b.Bytes())
	f.Add(b.Bytes()[:200])
	f.Add([]byte(intro + "-> " + stanzaType + " x 0000000000000000001 .\n\n--- \n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := NewReader(bytes.NewReader(data), int64(len(data)), id)
		if err != nil {
			return
		}
		got := make([]byte, min(r.Size, 1<<20))
		if n, err := r.ReadAt(got, 0); err == nil && !bytes.Equal(got[:n], plain) {
			t.Errorf("%d bytes that nobody encrypted", n)
		}
	})
}
