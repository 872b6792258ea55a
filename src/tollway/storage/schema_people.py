"""The tables of people, groups, roles and invitations, on the same MetaData as `schema`.

Every key begins with the organization, so a group can hold no user, and a role no holder, of another one.
"""

import sqlalchemy as sa

from tollway.storage.schema import metadata

custom_roles = sa.Table(  # the built-in ones are in domain.roles
    "custom_roles",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("organization_id", sa.String(64), sa.ForeignKey("organizations.id"), nullable=False),
    sa.Column("project_id", sa.String(64)),  # the project that has the role; null for the organization
    sa.Column("name", sa.String(256), nullable=False),
    sa.Column("description", sa.String(1024), nullable=False),
    sa.Column("permissions", sa.Text, nullable=False),  # JSON array of domain.roles.Permission
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("deleted_at", sa.BigInteger),
    sa.ForeignKeyConstraint(["organization_id", "project_id"], ["projects.organization_id", "projects.id"]),
    sa.UniqueConstraint("organization_id", "id"),
)

users = sa.Table(
    "users",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("organization_id", sa.String(64), sa.ForeignKey("organizations.id"), nullable=False),
    sa.Column("email", sa.String(320), nullable=False),  # in lower case
    sa.Column("name", sa.String(256), nullable=False),
    sa.Column("added_at", sa.BigInteger, nullable=False),
    sa.Column("removed_at", sa.BigInteger),
    sa.UniqueConstraint("organization_id", "id"),
)

user_groups = sa.Table(
    "user_groups",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("organization_id", sa.String(64), sa.ForeignKey("organizations.id"), nullable=False),
    sa.Column("name", sa.String(256), nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("deleted_at", sa.BigInteger),
    sa.UniqueConstraint("organization_id", "id"),
)

group_members = sa.Table(
    "group_members",
    metadata,
    sa.Column("organization_id", sa.String(64), primary_key=True),
    sa.Column("group_id", sa.String(64), primary_key=True),
    sa.Column("user_id", sa.String(64), primary_key=True),
    sa.Column("added_at", sa.BigInteger, nullable=False),
    sa.ForeignKeyConstraint(["organization_id", "group_id"], ["user_groups.organization_id", "user_groups.id"]),
    sa.ForeignKeyConstraint(["organization_id", "user_id"], ["users.organization_id", "users.id"]),
)

role_assignments = sa.Table(  # what users and groups hold; the roles of admin keys are columns of api_keys
    "role_assignments",
    metadata,
    sa.Column("organization_id", sa.String(64), sa.ForeignKey("organizations.id"), primary_key=True),
    sa.Column("holder_id", sa.String(64), primary_key=True),  # a user or a group, as its prefix says
    sa.Column("project_id", sa.String(64), primary_key=True),  # empty for the whole organization
    sa.Column("role_id", sa.String(64), primary_key=True),  # built in, or of custom_roles
    sa.Column("is_membership", sa.Boolean, nullable=False),
    sa.Column("assigned_at", sa.BigInteger, nullable=False),
)

scim_users = sa.Table(  # what the directory of an organization says of a person: those that it manages have a row
    "scim_users",
    metadata,
    sa.Column("organization_id", sa.String(64), primary_key=True),
    sa.Column("user_id", sa.String(64), primary_key=True),
    sa.Column("user_name", sa.String(320), nullable=False),
    sa.Column("folded_user_name", sa.String(640), nullable=False),  # in lower case, which may be longer
    sa.Column("external_id", sa.String(320)),
    sa.Column("attributes", sa.Text, nullable=False),  # JSON object of what domain.scim keeps beside them
    sa.Column("is_active", sa.Boolean, nullable=False),  # false: users.removed_at is set, groups and roles are kept
    sa.Column("updated_at", sa.BigInteger, nullable=False),
    sa.ForeignKeyConstraint(["organization_id", "user_id"], ["users.organization_id", "users.id"]),
    sa.UniqueConstraint("organization_id", "folded_user_name"),
)

scim_groups = sa.Table(  # groups that the directory manages
    "scim_groups",
    metadata,
    sa.Column("organization_id", sa.String(64), primary_key=True),
    sa.Column("group_id", sa.String(64), primary_key=True),
    sa.Column("external_id", sa.String(320)),
    sa.Column("updated_at", sa.BigInteger, nullable=False),
    sa.ForeignKeyConstraint(["organization_id", "group_id"], ["user_groups.organization_id", "user_groups.id"]),
)

invites = sa.Table(
    "invites",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("organization_id", sa.String(64), sa.ForeignKey("organizations.id"), nullable=False),
    sa.Column("email", sa.String(320), nullable=False),
    sa.Column("role_id", sa.String(64), nullable=False),
    sa.Column("project_roles", sa.Text, nullable=False),  # JSON object: role by project
    sa.Column("pepper_version", sa.Integer, nullable=False),
    sa.Column("digest", sa.LargeBinary(32), nullable=False, unique=True),
    sa.Column("invited_by", sa.String(64), nullable=False),  # the key with which it was made, or the person with a session
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.BigInteger, nullable=False),
    sa.Column("accepted_at", sa.BigInteger),
    sa.Column("deleted_at", sa.BigInteger),
    sa.Column("user_id", sa.String(64)),  # the person who accepted it
)

# Lists page by id within their organization; quotas count what is in force and what was created lately.
sa.Index(None, custom_roles.c.organization_id, custom_roles.c.deleted_at, custom_roles.c.created_at)
sa.Index(None, users.c.organization_id, users.c.removed_at, users.c.added_at)
sa.Index(None, user_groups.c.organization_id, user_groups.c.deleted_at, user_groups.c.created_at)
sa.Index(None, group_members.c.organization_id, group_members.c.user_id)
sa.Index(None, scim_users.c.organization_id, scim_users.c.external_id)
sa.Index(None, role_assignments.c.organization_id, role_assignments.c.project_id, role_assignments.c.holder_id)
sa.Index(None, role_assignments.c.organization_id, role_assignments.c.role_id)
sa.Index(None, invites.c.organization_id, invites.c.deleted_at, invites.c.created_at)
sa.Index(
    "uq_users_email_unless_removed",
    users.c.organization_id,
    users.c.email,
    unique=True,
    sqlite_where=users.c.removed_at.is_(None),
    postgresql_where=users.c.removed_at.is_(None),
)
