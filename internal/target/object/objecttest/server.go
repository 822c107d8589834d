// SPDX-License-Identifier: Apache-2.0

// Package objecttest runs a real S3 server on the loopback for tests.
package objecttest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What the server knows its one user by.
const (
	AccessKeyID     = "livedump-test"
	SecretAccessKey = "not a secret at all"
)

// Server is versitygw over a folder.
type Server struct {
	// Endpoint is its URL; CA, in PEM, has issued its certificate.
	Endpoint string
	CA       []byte

	binary, dir, address string
	cmd                  *exec.Cmd
	log                  *bytes.Buffer
}

// Binary builds the server if it is not there yet.
func Binary(t testing.TB) string {
	t.Helper()
	_, file, _, _ := runtime.Caller(0)
	tools := filepath.Join(filepath.Dir(file), "../../../../hack/tools")
	if out, err := exec.Command(filepath.Join(tools, "build"), "versitygw").CombinedOutput(); err != nil {
		t.Fatalf("building the S3 server: %v\n%s", err, out)
	}
	out, err := exec.Command(filepath.Join(tools, "path"), "versitygw").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// Start runs a server whose certificate is good until then. It stops with the test.
func Start(t testing.TB, until time.Time) *Server {
	t.Helper()
	s := &Server{binary: Binary(t), dir: t.TempDir()}
	for _, d := range []string{"data", "metadata"} {
		if err := os.Mkdir(filepath.Join(s.dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.address = l.Addr().String()
	l.Close()
	s.Endpoint = "https://" + s.address
	cert, key := Certificate(t, until)
	s.CA = cert
	for name, b := range map[string][]byte{"cert.pem": cert, "key.pem": key} {
		if err := os.WriteFile(filepath.Join(s.dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s.Run(t)
	t.Cleanup(s.Stop)
	return s
}

// Run starts the server, again after a Stop, and waits until it listens.
func (s *Server) Run(t testing.TB) {
	t.Helper()
	s.cmd = exec.Command(s.binary, "--quiet", "--access", AccessKeyID, "--secret", SecretAccessKey, "--port", s.address,
		"--cert", filepath.Join(s.dir, "cert.pem"), "--key", filepath.Join(s.dir, "key.pem"),
		"posix", "--sidecar", filepath.Join(s.dir, "metadata"), filepath.Join(s.dir, "data"))
	s.log = &bytes.Buffer{}
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	s.cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func(c *exec.Cmd) { ended <- c.Wait() }(s.cmd)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for ctx.Err() == nil {
		if c, err := (&net.Dialer{}).DialContext(ctx, "tcp", s.address); err == nil {
			c.Close()
			return
		}
		select {
		case err := <-ended:
			t.Fatalf("the S3 server ended: %v\n%s", err, s.log.String())
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	t.Fatalf("the S3 server does not listen on %s", s.address)
}

// Stop kills the server, as a machine that fails does.
func (s *Server) Stop() {
	_ = s.cmd.Process.Kill()
	for { // until it does not listen any more
		c, err := net.Dial("tcp", s.address)
		if err != nil {
			return
		}
		c.Close()
	}
}

// MakeBucket makes an empty bucket.
func (s *Server) MakeBucket(t testing.TB, name string) {
	t.Helper()
	if err := os.Mkdir(filepath.Join(s.dir, "data", name), 0o700); err != nil {
		t.Fatal(err)
	}
}

// Object is the content of an object as it lies in the server's folder.
func (s *Server) Object(bucket, key string) ([]byte, error) {
	return os.ReadFile(filepath.Join(s.dir, "data", bucket, key))
}

// Files are all files of a bucket with content, those of parts of uploads too.
func (s *Server) Files(t testing.TB, bucket string) (files []string) {
	t.Helper()
	root := filepath.Join(s.dir, "data", bucket)
	err := filepath.WalkDir(root, func(path string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			if i, err := e.Info(); err == nil && i.Size() > 0 {
				files = append(files, strings.TrimPrefix(path, root+"/"))
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// Certificate signs itself, for 127.0.0.1, in PEM.
func Certificate(t testing.TB, until time.Time) (cert, key []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"},
		NotBefore: until.Add(-24 * time.Hour), NotAfter: until,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(fmt.Errorf("key: %w", err))
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})
}
