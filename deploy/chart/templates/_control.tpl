{{/* The secrets of control and of its migration. */}}
{{- define "tollway.controlEnvironment" -}}
{{- $root := . -}}
{{- range list "TOLLWAY_DATABASE_URL" "TOLLWAY_PEPPER" "TOLLWAY_VAULT_KEY" "TOLLWAY_PLATFORM_KEY" }}
{{ include "tollway.secretVariable" (dict "root" $root "name" .) }}
{{- end }}
{{- range list "TOLLWAY_AUDIT_KEY" "TOLLWAY_SECOND_PLATFORM_KEY" "TOLLWAY_MAIL_PASSWORD" "TOLLWAY_STRIPE_KEY" "TOLLWAY_STRIPE_WEBHOOK_SECRET" "TOLLWAY_OPERATOR_CLIENT_SECRET" }}
{{ include "tollway.secretVariable" (dict "root" $root "name" . "optional" true) }}
{{- end }}
{{- end -}}
