// SPDX-License-Identifier: Apache-2.0

package object

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/minio/minio-go/v7"
)

// What an object store says no with. Every error of Open and of an upload that failed for good wraps one of them, or
// is of the connection.
var (
	// ErrDenied: the credentials are wrong, or do not allow to write there.
	ErrDenied = errors.New("the object store refuses the credentials")
	// ErrNoBucket: there is no such bucket.
	ErrNoBucket = errors.New("the object store has no such bucket")
	// ErrCertificate: its TLS certificate is not accepted.
	ErrCertificate = errors.New("the object store's certificate is not accepted")
	// ErrUnreachable: it does not answer, or not in time.
	ErrUnreachable = errors.New("the object store does not answer")
	// ErrStore: it answers with another error.
	ErrStore = errors.New("the object store reports an error")
	// ErrTooLarge: the dump has more bytes than an upload can have.
	ErrTooLarge = errors.New("the dump is too large for one object")
)

// explain gives an error its kind, and says whether to try again.
func explain(err error) (kind error, again bool) {
	if certificate(err) {
		return ErrCertificate, false
	}
	var r minio.ErrorResponse
	if !errors.As(err, &r) {
		if strings.Contains(err.Error(), "server gave HTTP response to HTTPS client") {
			return ErrUnreachable, false
		}
		return ErrUnreachable, true
	}
	switch r.Code {
	case minio.NoSuchBucket, "InvalidBucketName":
		return ErrNoBucket, false
	case minio.AccessDenied, "InvalidAccessKeyId", "XAdminUserNotFound", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "AccountProblem", "AllAccessDisabled":
		return ErrDenied, false
	// What came was not what was sent.
	case "BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "InvalidDigest", "IncompleteBody", "RequestTimeout":
		return ErrStore, true
	}
	switch {
	case r.StatusCode == http.StatusForbidden, r.StatusCode == http.StatusUnauthorized:
		return ErrDenied, false
	case r.StatusCode == http.StatusRequestTimeout, r.StatusCode == http.StatusTooManyRequests, r.StatusCode >= 500, r.StatusCode == 0:
		return ErrStore, true
	}
	return ErrStore, false
}

func certificate(err error) bool {
	var verification *tls.CertificateVerificationError
	var authority x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var host x509.HostnameError
	return errors.As(err, &verification) || errors.As(err, &authority) || errors.As(err, &invalid) || errors.As(err, &host)
}

// storeError says what was being done, where, and what the store said.
func storeError(o *Options, doing string, err error) error {
	kind, _ := explain(err)
	var r minio.ErrorResponse
	if errors.As(err, &r) && r.Code != "" {
		return fmt.Errorf("%s: %s: %w: %s: %w", o.Place(), doing, kind, r.Code, err)
	}
	return fmt.Errorf("%s: %s: %w: %w", o.Place(), doing, kind, err)
}
