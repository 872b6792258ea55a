"""Variables of the environment under our prefix that are no settings: secrets, and what is not ours."""

import re

OTHER_VARIABLES = {
    "TOLLWAY_PEPPER": "Secret under which API keys are stored as digests: 64 hexadecimal digits, or while it is rotated two as"
    " VERSION:PEPPER,VERSION:PEPPER, the first for new keys. Gateways and control.",
    "TOLLWAY_VAULT_KEY": "Key that seals upstream credentials, and wraps the data keys of organizations if no other does: 64"
    " hexadecimal digits. Gateways and control.",
    "TOLLWAY_NODE_ID": "The node that a gateway is: node_... Each gateway has its own.",
    "TOLLWAY_NODE_KEY": "Key with which a gateway identifies itself to control: tw_node_... Each gateway has its own.",
    "TOLLWAY_JOIN_TOKEN": "Token with which a gateway without a key registers itself once: tw_join_...",
    "TOLLWAY_LIMITS_REDIS_PASSWORD": "Password of the server of `gateway.limits.redis_url`. Gateways and control.",
    "TOLLWAY_GUARDRAIL_TOKEN": "Bearer token for the service at `gateway.guardrail.url`. Gateways.",
    "TOLLWAY_MAIL_PASSWORD": "Password of `control.mail.username` at the mail server. Control only.",
    "TOLLWAY_STRIPE_KEY": "Secret or restricted key of the Stripe account that collects invoices: sk_... or rk_... Control only.",
    "TOLLWAY_STRIPE_WEBHOOK_SECRET": "Secret with which Stripe signs events: whsec_..., or two with a comma while it is replaced. Control"
    " only.",
    "TOLLWAY_SINK_SECRET": "Secret with which records for `control.sinks.http_url` are signed: whsec_ and base64 of 24 to 64 bytes. Control"
    " only.",
    "TOLLWAY_OPERATOR_CLIENT_SECRET": "Client secret of `control.operator_sign_in.client_id` at the identity provider. Control only.",
    "TOLLWAY_VAULT_TOKEN": "Token of `control.key_encryption.vault_url`, if no file holds it. Control only.",
    "TOLLWAY_PLATFORM_KEY": "First operator key: tw_platform_... Control only.",
    "TOLLWAY_AUDIT_KEY": "Private Ed25519 key that signs checkpoints of the audit trail: 64 hexadecimal digits. Control only.",
    "TOLLWAY_SECOND_PLATFORM_KEY": "Operator key of a second person, who approves what keys made with the first ask for. Control only.",
    "TOLLWAY_CONTROL_URL": "Address of the control plane, for the commands that administer an installation.",
    "TOLLWAY_KEY": "Admin or platform key that these commands present.",
    "TOLLWAY_SIMULATOR_KEY": "Bearer key that `tollway simulate` asks for.",
}
"""Variables that are not settings, with their meaning."""

UNCHECKED_VARIABLES = re.compile(
    r"TOLLWAY_(?:CREDENTIAL|CLIENT_SECRET)_\w+"  # secrets of upstreams and at identity providers, which a platform file names
    r"|TOLLWAY_(?:TEST_\w+|SIMULATION_SEEDS|NATIVE|PARENT)"  # of the tests, the build and the supervisor
    r"|TOLLWAY_(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT(?:_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)?)"
    # the last are what Kubernetes sets in every container for a Service whose name begins with "tollway"
)
"""Variables under our prefix that are not read as settings, and not checked."""
