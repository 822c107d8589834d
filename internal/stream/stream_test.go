// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"livedump.io/internal/target"
	"livedump.io/internal/target/targettest"
)

// listen is a TLS listener on the loopback, and what senders need to know it.
func listen(t *testing.T, names ...string) (net.Listener, Options) {
	t.Helper()
	cert, ca, err := SelfSigned(append(names, "127.0.0.1"), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l, Options{Address: l.Addr().String(), CA: ca}
}

// received is a place with a Receiver at the other end.
func received(t *testing.T, r *Receiver) targettest.Place {
	l, o := listen(t)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if _, err := r.Receive(ctx, l); err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}()
	t.Cleanup(func() { cancel(); <-ended })
	return dialed(t, o, r.Path)
}

// pretended is a place whose other end does what a test wants.
func pretended(t *testing.T, other func(conn net.Conn)) targettest.Place {
	l, o := listen(t)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		other(conn)
	}()
	t.Cleanup(func() { _ = l.Close(); <-ended })
	return dialed(t, o, filepath.Join(t.TempDir(), "nothing"))
}

func dialed(t *testing.T, o Options, path string) targettest.Place {
	return targettest.Place{
		Open: func(t *testing.T) target.Target {
			s, err := Dial(context.Background(), o)
			if err != nil {
				t.Fatal(err)
			}
			return s
		},
		Found: func(t *testing.T) ([]byte, bool) {
			b, err := os.ReadFile(path)
			if errors.Is(err, os.ErrNotExist) {
				return nil, false
			}
			if err != nil {
				t.Fatal(err)
			}
			return b, true
		},
	}
}

// takeAll reads frames up to the end, which it returns.
func takeAll(conn net.Conn) (end []byte, err error) {
	in := bufio.NewReader(conn)
	for {
		kind, n, err := readHead(in)
		if err != nil {
			return nil, err
		}
		body, err := readBody(in, n)
		if err != nil || kind == frameEnd {
			return body, err
		}
	}
}

func TestConformance(t *testing.T) {
	targettest.Run(t,
		func(t *testing.T) targettest.Place {
			return received(t, &Receiver{Path: filepath.Join(t.TempDir(), "dump")})
		},
		targettest.Fault{
			Name: "receivers-disk-is-full", Want: ErrReceiver, Says: "no space left",
			Place: func(t *testing.T) targettest.Place {
				dir := t.TempDir()
				if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"); err != nil {
					t.Skipf("cannot mount here: %v", err)
				}
				t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
				return received(t, &Receiver{Path: filepath.Join(dir, "dump")})
			},
		},
		targettest.Fault{
			Name: "more-than-the-receiver-takes", Want: ErrReceiver, Says: "more than the 1000000 bytes",
			Place: func(t *testing.T) targettest.Place {
				return received(t, &Receiver{Path: filepath.Join(t.TempDir(), "dump"), MaxBytes: 1e6})
			},
		},
		targettest.Fault{
			Name: "connection-breaks", Want: ErrIncomplete,
			Place: func(t *testing.T) targettest.Place {
				return pretended(t, func(conn net.Conn) { _, _ = io.CopyN(io.Discard, conn, 3<<20) })
			},
		},
		targettest.Fault{
			Name: "connection-breaks-before-the-answer", Want: ErrIncomplete,
			Place: func(t *testing.T) targettest.Place {
				return pretended(t, func(conn net.Conn) { _, _ = takeAll(conn) })
			},
		},
		targettest.Fault{
			Name: "answer-is-cut", Want: ErrIncomplete,
			Place: func(t *testing.T) targettest.Place {
				return pretended(t, func(conn net.Conn) {
					end, _ := takeAll(conn)
					b := make([]byte, headBytes)
					putHead(b, frameTaken, 32)
					_, _ = conn.Write(append(b, end[8:30]...))
				})
			},
		},
		targettest.Fault{
			Name: "receiver-has-something-else", Want: ErrReceiver, Says: "checksum",
			Place: func(t *testing.T) targettest.Place {
				return pretended(t, func(conn net.Conn) {
					_, _ = takeAll(conn)
					_ = writeFrame(conn, frameTaken, make([]byte, 32))
					_, _ = io.Copy(io.Discard, conn)
				})
			},
		},
		targettest.Fault{
			Name: "no-receiver-of-livedump", Want: ErrProtocol,
			Place: func(t *testing.T) targettest.Place {
				return pretended(t, func(conn net.Conn) {
					_, _ = io.CopyN(io.Discard, conn, 1000)
					_, _ = conn.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
					_, _ = io.Copy(io.Discard, conn)
				})
			},
		},
	)
}

