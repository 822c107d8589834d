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

{{- /* What pods that run the controller's binary have in common: its account and its place, and the restricted profile. */ -}}
{{- define "livedump.controllerPod" -}}
serviceAccountName: {{ include "livedump.fullname" . }}-controller
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.controller.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- if .Values.controller.hostNetwork }}
hostNetwork: true
dnsPolicy: ClusterFirstWithHostNet
{{- end }}
enableServiceLinks: false
nodeSelector:
  kubernetes.io/os: linux
  # The one binary there is, which holder pods run as well.
  kubernetes.io/arch: amd64
  {{- with .Values.controller.nodeSelector }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .Values.controller.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.controller.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  seccompProfile:
    type: RuntimeDefault
{{- end -}}

{{- define "livedump.restrictedContainer" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end -}}
