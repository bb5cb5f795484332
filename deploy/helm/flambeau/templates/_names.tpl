{{- define "flambeau.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "flambeau.selector" -}}
app.kubernetes.io/name: flambeau
app.kubernetes.io/instance: {{ include "flambeau.name" . }}
{{- end }}

{{- define "flambeau.metadata" -}}
name: {{ include "flambeau.name" . }}
namespace: {{ .Release.Namespace }}
labels:
  {{- include "flambeau.selector" . | nindent 2 }}
  app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
  app.kubernetes.io/managed-by: {{ .Release.Service }}
  helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "flambeau.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else if .tag }}:{{ .tag }}{{ end }}
{{- end }}
{{- end }}

{{- /* What cannot be meant: each is refused with what to do */ -}}
{{- define "flambeau.check" -}}
{{- if and (not .Values.tokens.existingSecret) (not .Values.insecureNoAuth) }}
{{- fail "the pods would serve everybody who can reach them: set tokens.existingSecret, or insecureNoAuth=true" }}
{{- end }}
{{- if and .Values.tokens.existingSecret .Values.insecureNoAuth }}
{{- fail "tokens.existingSecret and insecureNoAuth exclude each other: leave one out" }}
{{- end }}
{{- with .Values.models }}
{{- if and .existingClaim .fetch.url }}
{{- fail "models.existingClaim and models.fetch.url exclude each other: leave one out" }}
{{- end }}
{{- if and .fetch.url (not (regexMatch "^[0-9a-f]{64}$" .fetch.sha256)) }}
{{- fail "models.fetch.url needs models.fetch.sha256: the 64 digits that sha256sum prints of the archive" }}
{{- end }}
{{- if and .watch (not .existingClaim) }}
{{- fail "models.watch follows the repository of models.existingClaim: name one" }}
{{- end }}
{{- end }}
{{- end }}
