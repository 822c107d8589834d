// SPDX-License-Identifier: Apache-2.0

package object

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// Addressing says where the bucket's name goes in a request.
type Addressing string

const (
	// Auto is VirtualHost for Amazon, and Path for everybody else.
	Auto Addressing = "Auto"
	// Path puts it into the path: https://ENDPOINT/BUCKET/KEY.
	Path Addressing = "Path"
	// VirtualHost puts it before the host: https://BUCKET.ENDPOINT/KEY.
	VirtualHost Addressing = "VirtualHost"
)

// Options of Open.
type Options struct {
	// Endpoint is a URL without a path: https://s3.example.com:9000. http only where Insecure allows it.
	Endpoint string
	Region   string // empty: us-east-1
	Bucket   string
	Key      string // of the object

	AccessKeyID     string
	SecretAccessKey string
	SessionToken    string // empty, but for temporary credentials

	// CA is in PEM and takes the place of the system's certificate authorities. Empty: those of the system.
	CA         []byte
	Addressing Addressing

	// PartBytes is the size of the first 4000 parts; later ones are larger, for an upload has no more than 10000. 0: 16 MiB.
	PartBytes int
	// Uploads are under way at once; one more part is being filled. 0: 2.
	Uploads int
	// Patience is how long a part is sent again while the store does not answer. 0: two minutes.
	Patience time.Duration
	// Insecure allows http, for tests.
	Insecure bool
	Log      *slog.Logger
}

const (
	defaultPartBytes = 16 << 20
	leastPartBytes   = 5 << 20 // of S3, but for the last part
	mostParts        = 10000
	growEvery        = 4000
	defaultUploads   = 2
	defaultPatience  = 2 * time.Minute
)

// check fills in what was left out and refuses what cannot be.
func (o *Options) check() (*url.URL, error) {
	u, err := url.Parse(o.Endpoint)
	if err != nil || u.Host == "" || u.Path != "" && u.Path != "/" || u.User != nil || u.RawQuery != "" {
		return nil, fmt.Errorf("endpoint %q: want https://HOST or https://HOST:PORT", o.Endpoint)
	}
	switch {
	case u.Scheme != "https" && (u.Scheme != "http" || !o.Insecure):
		return nil, fmt.Errorf("endpoint %q: a dump is sent over https only", o.Endpoint)
	case o.Bucket == "" || o.Key == "":
		return nil, errors.New("the bucket and the name of the object must be given")
	case o.AccessKeyID == "" || o.SecretAccessKey == "":
		return nil, fmt.Errorf("%w: there are none", ErrDenied)
	}
	if o.Region == "" {
		o.Region = "us-east-1"
	}
	if o.PartBytes == 0 {
		o.PartBytes = defaultPartBytes
	}
	if o.Uploads == 0 {
		o.Uploads = defaultUploads
	}
	if o.Patience == 0 {
		o.Patience = defaultPatience
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.PartBytes < leastPartBytes || o.Uploads < 1 {
		return nil, fmt.Errorf("parts of %d bytes, %d at once: want at least %d bytes and one", o.PartBytes, o.Uploads, leastPartBytes)
	}
	return u, nil
}

// Place is where the object is, for people.
func (o *Options) Place() string {
	s := strings.TrimSuffix(o.Endpoint, "/") + "/" + o.Bucket + "/" + o.Key
	const most = 256
	if len(s) > most {
		s = s[:most-3] + "..."
	}
	return s
}

// partSize of the n-th part, from 0.
func (o *Options) partSize(n int) int { return o.PartBytes << (n / growEvery) }

// client makes a client that does not try again by itself: that is done here, where it can be given up.
func (o *Options) client() (*minio.Core, error) {
	u, err := o.check()
	if err != nil {
		return nil, err
	}
	transport, err := minio.DefaultTransport(u.Scheme == "https")
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", o.Endpoint, err)
	}
	// What is in the environment of the agent is not for dumps.
	transport.Proxy = nil
	transport.DisableCompression = true
	if u.Scheme == "https" {
		transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
		if len(o.CA) > 0 {
			pool := x509.NewCertPool()
			if !pool.AppendCertsFromPEM(o.CA) {
				return nil, fmt.Errorf("%w: the CA holds no certificate in PEM", ErrCertificate)
			}
			transport.TLSClientConfig.RootCAs = pool
		}
	}
	lookup := minio.BucketLookupAuto
	switch o.Addressing {
	case Path:
		lookup = minio.BucketLookupPath
	case VirtualHost:
		lookup = minio.BucketLookupDNS
	}
	core, err := minio.NewCore(u.Host, &minio.Options{
		Creds:        credentials.NewStaticV4(o.AccessKeyID, o.SecretAccessKey, o.SessionToken),
		Secure:       u.Scheme == "https",
		Transport:    http.RoundTripper(transport),
		Region:       o.Region,
		BucketLookup: lookup,
		MaxRetries:   1,
	})
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", o.Endpoint, err)
	}
	core.SetAppInfo("livedump", "1")
	return core, nil
}
