// SPDX-License-Identifier: Apache-2.0

package object

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"livedump.io/internal/target"
	"livedump.io/internal/target/object/objecttest"
	"livedump.io/internal/target/targettest"
)

var longUntil = time.Now().Add(time.Hour)

const testKey = "node-1/dump.flat"

func options(s *objecttest.Server, bucket string) Options {
	return Options{Endpoint: s.Endpoint, CA: s.CA, Bucket: bucket, Key: testKey, Addressing: Path, PartBytes: leastPartBytes,
		AccessKeyID: objecttest.AccessKeyID, SecretAccessKey: objecttest.SecretAccessKey, Patience: time.Minute}
}

var buckets atomic.Int64

func bucket(t *testing.T, s *objecttest.Server) string {
	t.Helper()
	name := "bucket-" + string(rune('a'+buckets.Add(1)))
	s.MakeBucket(t, name)
	return name
}

func mustOpen(t *testing.T, o Options) *Object {
	t.Helper()
	u, err := Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = u.Close() })
	return u
}

func TestConformance(t *testing.T) {
	s := objecttest.Start(t, longUntil)
	place := func(t *testing.T, change func(*Options)) targettest.Place {
		b := bucket(t, s)
		t.Cleanup(func() {
			for _, f := range s.Files(t, b) {
				if f != testKey {
					t.Errorf("%s is left in the store", f)
				}
			}
		})
		return targettest.Place{
			Open: func(t *testing.T) target.Target {
				o := options(s, b)
				change(&o)
				return mustOpen(t, o)
			},
			Found: func(t *testing.T) ([]byte, bool) {
				found, err := s.Object(b, testKey)
				if err != nil && !errors.Is(err, fs.ErrNotExist) {
					t.Fatal(err)
				}
				return found, err == nil
			},
		}
	}
	targettest.Run(t, func(t *testing.T) targettest.Place { return place(t, func(*Options) {}) },
		targettest.Fault{
			Name: "parts-refused", Want: ErrDenied, Says: "uploading part",
			Place: func(t *testing.T) targettest.Place {
				return place(t, func(o *Options) {
					before(t, s, o, func(w http.ResponseWriter, r *http.Request) bool {
						if r.Method != http.MethodPut {
							return false
						}
						w.WriteHeader(http.StatusForbidden)
						return true
					})
				})
			},
		},
	)
}

// before puts a proxy before the server. deny may answer a request itself.
func before(t *testing.T, s *objecttest.Server, o *Options, deny func(http.ResponseWriter, *http.Request) bool) {
	t.Helper()
	proxy := toServer(t, s)
	front := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !deny(w, r) {
			proxy.ServeHTTP(w, r)
		}
	}))
	cert, key := objecttest.Certificate(t, longUntil)
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	front.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	front.StartTLS()
	t.Cleanup(front.Close)
	o.Endpoint, o.CA = front.URL, cert
}

// toServer passes requests on. The host is part of what is signed, so it stays.
func toServer(t *testing.T, s *objecttest.Server) *httputil.ReverseProxy {
	u, err := url.Parse(s.Endpoint)
	if err != nil {
		t.Error(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(s.CA)
	return &httputil.ReverseProxy{
		Rewrite:   func(p *httputil.ProxyRequest) { p.SetURL(u); p.Out.Host = p.In.Host },
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}},
	}
}

func content(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(b)
	return b
}

// send uploads content in writes of odd sizes; between is called after each.
func send(t *testing.T, u *Object, b []byte, between func(sent int)) error {
	t.Helper()
	for sent := 0; sent < len(b); {
		n := min(len(b)-sent, 1<<20+16)
		if _, err := u.Write(b[sent : sent+n]); err != nil {
			return err
		}
		sent += n
		if between != nil {
			between(sent)
		}
	}
	return nil
}

func wantObject(t *testing.T, s *objecttest.Server, bucket string, want []byte) {
	t.Helper()
	got, err := s.Object(bucket, testKey)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("the object has %d bytes, want %d, or others: %v", len(got), len(want), err)
	}
	if files := s.Files(t, bucket); len(files) != 1 {
		t.Errorf("in the bucket are %q", files)
	}
}

