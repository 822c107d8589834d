// SPDX-License-Identifier: Apache-2.0

// Package endtoend is the whole path on real parts: a cluster of package
// cluster with livedump installed from its chart, a workload, dumps, and what
// has to hold afterwards. The demo and the tests of failures share it.
package endtoend

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"livedump.io/test/cluster"
	"livedump.io/test/guest"
	"livedump.io/test/image"
)

// Names that the samples in config/samples use.
const (
	Namespace = "livedump-system"
	NodeName  = "node-1"
	ClaimName = "dump-target"
)

// Sizes of the node. The target can hold all of its memory.
const (
	nodeMemoryMiB   = 2048
	targetMiB       = 4096
	secondTargetMiB = 4096
	smallTargetMiB  = 16
	nodeCPUs        = 2
)

// Images that are made from this tree; the chart gets the first two as values.
const (
	imageTag        = "test"
	nextTag         = "next"     // what an upgrade goes to
	previousTag     = "previous" // what an upgrade comes from
	controllerImage = "livedump.test/livedump-controller"
	agentImage      = "livedump.test/livedump-agent"
	workloadImage   = "livedump.test/workload:" + imageTag
)

// Options say what to build the bench from.
type Options struct {
	// Root is the top of the source tree; binaries and modules are in its bin directory.
	Root string
	// State is for what is thrown away at the end.
	State string
	// Out takes results and logs.
	Out string
	// Kernel is the series of Debian's kernel for the node, such as 6.1.
	Kernel string
	// Faults is a regular expression: those that the check of that name lets happen. Empty: all.
	Faults string
	// Previous is where hack/build-previous has put the previous release. Empty: it was not built.
	Previous string
	// ReplaceHosts shows another /etc/hosts to this process and its children.
	ReplaceHosts func([]byte) error
}

// Bench is a cluster with livedump installed.
type Bench struct {
	*cluster.Cluster
	Options Options
	// Target, SmallTarget and SecondTarget are the images of the node's disks /dev/vdb, /dev/vdc and /dev/vdd.
	Target, SmallTarget, SecondTarget string

	began  time.Time
	kernel *guest.Kernel
	print  sync.Mutex
}

// New makes a bench that has started nothing yet.
func New(options Options) *Bench { return &Bench{Options: options, began: time.Now()} }

// Step prints a line of progress with the time since the start.
func (b *Bench) Step(format string, args ...any) {
	b.print.Lock()
	defer b.print.Unlock()
	fmt.Printf("[%4.0f s] %s\n", time.Since(b.began).Seconds(), fmt.Sprintf(format, args...))
}

// Start starts the cluster and installs the chart. The context that it returns
// ends early if a part of the cluster does; see cluster.Start. Call Stop also
// after an error.
func (b *Bench) Start(ctx context.Context) (context.Context, error) {
	o := b.Options
	logs := filepath.Join(o.Out, "log")
	if err := os.MkdirAll(logs, 0o755); err != nil {
		return ctx, err
	}
	var err error
	if b.kernel, err = guest.FetchKernel(ctx, o.Kernel); err != nil {
		return ctx, err
	}
	archive, err := b.buildImages()
	if err != nil {
		return ctx, err
	}
	b.Target = filepath.Join(o.State, "target.img")
	b.SmallTarget = filepath.Join(o.State, "small.img")
	b.SecondTarget = filepath.Join(o.State, "second.img")
	if err := errors.Join(guest.CreateImage(b.Target, targetMiB), guest.CreateImage(b.SmallTarget, smallTargetMiB),
		guest.CreateImage(b.SecondTarget, secondTargetMiB)); err != nil {
		return ctx, err
	}
	// The API server finds the kubelet by the node's name, at a forwarded port of the loopback.
	if err := o.ReplaceHosts([]byte("127.0.0.1 localhost " + NodeName + "\n")); err != nil {
		return ctx, err
	}
	var running context.Context
	b.Cluster, running, err = cluster.Start(ctx, cluster.Options{
		Root: o.Root, Dir: o.State, LogDir: logs,
		Kernel: b.kernel, NodeName: NodeName, MemoryMiB: nodeMemoryMiB, CPUs: nodeCPUs,
		Disks: []guest.Disk{
			{Image: b.Target, Serial: "livedump-target"},
			{Image: b.SmallTarget, Serial: "livedump-small"},
			{Image: b.SecondTarget, Serial: "livedump-second"},
		},
		Images: archive, Progress: b.Step,
		Console: filepath.Join(o.Out, "guest.log"),
	})
	if err != nil {
		return running, err
	}
	return running, b.install(running)
}

