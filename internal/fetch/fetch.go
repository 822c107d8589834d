// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"livedump.io/api/v1alpha1"
)

// Why a dump cannot be fetched.
var (
	// ErrNoDump: the LiveDump has not succeeded, or its dump is not on a claim.
	ErrNoDump = errors.New("there is no dump to fetch")
	// ErrSplit: the dump is split among several claims, and none of them was named.
	ErrSplit = errors.New("the dump is split")
	// ErrForbidden: the user may not do what it takes.
	ErrForbidden = errors.New("not allowed")
	// ErrInUse: another LiveDump is writing to the claim.
	ErrInUse = errors.New("the claim is in use")
	// ErrOther: what lies on the claim is not this dump any more.
	ErrOther = errors.New("another dump is on the claim")
	// ErrChecksum: what was fetched is not what the LiveDump's status says.
	ErrChecksum = errors.New("the checksum is not that of the dump")
)

// Options of Run.
type Options struct {
	Namespace, Name string
	// Claim whose part of a split dump is fetched; for a dump on one claim it is empty, or the name of that.
	Claim string
	// File that the dump is written to.
	File string
	// Image of the reader pod; empty: that of the controller, if it can be found.
	Image string
	// SystemNamespace is where the controller is looked for besides Namespace.
	SystemNamespace string
	// PodTimeout is after how long Kubernetes itself ends the reader pod.
	PodTimeout time.Duration
	// PodWait is how long the reader pod may take to start.
	PodWait time.Duration
	// Progress, if not nil, is told how many bytes there are.
	Progress func(done, total int64)
	// Say, if not nil, is told what is being done.
	Say func(format string, args ...any)
}

// Result of Run.
type Result struct {
	Bytes  int64
	SHA256 string
	// Parts that the dump is split in, if it is: what was fetched is one of them.
	Parts int
	// Resumed is how many bytes an earlier attempt had brought.
	Resumed int64
	// Interruptions is how often the connection broke and reading went on.
	Interruptions int
}

// Fetcher talks to one cluster as one user.
type Fetcher struct {
	Config *rest.Config
	Client client.Client        // LiveDumps
	Kube   kubernetes.Interface // everything else
}

// Run fetches the dump of a LiveDump.
func (f *Fetcher) Run(ctx context.Context, o Options) (r Result, err error) {
	if o.Say == nil {
		o.Say = func(string, ...any) {}
	}
	dump := &v1alpha1.LiveDump{}
	if err := f.Client.Get(ctx, types.NamespacedName{Namespace: o.Namespace, Name: o.Name}, dump); err != nil {
		return r, explain(fmt.Sprintf("reading LiveDump %s/%s", o.Namespace, o.Name), err)
	}
	source, err := sourceOf(dump, o.Claim)
	if err != nil {
		return r, err
	}
	if err := f.mayFetch(ctx, o.Namespace); err != nil {
		return r, err
	}
	if err := f.checkRivals(ctx, dump, source); err != nil {
		return r, err
	}
	part, err := openPart(o.File, source.sha256)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, part.Close()) }()
	r.Resumed, r.Bytes, r.SHA256, r.Parts = part.size, source.size, source.sha256, len(dump.Spec.Target.PersistentVolumeClaims)
	if part.size > r.Bytes {
		return r, fmt.Errorf("%s has %d bytes, the dump only %d: remove it", part.path, part.size, r.Bytes)
	}
	if part.size > 0 {
		o.Say("going on at %d of %d bytes", part.size, r.Bytes)
	}
	if part.size < r.Bytes {
		if r.Interruptions, err = f.read(ctx, o, dump, source, part); err != nil {
			return r, err
		}
	}
	return r, part.finish(o.File, r.SHA256)
}

// source is what of the claim holds the dump, or one of its parts.
type source struct {
	claim  string
	file   string // in a file system; empty: the device itself
	size   int64
	sha256 string
}