// TestServerIsVerified: a server that is not who it should be gets nothing.
func TestServerIsVerified(t *testing.T) {
	l, good := listen(t, "receiver.example")
	_, other := listen(t)
	heard := make(chan int64, 8)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				close(heard)
				return
			}
			n, _ := io.Copy(io.Discard, conn)
			heard <- n
			conn.Close()
		}
	}()
	for name, o := range map[string]Options{
		"another CA":       {Address: good.Address, CA: other.CA},
		"the system's CAs": {Address: good.Address},
		"another name":     {Address: good.Address, CA: good.CA, ServerName: "other.example"},
		"no certificate":   {Address: good.Address, CA: []byte("nothing")},
	} {
		if s, err := Dial(context.Background(), o); err == nil {
			t.Errorf("%s: accepted", name)
			_ = s.Close()
		} else {
			if errors.Is(err, ErrCertificates) != (name == "no certificate") {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	good.ServerName = "receiver.example"
	s, err := Dial(context.Background(), good)
	if err != nil {
		t.Fatal(err)
	}
	_ = s.Close()
	_ = l.Close()
	var whispered int
	for n := range heard {
		if n > 0 {
			whispered++
		}
	}
	if whispered != 1 {
		t.Errorf("%d connections carried something, want the one to the right server", whispered)
	}
}

// TestReceiverGoesOn: senders that give up, break off or are silent are no dump, and the next one is.
func TestReceiverGoesOn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dump")
	l, o := listen(t)
	failures := make(chan error, 8)
	r := &Receiver{Path: path, Idle: 300 * time.Millisecond, Failed: func(_ net.Addr, err error) { failures <- err }}
	type result struct {
		Received
		err error
	}
	results := make(chan result, 1)
	go func() {
		got, err := r.Receive(context.Background(), l)
		results <- result{got, err}
	}()
	send := func(f func(s target.Stream), want error, says string) {
		t.Helper()
		s, err := Dial(context.Background(), o)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Write([]byte("some of a dump")); err != nil {
			t.Fatal(err)
		}
		f(s)
		if err := <-failures; !errors.Is(err, want) || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want %v that says %q", err, want, says)
		}
		_ = s.Close()
		if _, err := os.Stat(path); err == nil {
			t.Error("there is a file")
		}
	}
	send(func(s target.Stream) { _ = s.Abort(errors.New("the reserve was used up\x1b[2J")) }, ErrSender, "used up?[2J")
	send(func(s target.Stream) { _ = s.(*sender).conn.Close() }, ErrIncomplete, "")
	send(func(target.Stream) {}, os.ErrDeadlineExceeded, "")
	send(func(s target.Stream) { _, _ = s.(*sender).conn.Write([]byte("Q\x00\x00\x00\x01!")) }, ErrProtocol, "")
	send(func(s target.Stream) { _, _ = s.(*sender).conn.Write([]byte("D\xff\xff\xff\xff!")) }, ErrProtocol, "")

	s, err := Dial(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Write([]byte("a whole dump")); err != nil {
		t.Fatal(err)
	}
	receipt, err := s.Commit(context.Background(), 12)
	if err != nil {
		t.Fatal(err)
	}
	got := <-results
	if got.err != nil || got.Bytes != 12 || got.SHA256 != receipt.SHA256 {
		t.Errorf("%+v, the sender has %+v", got, receipt)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "a whole dump" {
		t.Errorf("%q, %v", b, err)
	}
}

// TestHangingReceiver: an Abort frees a Write that waits for a receiver that takes nothing.
func TestHangingReceiver(t *testing.T) {
	done := make(chan struct{})
	p := pretended(t, func(conn net.Conn) {
		if err := conn.(*tls.Conn).Handshake(); err != nil {
			t.Error(err)
		}
		<-done
	})
	defer close(done)
	s := p.Open(t).(target.Stream)
	failed := make(chan error, 1)
	writing := make(chan struct{})
	go func() {
		b := make([]byte, 1<<20)
		for i := 0; ; i++ {
			if i == 1 {
				close(writing)
			}
			if _, err := s.Write(b); err != nil {
				failed <- err
				return
			}
		}
	}()
	<-writing
	if err := s.Abort(errors.New("the time is over")); err != nil {
		t.Error(err)
	}
	if err := <-failed; !errors.Is(err, target.ErrEnded) {
		t.Errorf("%v, want %v", err, target.ErrEnded)
	}
}
