// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/util/exec"
	"k8s.io/streaming/pkg/httpstream"

	"livedump.io/api/v1alpha1"
	"livedump.io/internal/agefile"
	"livedump.io/internal/fetch/reader"
	"livedump.io/internal/kdump"
)

// read starts the reader pod and copies what is missing; it goes on when the connection breaks, as long as something comes.
func (f *Fetcher) read(ctx context.Context, o Options, dump *v1alpha1.LiveDump, s source, p *part) (interruptions int, err error) {
	pod, err := f.startPod(ctx, o, dump, s)
	if pod != nil {
		defer func() { err = errors.Join(err, f.deletePod(pod)) }()
	}
	if err != nil {
		return 0, err
	}
	total := s.size
	if err := f.checkSession(ctx, pod, s, dump); err != nil {
		return 0, err
	}
	const mostFailures = 5 // without a byte in between
	for failures := 0; p.size < total; {
		before := p.size
		to := &progressing{p: p, total: total, tell: o.Progress}
		err := f.copy(ctx, pod, s, p.size, total-p.size, to)
		if to.err != nil {
			return interruptions, to.err // the executor passes it over
		}
		if p.size == total {
			break
		}
		if ctx.Err() != nil {
			return interruptions, fmt.Errorf("%w: %d of %d bytes are in %s; the same command goes on there", context.Cause(ctx), p.size, total, p.path)
		}
		if err == nil {
			err = io.ErrUnexpectedEOF
		}
		var ended exec.CodeExitError
		if errors.As(err, &ended) || apierrors.IsForbidden(err) || apierrors.IsNotFound(err) {
			return interruptions, explain("reading from the claim", err)
		}
		if failures++; p.size > before {
			failures = 0
		}
		if interruptions++; failures == mostFailures {
			return interruptions, fmt.Errorf("reading from the claim: %w; %d of %d bytes are in %s, and the same command goes on there", err, p.size, total, p.path)
		}
		o.Say("the connection broke (%v); going on at %d of %d bytes", err, p.size, total)
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
		}
	}
	return interruptions, nil
}

// checkSession looks at the beginning of what lies there: a later dump to the same claim has replaced this one.
func (f *Fetcher) checkSession(ctx context.Context, pod *corev1.Pod, s source, dump *v1alpha1.LiveDump) error {
	var head bytes.Buffer
	n := min(kdump.PageSize, s.size)
	if err := f.copy(ctx, pod, s, 0, n, &head); err != nil && int64(head.Len()) < n {
		return explain("reading the beginning of the dump", err)
	}
	var found string
	if owner, own := agefile.OwnerOf(head.Bytes()); own {
		found = owner.Session.String()
	} else if rec, own, err := kdump.ReadRecord(bytes.NewReader(head.Bytes())); own && err == nil {
		found = rec.Session.String()
		if rec.State != kdump.StateComplete {
			found += ", " + rec.State.String()
		}
	}
	if found != "" && found != dump.Status.Session {
		return fmt.Errorf("%w: on claim %s is that of session %s, and LiveDump %s was session %s", ErrOther, s.claim, found, dump.Name, dump.Status.Session)
	}
	return nil
}

// copy has the program in the pod write a part of the dump.
func (f *Fetcher) copy(ctx context.Context, pod *corev1.Pod, s source, offset, length int64, to io.Writer) error {
	place := devicePath
	if s.file != "" {
		place = path.Join(folderPath, s.file)
	}
	request := f.Kube.CoreV1().RESTClient().Post().Resource("pods").Namespace(pod.Namespace).Name(pod.Name).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{
			Container: containerName, Stdout: true, Stderr: true,
			Command: append([]string{controller, "read"}, reader.Args(place, offset, length)...),
		}, scheme.ParameterCodec)
	overSPDY, err := remotecommand.NewSPDYExecutor(f.Config, "POST", request.URL())
	if err != nil {
		return err
	}
	overWebSocket, err := remotecommand.NewWebSocketExecutor(f.Config, "GET", request.URL().String())
	if err != nil {
		return err
	}
	executor, err := remotecommand.NewFallbackExecutor(overWebSocket, overSPDY, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
	if err != nil {
		return err
	}
	var said limited
	err = executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: to, Stderr: &said})
	if text := strings.TrimSpace(string(said.b)); err != nil && text != "" {
		err = fmt.Errorf("%w: %s", err, text)
	}
	return err
}

// progressing tells how far it is.
type progressing struct {
	p     *part
	total int64
	tell  func(done, total int64)
	err   error // of this machine: trying again does not help
}

func (w *progressing) Write(b []byte) (n int, err error) {
	if int64(len(b)) > w.total-w.p.size {
		err = errors.New("more came than was asked for")
	} else {
		n, err = w.p.Write(b)
	}
	if err != nil {
		w.err = err
	}
	if w.tell != nil {
		w.tell(w.p.size, w.total)
	}
	return n, err
}

// limited keeps the beginning of what the program says.
type limited struct{ b []byte }

func (l *limited) Write(b []byte) (int, error) {
	l.b = append(l.b, b[:min(len(b), 1024-len(l.b))]...)
	return len(b), nil
}