// buildImages puts this tree's binaries into images: what the Dockerfile's final
// stages hold, with the module for the node's kernel in the agent's.
func (b *Bench) buildImages() (archive string, err error) {
	bin := filepath.Join(b.Options.Root, "bin")
	archive = filepath.Join(b.Options.State, "images.tar")
	agent := func(tag, bin string) image.Image {
		return image.Image{
			Reference: agentImage + ":" + tag,
			Files: map[string]string{
				"/livedump-agent": filepath.Join(bin, "livedump-agent"),
				"/opt/lib/modules/" + b.kernel.Release + "/livedump.ko": filepath.Join(bin, "kmod", b.kernel.Release, "livedump.ko"),
			},
			Entrypoint: []string{"/livedump-agent"},
		}
	}
	controller := func(tag, bin string) image.Image {
		return image.Image{
			Reference: controllerImage + ":" + tag, User: "65532:65532",
			Files:      map[string]string{"/livedump-controller": filepath.Join(bin, "livedump-controller")},
			Entrypoint: []string{"/livedump-controller"},
		}
	}
	images := []image.Image{
		{
			Reference: cluster.PauseImage, User: "65535:65535",
			Files: map[string]string{"/pause": filepath.Join(bin, "test/pause")}, Entrypoint: []string{"/pause"},
		},
		{
			Reference: workloadImage, Directories: []string{"/tmp"},
			Files: map[string]string{"/workload": filepath.Join(bin, "test/workload")}, Entrypoint: []string{"/workload"},
		},
		controller(imageTag, bin), agent(imageTag, bin), agent(nextTag, bin),
	}
	if b.Options.Previous != "" {
		images = append(images, controller(previousTag, b.Options.Previous), agent(previousTag, b.Options.Previous))
	}
	return archive, image.WriteArchive(archive, images...)
}

// install installs the chart and waits until the controller is available.
func (b *Bench) install(ctx context.Context) error {
	b.Step("installing the chart")
	if err := b.release(ctx, "install", imageTag, "--create-namespace", "--wait", "--timeout=5m"); err != nil {
		return errors.Join(err, b.describe(Namespace))
	}
	b.Step("livedump is installed")
	return nil
}

// release installs or upgrades the chart, with the agent's image of a tag.
func (b *Bench) release(ctx context.Context, verb, agentTag string, more ...string) error {
	return b.releaseOf(ctx, verb, filepath.Join(b.Options.Root, "charts/livedump"), imageTag, agentTag, more...)
}

// releaseOf installs or upgrades a chart, with the images of two tags.
func (b *Bench) releaseOf(ctx context.Context, verb, chart, controllerTag, agentTag string, more ...string) error {
	_, err := b.Helm(ctx, append([]string{verb, "livedump", chart, "--namespace=" + Namespace,
		"--set-string=controller.image.repository=" + controllerImage, "--set-string=controller.image.tag=" + controllerTag,
		"--set-string=agent.image.repository=" + agentImage, "--set-string=agent.image.tag=" + agentTag}, more...)...)
	return err
}

// describe says how the pods of a namespace are, for an error message.
func (b *Bench) describe(namespace string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	pods, podsErr := b.Kubectl(ctx, nil, "--namespace="+namespace, "get", "pods", "-o", "wide")
	events, eventsErr := b.Kubectl(ctx, nil, "--namespace="+namespace, "get", "events", "--sort-by=.lastTimestamp")
	return errors.Join(fmt.Errorf("pods of %s:\n%s\nevents:\n%s", namespace, pods, events), podsErr, eventsErr)
}

// Stop ends the cluster.
func (b *Bench) Stop() error {
	if b.Cluster == nil {
		return nil
	}
	return b.Cluster.Stop()
}
