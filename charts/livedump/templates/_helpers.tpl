{{- /* SPDX-License-Identifier: Apache-2.0 */ -}}

{{- /* Names of namespaced objects; cluster-wide ones add the namespace, for two releases may share a name. */ -}}
{{- define "livedump.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "livedump.clusterName" -}}
{{- printf "%s-%s" .Release.Namespace (include "livedump.fullname" .) -}}
{{- end -}}

{{- define "livedump.selector" -}}
app.kubernetes.io/name: livedump
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "livedump.labels" -}}
{{ include "livedump.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "livedump.image" -}}
{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end -}}

{{- /* The allowed namespaces as a JSON list, sorted so that equal values render equally. */ -}}
{{- define "livedump.namespaces" -}}
{{- default (list .Release.Namespace) .Values.namespaces | sortAlpha | toJson -}}
{{- end -}}
