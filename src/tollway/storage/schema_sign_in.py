"""The tables of people's sign-in, on the MetaData of `schema`: credentials, sessions and one-time links."""

import sqlalchemy as sa

from tollway.storage.schema import metadata

user_credentials = sa.Table(
    "user_credentials",
    metadata,
    sa.Column("organization_id", sa.String(64), primary_key=True),
    sa.Column("user_id", sa.String(64), primary_key=True),
    sa.Column("password_hash", sa.LargeBinary),  # Argon2id with its parameters and salt; null without a password
    sa.Column("password_set_at", sa.BigInteger),
    sa.Column("code_secret", sa.LargeBinary),  # of the authenticator app, sealed by the vault; null without one
    sa.Column("code_step", sa.BigInteger),  # of the code that was accepted last
    sa.Column("recovery_digests", sa.LargeBinary),  # JSON array: SHA-256 of each unused recovery code
    sa.ForeignKeyConstraint(["organization_id", "user_id"], ["users.organization_id", "users.id"]),
)

user_sessions = sa.Table(
    "user_sessions",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("organization_id", sa.String(64), nullable=False),
    sa.Column("user_id", sa.String(64), nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("method", sa.String(32), nullable=False),
    sa.Column("digest", sa.LargeBinary(32), nullable=False, unique=True),  # of the cookie, or of the access token
    sa.Column("refresh_id", sa.String(16), unique=True),  # the part that all refresh tokens of the session have in common
    sa.Column("refresh_digest", sa.LargeBinary(32)),  # of the one refresh token that is valid
    sa.Column("token_expires_at", sa.BigInteger),  # of the access token; null for a browser
    sa.Column("address", sa.String(64), nullable=False),
    sa.Column("agent", sa.String(256), nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("last_used_at", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.BigInteger, nullable=False, index=True),
    sa.Column("connection_id", sa.String(64)),  # of the identity provider that signed the person in; null without one
    sa.Column("id_token", sa.LargeBinary),  # of that sign-in, sealed, for the sign-out there; null if it is not kept
    sa.ForeignKeyConstraint(["organization_id", "user_id"], ["users.organization_id", "users.id"]),
)

operators = sa.Table(  # people who signed in with the identity provider of the platform
    "operators",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("issuer", sa.String(2048), nullable=False),
    sa.Column("subject", sa.String(255), nullable=False),
    sa.Column("email", sa.String(320), nullable=False),  # empty if the provider said none
    sa.Column("name", sa.String(256), nullable=False),
    sa.Column("role_id", sa.String(64)),  # by their groups at the latest sign-in; null: none, or it was taken away
    sa.Column("origin", sa.String(16), nullable=False),  # domain.keys.KeyOrigin, by their groups
    sa.Column("signed_in_at", sa.BigInteger, nullable=False),
)

operator_sessions = sa.Table(
    "operator_sessions",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("operator_id", sa.String(64), sa.ForeignKey("operators.id"), nullable=False, index=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("method", sa.String(32), nullable=False),
    sa.Column("digest", sa.LargeBinary(32), nullable=False, unique=True),
    sa.Column("refresh_id", sa.String(16), unique=True),
    sa.Column("refresh_digest", sa.LargeBinary(32)),
    sa.Column("token_expires_at", sa.BigInteger),
    sa.Column("address", sa.String(64), nullable=False),
    sa.Column("agent", sa.String(256), nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("last_used_at", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.BigInteger, nullable=False, index=True),
    sa.Column("id_token", sa.LargeBinary),  # as in user_sessions
)

sign_in_links = sa.Table(
    "sign_in_links",
    metadata,
    sa.Column("digest", sa.LargeBinary(32), primary_key=True),
    sa.Column("organization_id", sa.String(64), nullable=False),
    sa.Column("user_id", sa.String(64), nullable=False),
    sa.Column("created_by", sa.String(64), nullable=False),
    sa.Column("expires_at", sa.BigInteger, nullable=False, index=True),
    sa.ForeignKeyConstraint(["organization_id", "user_id"], ["users.organization_id", "users.id"]),
)

operator_sign_in_links = sa.Table(  # of whoever has a key of operators
    "operator_sign_in_links",
    metadata,
    sa.Column("digest", sa.LargeBinary(32), primary_key=True),
    sa.Column("operator_id", sa.String(64), sa.ForeignKey("operators.id"), nullable=False, unique=True),
    sa.Column("expires_at", sa.BigInteger, nullable=False, index=True),
)

sign_in_attempts = sa.Table(  # attempts of a window, by a digest of the account or the address that they are of
    "sign_in_attempts",
    metadata,
    sa.Column("digest", sa.LargeBinary(32), primary_key=True),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("window_ends_at", sa.BigInteger, nullable=False, index=True),
)

device_logins = sa.Table(  # logins of the command line that wait for their person; a person approves or denies one
    "device_logins",
    metadata,
    sa.Column("digest", sa.LargeBinary(32), primary_key=True),  # of the code of the device
    sa.Column("user_code", sa.String(8), nullable=False, unique=True),
    sa.Column("address", sa.String(64), nullable=False),
    sa.Column("agent", sa.String(256), nullable=False),
    sa.Column("interval_seconds", sa.Integer, nullable=False),
    sa.Column("polled_at", sa.BigInteger),
    sa.Column("user_id", sa.String(64)),  # of the person who decided, or of the session of the operator who did
    sa.Column("is_approved", sa.Boolean),  # null until somebody did
    sa.Column("expires_at", sa.BigInteger, nullable=False, index=True),
)

sign_in_connections = sa.Table(  # identity providers with which the people of an organization sign in (OpenID Connect)
    "sign_in_connections",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("organization_id", sa.String(64), sa.ForeignKey("organizations.id"), nullable=False),
    sa.Column("name", sa.String(256), nullable=False),
    sa.Column("issuer", sa.String(2048), nullable=False),
    sa.Column("client_id", sa.String(512), nullable=False),
    sa.Column("client_secret", sa.LargeBinary),  # sealed by the vault; null for a public client
    sa.Column("trusts_addresses", sa.Boolean, nullable=False),  # the provider verifies every address, and says so of none
    sa.Column("domains", sa.Text, nullable=False),  # JSON array: of addresses whose owners join by signing in
    sa.Column("role_id", sa.String(64)),  # of people who join so; null: nobody does
    sa.Column("groups_claim", sa.String(256), nullable=False),
    sa.Column("groups", sa.Text, nullable=False),  # JSON object: our group by the provider's name of one
    sa.Column("is_enabled", sa.Boolean, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("organization_id", "id"),
)

user_identities = sa.Table(  # who a subject of an identity provider is
    "user_identities",
    metadata,
    sa.Column("organization_id", sa.String(64), primary_key=True),
    sa.Column("connection_id", sa.String(64), primary_key=True),
    sa.Column("subject", sa.String(255), primary_key=True),
    sa.Column("user_id", sa.String(64), nullable=False),
    sa.ForeignKeyConstraint(["organization_id", "connection_id"], ["sign_in_connections.organization_id", "sign_in_connections.id"]),
    sa.ForeignKeyConstraint(["organization_id", "user_id"], ["users.organization_id", "users.id"]),
)

sa.Index(None, sign_in_connections.c.organization_id)
sa.Index(None, user_identities.c.organization_id, user_identities.c.user_id)
sa.Index(None, user_sessions.c.organization_id, user_sessions.c.user_id)
