{{- define "quaymaster.labels" -}}
app.kubernetes.io/name: quaymaster
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "quaymaster.selector" -}}
app.kubernetes.io/name: quaymaster
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "quaymaster.name" -}}
{{- if contains "quaymaster" .Release.Name }}{{ .Release.Name | trunc 63 | trimSuffix "-" }}{{ else }}{{ printf "%s-quaymaster" .Release.Name | trunc 63 | trimSuffix "-" }}{{ end }}
{{- end }}
