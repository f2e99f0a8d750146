{{- define "twolane.name" -}}
{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- end -}}

{{- define "twolane.labels" -}}
app.kubernetes.io/name: twolane
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{- define "twolane.selector" -}}
app.kubernetes.io/name: twolane
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "twolane.tag" -}}
{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{/* The variables of every process: Redis' address from a Secret, then the settings, then those of the group. */}}
{{- define "twolane.env" -}}
{{- $root := .root -}}
- name: TWOLANE_REDIS_URL
  valueFrom:
    secretKeyRef:
      name: {{ $root.Values.redis.existingSecret | default (printf "%s-redis" (include "twolane.name" $root)) }}
      key: url
{{- range $name, $value := merge (dict) (.own | default dict) $root.Values.settings }}
- name: {{ $name }}
  value: {{ include "twolane.text" $value | quote }}
{{- end }}
{{- end -}}

{{- define "twolane.security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 10001
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* All models that some group loads: what the web waits for and names in /readyz. */}}
{{- define "twolane.models" -}}
{{- $names := list -}}
{{- range .Values.workers }}{{ $names = concat $names .models }}{{ end -}}
{{ $names | uniq | join "," }}
{{- end -}}

{{/* Models as they stand in the labels of lanes, for a regular expression. */}}
{{- define "twolane.slugs" -}}
{{- $slugs := list -}}
{{- range . }}{{ $slugs = append $slugs (regexReplaceAll "[^a-z0-9._-]" (lower .) "-") }}{{ end -}}
{{ join "|" $slugs }}
{{- end -}}

{{/* A value as text: large whole numbers come as floats and would be written as 1e+06. */}}
{{- define "twolane.text" -}}
{{ if and (kindIs "float64" .) (eq (floor .) .) }}{{ int64 . }}{{ else }}{{ toString . }}{{ end }}
{{- end -}}
