"""The tables of access tokens, on the MetaData of `schema`: the keys that sign them, and the issuers whose tokens are exchanged."""

import sqlalchemy as sa

from tollway.storage.schema import metadata

token_signing_keys = sa.Table(
    "token_signing_keys",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),  # the key id in headers of tokens
    sa.Column("issuer", sa.String(2048), nullable=False),
    sa.Column("public_key", sa.LargeBinary(32), nullable=False),  # Ed25519
    sa.Column("private_key", sa.LargeBinary, nullable=False),  # sealed by the vault
    sa.Column("created_at", sa.BigInteger, nullable=False),
)

identity_providers = sa.Table(
    "identity_providers",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("organization_id", sa.String(64), sa.ForeignKey("organizations.id"), nullable=False),
    sa.Column("name", sa.String(256), nullable=False),
    sa.Column("description", sa.String(1024)),
    sa.Column("issuer", sa.String(2048), nullable=False),
    sa.Column("audience", sa.String(2048), nullable=False),
    sa.Column("discovery_url", sa.String(2048)),
    sa.Column("is_uploaded", sa.Boolean, nullable=False),
    sa.Column("keys", sa.Text, nullable=False),  # JSON array of domain.tokens.Jwk
    sa.Column("fetched_at", sa.BigInteger),
    sa.Column("fetch_due_at", sa.BigInteger, index=True),  # null where keys were uploaded
    sa.Column("is_enabled", sa.Boolean, nullable=False),
    sa.Column("is_direct", sa.Boolean, nullable=False),
    sa.Column("is_single_use", sa.Boolean, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("updated_at", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("organization_id", "id"),
)

federation_rules = sa.Table(
    "federation_rules",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("organization_id", sa.String(64), nullable=False),
    sa.Column("provider_id", sa.String(64), nullable=False),
    sa.Column("project_id", sa.String(64), nullable=False),
    sa.Column("service_account_id", sa.String(64), nullable=False),
    sa.Column("key_id", sa.String(64), nullable=False),
    sa.Column("name", sa.String(256)),
    sa.Column("description", sa.String(1024)),
    sa.Column("matchers", sa.Text, nullable=False),  # JSON object: value by claim
    sa.Column("endpoints", sa.Text),  # JSON array of domain.catalog.Endpoint; null for all
    sa.Column("is_enabled", sa.Boolean, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("updated_at", sa.BigInteger, nullable=False),
    sa.ForeignKeyConstraint(["organization_id", "provider_id"], ["identity_providers.organization_id", "identity_providers.id"]),
    sa.ForeignKeyConstraint(["organization_id", "key_id"], ["api_keys.organization_id", "api_keys.id"]),
)

client_certificates = sa.Table(  # that an organization trusts where they are active
    "client_certificates",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("organization_id", sa.String(64), sa.ForeignKey("organizations.id"), nullable=False),
    sa.Column("name", sa.String(256)),
    sa.Column("content", sa.Text, nullable=False),  # PEM
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("is_authority", sa.Boolean, nullable=False),
    sa.Column("valid_from", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.BigInteger, nullable=False),
    sa.Column("is_active", sa.Boolean, nullable=False),  # in the whole organization
    sa.Column("project_ids", sa.Text, nullable=False),  # JSON array of the projects in which it is active beside
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("organization_id", "id"),
    sa.UniqueConstraint("organization_id", "fingerprint"),
)

certificate_rules = sa.Table(
    "certificate_rules",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("organization_id", sa.String(64), nullable=False),
    sa.Column("certificate_id", sa.String(64), nullable=False),
    sa.Column("project_id", sa.String(64), nullable=False),
    sa.Column("service_account_id", sa.String(64), nullable=False),
    sa.Column("key_id", sa.String(64), nullable=False),
    sa.Column("name", sa.String(256)),
    sa.Column("matchers", sa.Text, nullable=False),  # JSON object: value by domain.certificates.CertificateName
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.ForeignKeyConstraint(["organization_id", "certificate_id"], ["client_certificates.organization_id", "client_certificates.id"]),
    sa.ForeignKeyConstraint(["organization_id", "key_id"], ["api_keys.organization_id", "api_keys.id"]),
)

used_assertions = sa.Table(  # of tokens of other issuers that were exchanged and must not be again
    "used_assertions",
    metadata,
    sa.Column("digest", sa.LargeBinary(32), primary_key=True),  # of the identity provider and the token's id
    sa.Column("expires_at", sa.BigInteger, nullable=False, index=True),
)

sa.Index(None, certificate_rules.c.organization_id, certificate_rules.c.certificate_id)
sa.Index(None, federation_rules.c.organization_id, federation_rules.c.provider_id)
