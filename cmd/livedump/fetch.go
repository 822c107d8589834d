// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"time"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"livedump.io/api/v1alpha1"
	"livedump.io/internal/fetch"
)

// fetched is what "fetch --json" prints.
type fetched struct {
	File          string  `json:"file"`
	Bytes         int64   `json:"bytes"`
	SHA256        string  `json:"sha256"`
	Resumed       int64   `json:"resumedAt"`
	Interruptions int     `json:"interruptions"`
	Seconds       float64 `json:"seconds"`
}

func newFetch() *cobra.Command {
	var o fetch.Options
	var kubeconfig, kubeContext string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "fetch LIVEDUMP",
		Short: "Bring a dump from its claim to this machine, through the API server",
		Long: `Bring the dump of a LiveDump that has succeeded from its claim to this machine, through the API server.

A short-lived pod mounts the claim read-only, and a program is executed in it. Pod and execution are the
user's own, so their rights decide: get and list livedumps, create, get and delete pods and create pods/exec in the
LiveDump's namespace. The image of the pod is that of livedump's controller; who may not look for that names it.

A dump that is split among several claims is fetched part by part: --claim names the claim. "livedump convert PART... DUMP" then
makes one dump of the parts.

The dump is written beside FILE and gets its name when its SHA-256 is that of the LiveDump's status. Interrupted, the same
command goes on where it was. An encrypted dump stays encrypted, and takes no key here.`,
		Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, namespace, err := connect(kubeconfig, kubeContext, o.Namespace)
			if err != nil {
				return err
			}
			o.Namespace, o.Name = namespace, args[0]
			if o.File == "" && o.Claim != "" {
				o.File = o.Name + "." + o.Claim + ".dump"
			} else if o.File == "" {
				o.File = o.Name + ".dump"
			}
			if o.PodTimeout < time.Minute || o.PodWait <= 0 {
				return usageError("--pod-timeout must be a minute at least, --pod-wait positive")
			}
			p := newProgress(cmd.ErrOrStderr())
			o.Progress = func(done, total int64) { p.show("fetching", uint64(done), uint64(total)) }
			o.Say = func(format string, args ...any) {
				p.clear()
				fmt.Fprintf(cmd.ErrOrStderr(), format+"\n", args...)
			}
			start := time.Now()
			r, err := f.Run(cmd.Context(), o)
			p.clear()
			if err != nil {
				return err
			}
			took := time.Since(start).Seconds()
			if asJSON {
				return printJSON(cmd.OutOrStdout(), fetched{File: o.File, Bytes: r.Bytes, SHA256: r.SHA256, Resumed: r.Resumed,
					Interruptions: r.Interruptions, Seconds: took})
			}
			what := "the dump"
			if r.Parts > 0 {
				what = fmt.Sprintf("one of %d parts of the dump", r.Parts)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %s of %s/%s, %s in %.1f s\nsha256 %s\n", o.File, what, o.Namespace, o.Name,
				bytesText(uint64(r.Bytes)), took, r.SHA256)
			return err
		},
	}
	cmd.Flags().StringVarP(&o.Namespace, "namespace", "n", "", "`namespace` of the LiveDump (default: that of the kubeconfig's context)")
	cmd.Flags().StringVarP(&o.File, "output", "o", "", "`file` to make (default: the name of the LiveDump, and of the --claim, with .dump)")
	cmd.Flags().StringVar(&o.Claim, "claim", "", "`claim` to fetch from, of a dump that is split among several")
	cmd.Flags().StringVar(&o.Image, "image", "", "`image` of the reader pod (default: that of livedump's controller)")
	cmd.Flags().StringVar(&o.SystemNamespace, "system-namespace", "livedump-system", "`namespace` where livedump's controller is looked for")
	cmd.Flags().DurationVar(&o.PodTimeout, "pod-timeout", 6*time.Hour, "`time` after which Kubernetes ends the reader pod, whatever happened to this program")
	cmd.Flags().DurationVar(&o.PodWait, "pod-wait", 2*time.Minute, "longest `time` for the reader pod to start")
	cmd.Flags().StringVar(&kubeconfig, "kubeconfig", "", "kubeconfig `file` (default: $KUBECONFIG or ~/.kube/config)")
	cmd.Flags().StringVar(&kubeContext, "context", "", "`context` of the kubeconfig")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the result as JSON")
	return cmd
}

// connect reads the kubeconfig as kubectl does.
func connect(kubeconfig, kubeContext, namespace string) (*fetch.Fetcher, string, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = kubeconfig
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: kubeContext})
	config, err := loader.ClientConfig()
	if err != nil {
		return nil, "", fmt.Errorf("how to reach the cluster: %w", err)
	}
	config.UserAgent = "livedump/" + version
	if namespace == "" {
		if namespace, _, err = loader.Namespace(); err != nil {
			return nil, "", fmt.Errorf("namespace of the kubeconfig: %w", err)
		}
	}
	log.SetLogger(logr.Discard()) // it would complain that there is none
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		return nil, "", err
	}
	dumps, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		return nil, "", fmt.Errorf("connecting to %s: %w", config.Host, err)
	}
	kube, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, "", fmt.Errorf("connecting to %s: %w", config.Host, err)
	}
	return &fetch.Fetcher{Config: config, Client: dumps, Kube: kube}, namespace, nil
}
