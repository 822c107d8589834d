// SPDX-License-Identifier: Apache-2.0

package endtoend

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"livedump.io/test/cluster"
)

const workloadName = "workload"

// endScript sends SIGTERM to the workload. Its children have its name; the
// process with the parked thread is the one that starts them.
const endScript = `
for comm in /proc/[0-9]*/task/[0-9]*/comm; do
	read -r name < "$comm" || continue
	[ "$name" = ` + parkedName + ` ] || continue
	pid=${comm#/proc/}
	kill -TERM "${pid%%/*}" && exit
done 2>/dev/null
echo "there is no thread ` + parkedName + `" >&2
exit 1
`

// StartWorkload starts the workload as a pod and returns when each of its
// checks has passed at least once.
func (b *Bench) StartWorkload(ctx context.Context) error {
	b.Step("starting the workload")
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: workloadName},
		Spec: corev1.PodSpec{
			NodeName: b.NodeName(),
			// A failed check must show as a failed pod and not as a restart.
			RestartPolicy:                corev1.RestartPolicyNever,
			AutomountServiceAccountToken: new(bool),
			Containers: []corev1.Container{{
				Name: workloadName, Image: workloadImage, ImagePullPolicy: corev1.PullNever,
				// The rests leave the node's processors time for the rest of the
				// node: an emulated processor is slow.
				Args:         []string{"-dir=/scratch", "-pause=150ms", "-interval=2s", "-file-bytes=524288"},
				VolumeMounts: []corev1.VolumeMount{{Name: "scratch", MountPath: "/scratch"}},
				Resources: corev1.ResourceRequirements{
					Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("64Mi")},
				},
			}},
			Volumes: []corev1.Volume{{Name: "scratch", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}},
		},
	}
	if err := b.Client.Create(ctx, pod); err != nil {
		return fmt.Errorf("workload: %w", err)
	}
	if err := b.AwaitWorkload(ctx, nil); err != nil {
		return errors.Join(err, b.describe("default"))
	}
	b.Step("the workload runs and checks itself")
	return nil
}

// statusLine is the workload's own; see test/workload.
var statusLine = regexp.MustCompile(`(?m)^workload: (ok|passed)((?: [a-z]+=\d+)+)$`)

// WorkloadCounts are the rounds of each kind of load that were checked so far.
type WorkloadCounts map[string]int64

// Workload reads the workload's last status line. It is an error if a check has failed.
func (b *Bench) Workload(ctx context.Context) (WorkloadCounts, error) {
	log, err := b.Kubectl(ctx, nil, "--namespace=default", "logs", workloadName)
	if err != nil {
		return nil, err
	}
	return parseWorkload(log)
}

func parseWorkload(log string) (WorkloadCounts, error) {
	if i := strings.Index(log, "workload: FAILED"); i >= 0 {
		line, _, _ := strings.Cut(log[i:], "\n")
		return nil, cluster.Final{Err: errors.New(line)}
	}
	lines := statusLine.FindAllStringSubmatch(log, -1)
	if len(lines) == 0 {
		return nil, errors.New("the workload has not reported yet")
	}
	counts := WorkloadCounts{}
	for _, field := range strings.Fields(lines[len(lines)-1][2]) {
		name, value, _ := strings.Cut(field, "=")
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("workload's status %q: %w", field, err)
		}
		counts[name] = n
	}
	return counts, nil
}

// AwaitWorkload returns when every kind of load has passed a check since the
// counts were taken; nil is before the first.
func (b *Bench) AwaitWorkload(ctx context.Context, since WorkloadCounts) error {
	return cluster.Poll(ctx, "checks of the workload", 4*time.Minute, func(ctx context.Context) (bool, string, error) {
		var pod corev1.Pod
		if err := b.Client.Get(ctx, types.NamespacedName{Namespace: "default", Name: workloadName}, &pod); err != nil {
			return false, "", err
		}
		if pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded {
			_, err := b.Workload(ctx)
			return false, "", cluster.Final{Err: errors.Join(fmt.Errorf("its pod ended: %s", pod.Status.Phase), err)}
		}
		counts, err := b.Workload(ctx)
		if err != nil {
			return false, "", err
		}
		for name, n := range counts {
			if name != "parked" && n <= since[name] {
				return false, fmt.Sprintf("%s is still at %d checks", name, n), nil
			}
		}
		return true, "", nil
	})
}

// EndWorkload asks the workload to end and to say whether all its checks passed.
// Its log goes to the log directory; its pod is deleted.
func (b *Bench) EndWorkload(ctx context.Context) error {
	// A signal and not a deletion: exit status and log are still to be read.
	if _, err := b.Guest.Run(ctx, "sh", "-c", endScript); err != nil {
		return fmt.Errorf("end the workload: %w", err)
	}
	err := cluster.Poll(ctx, "the end of the workload", 2*time.Minute, func(ctx context.Context) (bool, string, error) {
		var pod corev1.Pod
		if err := b.Client.Get(ctx, types.NamespacedName{Namespace: "default", Name: workloadName}, &pod); err != nil {
			return false, "", err
		}
		switch pod.Status.Phase {
		case corev1.PodSucceeded:
			return true, "", nil
		case corev1.PodFailed:
			return false, "", cluster.Final{Err: errors.New("its pod failed")}
		}
		return false, "its pod is " + string(pod.Status.Phase), nil
	})
	log, logErr := b.Kubectl(ctx, nil, "--namespace=default", "logs", workloadName)
	if logErr == nil {
		logErr = os.WriteFile(filepath.Join(b.Options.Out, "log", "workload.log"), []byte(log), 0o644)
	}
	if err := errors.Join(err, logErr); err != nil {
		_, failed := parseWorkload(log)
		return errors.Join(err, failed)
	}
	if _, err := parseWorkload(log); err != nil {
		return err
	}
	if !strings.Contains(log, "\nworkload: passed ") {
		return errors.New("the workload ended without saying that it passed")
	}
	b.Step("every check of the workload has passed")
	return b.deletePod(ctx, "default", workloadName)
}