// sourceOf says where a LiveDump's dump is, or the part of it that is on a claim, or why there is none.
func sourceOf(dump *v1alpha1.LiveDump, claim string) (s source, err error) {
	name := dump.Namespace + "/" + dump.Name
	c := findCondition(dump, v1alpha1.ConditionSucceeded)
	claims := dump.Spec.Target.Claims()
	switch {
	case c == nil || c.Status == "Unknown":
		return s, fmt.Errorf("%w: LiveDump %s has not ended (%d %% of its pages are written): kubectl -n %s wait livedump/%s --for=condition=Succeeded",
			ErrNoDump, name, dump.Status.Progress.Percent, dump.Namespace, dump.Name)
	case c.Status != "True":
		return s, fmt.Errorf("%w: LiveDump %s failed: %s: %s", ErrNoDump, name, c.Reason, c.Message)
	case dump.Status.Result == nil:
		return s, errNoResult(name)
	case len(claims) == 0:
		return s, fmt.Errorf("%w on a claim: that of LiveDump %s is at %s", ErrNoDump, name, dump.Status.Result.Device)
	case len(claims) > 1 && claim == "":
		return s, fmt.Errorf("%w: fetch each part of LiveDump %s with --claim, then join them with \"livedump convert PART... DUMP\"; the claims are %s",
			ErrSplit, name, namesOf(claims))
	}
	i := 0
	if claim != "" {
		i = slices.IndexFunc(claims, func(c v1alpha1.PersistentVolumeClaimTarget) bool { return c.ClaimName == claim })
	}
	if i < 0 || i >= len(claims) {
		return s, fmt.Errorf("%w on claim %s: LiveDump %s went to %s", ErrNoDump, claim, name, namesOf(claims))
	}
	s.claim = claims[i].ClaimName
	if found, _ := dump.Status.Target.OfClaim(&dump.Spec.Target, s.claim); found.VolumeMode == v1alpha1.VolumeModeFilesystem {
		s.file = dump.FileInVolume(claims[i])
	}
	s.size, s.sha256 = resultOn(dump, s.claim)
	if s.size <= 0 || len(s.sha256) != 2*sha256.Size {
		return s, errNoResult(name)
	}
	return s, nil
}

func errNoResult(name string) error {
	return fmt.Errorf("%w: LiveDump %s succeeded, but has no result with a size and a checksum", ErrNoDump, name)
}

// resultOn is what the status says of the bytes on a claim of the target.
func resultOn(dump *v1alpha1.LiveDump, claim string) (size int64, sum string) {
	if !dump.Spec.Target.Split() {
		return dump.Status.Result.SizeBytes, dump.Status.Result.SHA256
	}
	for _, p := range dump.Status.Result.Parts {
		if p.ClaimName == claim {
			return p.SizeBytes, p.SHA256
		}
	}
	return 0, ""
}

func namesOf(claims []v1alpha1.PersistentVolumeClaimTarget) string {
	var names []string
	for _, c := range claims {
		names = append(names, c.ClaimName)
	}
	return strings.Join(names, ", ")
}

// checkRivals refuses while another LiveDump is about to write to the claim.
func (f *Fetcher) checkRivals(ctx context.Context, dump *v1alpha1.LiveDump, s source) error {
	all := &v1alpha1.LiveDumpList{}
	if err := f.Client.List(ctx, all, client.InNamespace(dump.Namespace)); err != nil {
		return explain("listing LiveDumps, for another one that uses the claim", err)
	}
	for i := range all.Items {
		other := &all.Items[i]
		if other.UID == dump.UID || other.Ended() {
			continue
		}
		for _, claim := range other.Spec.Target.Claims() {
			if claim.ClaimName == s.claim && (s.file == "" || other.FileInVolume(claim) == s.file) {
				return fmt.Errorf("%w: LiveDump %s has not ended and has claim %s for its target", ErrInUse, other.Name, s.claim)
			}
		}
	}
	return nil
}

// part is what has been fetched so far.
type part struct {
	*os.File
	path string
	size int64
}

// openPart opens what an earlier attempt has left of this very dump, or begins anew.
func openPart(file, sum string) (*part, error) {
	if _, err := os.Lstat(file); err == nil {
		return nil, fmt.Errorf("%s is there already", file)
	}
	path := file + "." + sum[:12] + ".partial"
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("the file for what is fetched: %w", err)
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("size of %s: %w", path, err), f.Close())
	}
	return &part{File: f, path: path, size: size}, nil
}

func (p *part) Write(b []byte) (int, error) {
	n, err := p.File.Write(b)
	p.size += int64(n)
	if err != nil {
		err = fmt.Errorf("writing to %s: %w", p.path, err)
	}
	return n, err
}

// finish compares the checksum and gives the file its name.
func (p *part) finish(file, want string) error {
	if _, err := p.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("%s: %w", p.path, err)
	}
	h := sha256.New()
	if _, err := io.Copy(h, p.File); err != nil {
		return fmt.Errorf("%s: %w", p.path, err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != want {
		// Going on with this makes no sense.
		return errors.Join(fmt.Errorf("%w: SHA-256 is %s, the LiveDump's status says %s; what lies on the claim was changed, or damaged on the way",
			ErrChecksum, got, want), os.Remove(p.path))
	}
	if err := p.Sync(); err != nil {
		return fmt.Errorf("%s: %w", p.path, err)
	}
	if err := os.Link(p.path, file); err != nil { // unlike a rename it replaces nothing
		return fmt.Errorf("naming %s: %w", file, err)
	}
	if err := os.Remove(p.path); err != nil {
		return fmt.Errorf("%s: %w", p.path, err)
	}
	d, err := os.Open(filepath.Dir(file))
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return errors.Join(d.Sync(), d.Close())
}
