// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/resource"

	"livedump.io/internal/stream"
)

// receivedFile is what "receive --json" prints.
type receivedFile struct {
	File   string `json:"file"`
	From   string `json:"from"`
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
}

func newReceive() *cobra.Command {
	var listen, certFile, keyFile, selfSigned, most string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "receive FILE",
		Short: "Receive one dump over TLS, for LiveDumps with a stream as their target",
		Long: `Receive one dump over TLS and keep it in FILE: what a LiveDump with spec.target.stream or
"livedump-agent dump --connect" sends. It is the flattened stream, which crash and drgn read as it is and
"livedump convert" makes a plain dump of.

FILE gets its name when the dump is whole and on stable storage; then the sender is told so. A sender
that breaks off leaves nothing, and the next one is waited for.

The sender verifies the certificate of this program. With --self-signed one is made for a day; the certificate that
senders need (spec.target.stream.tls.caBundle, --ca) is written to FILE.ca.crt. Senders prove nothing: let only those reach
the port who may.`,
		Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			path := args[0]
			cert, err := receiverCertificate(certFile, keyFile, selfSigned, path)
			if err != nil {
				return err
			}
			r := stream.Receiver{Path: path}
			if most != "" {
				q, err := resource.ParseQuantity(most)
				if err != nil || q.Value() <= 0 {
					return fmt.Errorf("--max-bytes %q: want a number of bytes such as 64Gi", most)
				}
				r.MaxBytes = q.Value()
			}
			l, err := tls.Listen("tcp", listen, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13})
			if err != nil {
				return fmt.Errorf("listening on %s: %w", listen, err)
			}
			errOut := cmd.ErrOrStderr()
			fmt.Fprintf(errOut, "listening on %s\n", l.Addr())
			progress := newProgress(errOut)
			r.Progress = progress.received
			r.Failed = func(from net.Addr, err error) {
				progress.clear()
				fmt.Fprintf(errOut, "%s: %v\n", from, err)
			}
			got, err := r.Receive(cmd.Context(), l)
			progress.clear()
			if err != nil {
				return err
			}
			out := receivedFile{File: path, From: got.From.String(), Bytes: got.Bytes, SHA256: fmt.Sprintf("%x", got.SHA256)}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), out)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %s from %s\nsha256 %s\n", path, bytesText(uint64(got.Bytes)), out.From, out.SHA256)
			return err
		},
	}
	cmd.Flags().StringVar(&listen, "listen", ":9300", "`address` to listen on")
	cmd.Flags().StringVar(&certFile, "cert", "", "`file` with the certificate, in PEM")
	cmd.Flags().StringVar(&keyFile, "key", "", "`file` with its key, in PEM")
	cmd.Flags().StringVar(&selfSigned, "self-signed", "", "make a certificate for these `names` and addresses, separated by commas")
	cmd.Flags().StringVar(&most, "max-bytes", "", "refuse a dump of more `bytes`, such as 64Gi")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the result as JSON")
	cmd.MarkFlagsRequiredTogether("cert", "key")
	cmd.MarkFlagsMutuallyExclusive("cert", "self-signed")
	cmd.MarkFlagsOneRequired("cert", "self-signed")
	return cmd
}

func receiverCertificate(certFile, keyFile, selfSigned, path string) (tls.Certificate, error) {
	if selfSigned == "" {
		cert, err := tls.LoadX509KeyPair(certFile, keyFile)
		if err != nil {
			return cert, fmt.Errorf("the receiver's certificate: %w", err)
		}
		return cert, nil
	}
	names := strings.Split(selfSigned, ",")
	for _, n := range names {
		if n == "" {
			return tls.Certificate{}, errors.New("--self-signed: a name is empty")
		}
	}
	cert, ca, err := stream.SelfSigned(names, time.Now())
	if err != nil {
		return cert, err
	}
	if err := os.WriteFile(path+".ca.crt", ca, 0o644); err != nil {
		return cert, fmt.Errorf("the certificate for senders: %w", err)
	}
	return cert, nil
}
