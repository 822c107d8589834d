# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# What tools there are and where they go. Sourced by build and path, never run.
# Each tool is a directory here with a go.mod of its own: their dependencies
# disagree with each other's and with the project's.

tools_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache_dir=${LIVEDUMP_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/livedump}

# binary, tool (directory), package, module whose version counts; in the order in
# which tests need them.
tool_table='
controller-gen           controller-gen  sigs.k8s.io/controller-tools/cmd/controller-gen   sigs.k8s.io/controller-tools
etcd                     etcd            go.etcd.io/etcd/server/v3                         go.etcd.io/etcd/server/v3
kube-apiserver           kubernetes      k8s.io/kubernetes/cmd/kube-apiserver              k8s.io/kubernetes
kubectl                  kubernetes      k8s.io/kubernetes/cmd/kubectl                     k8s.io/kubernetes
kube-controller-manager  kubernetes      k8s.io/kubernetes/cmd/kube-controller-manager     k8s.io/kubernetes
kube-scheduler           kubernetes      k8s.io/kubernetes/cmd/kube-scheduler              k8s.io/kubernetes
kubelet                  kubernetes      k8s.io/kubernetes/cmd/kubelet                     k8s.io/kubernetes
helm                     helm            helm.sh/helm/v4/cmd/helm                          helm.sh/helm/v4
versitygw                s3              github.com/versity/versitygw/cmd/versitygw        github.com/versity/versitygw
kwok                     kwok            sigs.k8s.io/kwok/cmd/kwok                         sigs.k8s.io/kwok
'

column() { # binary number
	awk -v b="$1" -v n="$2" '$1 == b { print $n; found = 1 } END { exit !found }' <<<"$tool_table"
}
known_binaries() { awk 'NF { printf "%s%s", sep, $1; sep = " " }' <<<"$tool_table"; }
tool_of() { column "$1" 2; }
package_of() { column "$1" 3; }

version_of() { # tool
	local module
	module=$(awk -v t="$1" '$2 == t { print $4; exit }' <<<"$tool_table")
	awk -v m="$module" '$1 == m { print $2; exit } $1 == "require" && $2 == m { print $3; exit }' "$tools_dir/$1/go.mod"
}

path_of() { # binary
	local tool digest
	tool=$(tool_of "$1") || return 1
	digest=$(cat "$tools_dir/$tool/go.mod" "$tools_dir/$tool/go.sum" | sha256sum)
	printf '%s/bin/%s-%s-%s/%s\n' "$cache_dir" "$tool" "$(version_of "$tool")" "${digest:0:8}" "$1"
}