// failures is a log handler that tells of each line.
type failures chan struct{}

func (f failures) Enabled(context.Context, slog.Level) bool { return true }
func (f failures) WithAttrs([]slog.Attr) slog.Handler       { return f }
func (f failures) WithGroup(string) slog.Handler            { return f }
func (f failures) Handle(context.Context, slog.Record) error {
	select {
	case f <- struct{}{}:
	default:
	}
	return nil
}

func TestServerRestarts(t *testing.T) {
	s := objecttest.Start(t, longUntil)
	b := bucket(t, s)
	o := options(s, b)
	failures := make(failures, 100)
	o.Log = slog.New(failures)
	u := mustOpen(t, o)
	all := content(40 << 20)
	down := false
	var wg sync.WaitGroup
	err := send(t, u, all, func(sent int) {
		if sent > 12<<20 && !down {
			down = true
			s.Stop()
			// All parts fill up, and Write waits, until it is there again.
			wg.Go(func() {
				for range 5 {
					<-failures
				}
				s.Run(t)
			})
		}
	})
	wg.Wait()
	if err != nil {
		t.Fatal(err)
	}
	r, err := u.Commit(context.Background(), int64(len(all)))
	if err != nil {
		t.Fatal(err)
	}
	if r.SHA256 != sha256.Sum256(all) || r.Bytes != int64(len(all)) {
		t.Errorf("receipt %+v", r)
	}
	wantObject(t, s, b, all)
}

func TestServerStaysAway(t *testing.T) {
	s := objecttest.Start(t, longUntil)
	o := options(s, bucket(t, s))
	o.Patience = time.Second
	u := mustOpen(t, o)
	s.Stop()
	err := send(t, u, content(40<<20), nil)
	if err == nil {
		_, err = u.Commit(context.Background(), 40<<20)
	}
	if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "uploading part") {
		t.Errorf("the server is gone: %v", err)
	}
	s.Run(t)
	if err := u.Abort(err); err != nil {
		t.Errorf("aborting when the server is there again: %v", err)
	}
	if files := s.Files(t, o.Bucket); len(files) > 0 {
		t.Errorf("left in the bucket: %q", files)
	}
}

// TestFailingRequests: each kind of request fails some times in some way, and the upload succeeds.
func TestFailingRequests(t *testing.T) {
	s := objecttest.Start(t, longUntil)
	isPart := func(r *http.Request) bool { return r.Method == http.MethodPut && r.URL.Query().Has("partNumber") }
	for name, c := range map[string]struct {
		which func(*http.Request) bool
		how   func(http.ResponseWriter, *http.Request)
		pass  bool // the server gets the request nevertheless
	}{
		"part: 500":           {which: isPart, how: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) }},
		"part: slow down":     {which: isPart, how: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }},
		"part: cut off":       {which: isPart, how: func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }},
		"part: damaged":       {which: isPart, how: func(_ http.ResponseWriter, r *http.Request) { r.Body = damaged{r.Body} }, pass: true},
		"complete: 500":       {which: func(r *http.Request) bool { return r.Method == http.MethodPost && r.URL.Query().Has("uploadId") }, how: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) }},
		"begin: 503":          {which: func(r *http.Request) bool { return r.Method == http.MethodPost && r.URL.Query().Has("uploads") }, how: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }},
		"read back: cut off":  {which: func(r *http.Request) bool { return r.Method == http.MethodGet }, how: func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }},
		"read back: denied":   {which: func(r *http.Request) bool { return r.Method == http.MethodGet }, how: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(403) }},
		"complete: no answer": {which: func(r *http.Request) bool { return r.Method == http.MethodPost && r.URL.Query().Has("uploadId") }},
	} {
		t.Run(name, func(t *testing.T) {
			b := bucket(t, s)
			o := options(s, b)
			var failed atomic.Int64
			before(t, s, &o, func(w http.ResponseWriter, r *http.Request) bool {
				if !c.which(r) || failed.Add(1) > 2 {
					return false
				}
				if c.how == nil { // done, but the answer gets lost
					forward(t, s, r)
					panic(http.ErrAbortHandler)
				}
				c.how(w, r)
				return !c.pass
			})
			u := mustOpen(t, o)
			all := content(17 << 20)
			if err := send(t, u, all, nil); err != nil {
				t.Fatal(err)
			}
			r, err := u.Commit(context.Background(), int64(len(all)))
			if err != nil {
				t.Fatal(err)
			}
			if denied := name == "read back: denied"; r.ReadBack == denied {
				t.Errorf("read back, it says: %v", r.ReadBack)
			}
			wantObject(t, s, b, all)
			if failed.Load() == 0 {
				t.Error("nothing failed")
			}
		})
	}
}

