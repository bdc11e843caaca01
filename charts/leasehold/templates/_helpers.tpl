{{- define "leasehold.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* At most 40 characters, so that every suffix fits. */}}
{{- define "leasehold.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "leasehold.commonLabels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "leasehold.instanceLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: leasehold
{{- end -}}

{{- define "leasehold.instanceLabels" -}}
app.kubernetes.io/name: {{ include "leasehold.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "leasehold.controllerLabels" -}}
{{ include "leasehold.instanceLabels" . }}
app.kubernetes.io/component: controller
{{- end -}}

{{- define "leasehold.redisLabels" -}}
{{ include "leasehold.instanceLabels" . }}
app.kubernetes.io/component: redis
{{- end -}}

{{- define "leasehold.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "leasehold.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "leasehold.image" -}}
{{- $tag := default .Chart.AppVersion .Values.image.tag -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository $tag -}}
{{- end -}}
{{- end -}}

{{- define "leasehold.redisImage" -}}
{{- $image := .Values.redis.bundled.image -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository $image.tag -}}
{{- end -}}
{{- end -}}

{{- define "leasehold.redisName" -}}
{{- printf "%s-redis" (include "leasehold.fullname" .) -}}
{{- end -}}

{{- define "leasehold.storeAddress" -}}
{{- if .Values.redis.bundled.enabled -}}
{{- printf "%s.%s.svc:6379" (include "leasehold.redisName" .) .Release.Namespace -}}
{{- else -}}
{{- .Values.store.address -}}
{{- end -}}
{{- end -}}

{{- define "leasehold.passwordSecret" -}}
{{- if .Values.redis.bundled.enabled -}}
{{- include "leasehold.redisName" . -}}
{{- else -}}
{{- .Values.store.passwordSecret -}}
{{- end -}}
{{- end -}}

{{/* The Secrets that the controller may read, as JSON. */}}
{{- define "leasehold.secretNames" -}}
{{- $names := .Values.secretNames -}}
{{- with include "leasehold.passwordSecret" . -}}
{{- $names = prepend $names . -}}
{{- end -}}
{{- $names | uniq | toJson -}}
{{- end -}}

{{/* The Lease by which replicas elect: as the controller names it. */}}
{{- define "leasehold.leaseName" -}}
{{- .Values.controllerName | replace "/" "-" -}}
{{- end -}}

{{/* "true" where the policies are rendered that only change what is created. Those that refuse need no more than the chart does. */}}
{{- define "leasehold.mutatingPolicies" -}}
{{- $wanted := .Values.policies.enabled | toString -}}
{{- if eq $wanted "true" -}}
true
{{- else if eq $wanted "auto" -}}
{{- if or (.Capabilities.APIVersions.Has "admissionregistration.k8s.io/v1/MutatingAdmissionPolicy") (semverCompare ">=1.36.0-0" .Capabilities.KubeVersion.Version) -}}
true
{{- end -}}
{{- end -}}
{{- end -}}

{{/* "true" where an optional kind is rendered: (dict "context" $ "kind" "ServiceMonitor" "values" .Values…). */}}
{{- define "leasehold.optionalKind" -}}
{{- if .values.enabled -}}
{{- $kind := printf "monitoring.coreos.com/v1/%s" .kind -}}
{{- $has := .context.Capabilities.APIVersions.Has $kind -}}
{{- if or $has (eq .values.renderMode "alwaysRender") -}}
true
{{- else if eq .values.renderMode "failIfMissing" -}}
{{- fail (printf "the cluster doesn't have %s: install the Prometheus Operator, or set renderMode to skipIfMissing" $kind) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Selects the series of the controller's pods. */}}
{{- define "leasehold.series" -}}
{{- printf "namespace=%q,pod=~\"%s-[^-]+-[^-]+\"" .Release.Namespace (include "leasehold.fullname" .) -}}
{{- end -}}

{{/* Adds labels and annotations to manifests that stand in files, whose text stays otherwise as it is:
     (dict "text" … "labels" … "annotations" …). */}}
{{- define "leasehold.labelled" -}}
{{- $lines := printf "metadata:\n  labels:\n%s" (.labels | indent 4) -}}
{{- with .annotations -}}
{{- $lines = printf "%s\n  annotations:\n%s" $lines (toYaml . | indent 4) -}}
{{- end -}}
{{- regexReplaceAllLiteral "(?m)^metadata:$" .text $lines | trim -}}
{{- end -}}

{{/* What every pod of the binary has. */}}
{{- define "leasehold.hookPod" -}}
automountServiceAccountToken: true
restartPolicy: Never
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
securityContext: {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "leasehold.hookContainer" -}}
image: {{ include "leasehold.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext: {{- toYaml .Values.securityContext | nindent 2 }}
resources:
  requests: {cpu: 10m, memory: 32Mi}
  limits: {memory: 128Mi}
env:
{{ include "leasehold.env" . }}
{{- end -}}

{{- define "leasehold.env" -}}
- name: LEASEHOLD_CONTROLLER_NAME
  value: {{ .Values.controllerName | quote }}
- name: LEASEHOLD_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
{{- with .Values.namespaces }}
- name: LEASEHOLD_NAMESPACES
  value: {{ join "," . | quote }}
{{- end }}
- name: LEASEHOLD_INSTANCE
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: RUST_LOG
  value: {{ .Values.logFilter | quote }}
{{- end -}}
