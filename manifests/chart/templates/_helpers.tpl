{{- define "leasehold.name" -}}
{{ contains .Chart.Name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) }}
{{- end }}

{{- define "leasehold.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "leasehold.labels" -}}
{{ include "leasehold.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "leasehold.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (include "leasehold.name" .) }}
{{- end }}

{{- define "leasehold.subjects" -}}
subjects:
  - kind: ServiceAccount
    name: {{ include "leasehold.serviceAccount" . }}
    namespace: {{ .Release.Namespace }}
{{- end }}

{{- define "leasehold.image" -}}
{{- with .Values.image.registry }}{{ . }}/{{ end }}{{ .Values.image.repository }}
{{- with .Values.image.digest }}@{{ . }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{- /* Refuses what the schema cannot say in a sentence: values that contradict each other. */}}
{{- define "leasehold.check" -}}
{{- $values := dict "endpoint" "providers" "health-addr" "metrics.port" "kubelet-dir" "kubeletRootDir" "no-kubelet-dir" "kubeletRootDir" "log-level" "logLevel" "state-max" "stateMax" "vault-addr" "vaultAddr" "allow-vault-addr" "allowVaultAddr" }}
{{- range .Values.extraArgs }}
{{- $flag := regexReplaceAll "^--?([a-z-]+).*$" . "${1}" }}
{{- with get $values $flag }}{{ fail (printf "extraArgs: --%s is set by the value %s" $flag .) }}{{ end }}
{{- if eq $flag "state-dir" }}{{ fail "extraArgs: --state-dir is the folder /run/leasehold of the node, which the chart mounts" }}{{ end }}
{{- end }}
{{- range .Values.env }}
{{- if eq .name "GOMEMLIMIT" }}{{ fail "env: GOMEMLIMIT is set by the value goMemLimit" }}{{ end }}
{{- if eq .name "NODE_NAME" }}{{ fail "env: NODE_NAME is set by the chart" }}{{ end }}
{{- end }}
{{- if and .Values.tokenRequest (not .Values.rbac.create) }}{{ fail "tokenRequest is a ClusterRole, and rbac.create is false" }}{{ end }}
{{- if not (or .Values.serviceAccount.create .Values.serviceAccount.name) }}{{ fail "serviceAccount.create is false, and serviceAccount.name names none that exists" }}{{ end }}
{{- end }}