// damaged changes a bit of the first bytes that are read.
type damaged struct {
	body interface{ Read([]byte) (int, error) }
}

func (d damaged) Read(p []byte) (int, error) {
	n, err := d.body.Read(p)
	if n > 0 {
		p[0] ^= 1
	}
	return n, err
}

func (d damaged) Close() error { return nil }

// forward carries a request out at the server and drops the answer.
func forward(t *testing.T, s *objecttest.Server, r *http.Request) {
	t.Helper()
	proxy := toServer(t, s)
	answer := httptest.NewRecorder()
	proxy.ServeHTTP(answer, r)
	if answer.Code != http.StatusOK && answer.Code != http.StatusNotFound {
		t.Errorf("the server answered %d: %s", answer.Code, answer.Body)
	}
}

func TestRefusals(t *testing.T) {
	s := objecttest.Start(t, longUntil)
	expired := objecttest.Start(t, time.Now().Add(-time.Hour))
	good := options(s, bucket(t, s))
	l := objecttest.Start(t, longUntil)
	l.Stop()
	for name, c := range map[string]struct {
		change func(*Options)
		want   error
		says   string
	}{
		"wrong secret":         {func(o *Options) { o.SecretAccessKey = "wrong" }, ErrDenied, "SignatureDoesNotMatch"},
		"unknown user":         {func(o *Options) { o.AccessKeyID = "nobody" }, ErrDenied, "access key"},
		"no credentials":       {func(o *Options) { o.AccessKeyID = "" }, ErrDenied, ""},
		"missing bucket":       {func(o *Options) { o.Bucket = "missing" }, ErrNoBucket, "missing"},
		"expired certificate":  {func(o *Options) { o.Endpoint, o.CA = expired.Endpoint, expired.CA }, ErrCertificate, "expired"},
		"unknown authority":    {func(o *Options) { o.CA = expired.CA }, ErrCertificate, "authority"},
		"no authority":         {func(o *Options) { o.CA = nil }, ErrCertificate, ""},
		"CA that is none":      {func(o *Options) { o.CA = []byte("x") }, ErrCertificate, "PEM"},
		"http to https":        {func(o *Options) { o.Endpoint = "http" + strings.TrimPrefix(o.Endpoint, "https") }, nil, "https only"},
		"a path":               {func(o *Options) { o.Endpoint += "/x" }, nil, "want https://HOST"},
		"no name of an object": {func(o *Options) { o.Key = "" }, nil, "name of the object"},
	} {
		t.Run(name, func(t *testing.T) {
			o := good
			c.change(&o)
			u, err := Open(context.Background(), o)
			if err == nil {
				_ = u.Close()
				t.Fatal("no error")
			}
			t.Log(err)
			if c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v is not %v, or does not say %q", err, c.want, c.says)
			}
			if strings.Contains(err.Error(), objecttest.SecretAccessKey) {
				t.Error("the error has the secret")
			}
		})
	}
	t.Run("nobody there", func(t *testing.T) {
		o := good
		o.Endpoint = l.Endpoint
		ctx, cancel := context.WithCancelCause(context.Background())
		cancel(errors.New("the dump was canceled"))
		if _, err := Open(ctx, o); err == nil || !strings.Contains(err.Error(), "canceled") {
			t.Errorf("%v", err)
		}
	})
}
