"""Row security of PostgreSQL: which rows a transaction of one organization can see and change, whatever its queries say.

Theory of operation. Three kinds of role. The *owner* made the tables; it migrates, and nothing else. `tollway_platform` and
`tollway_tenant` cannot log in; the application's own role is a member of both, and owns nothing. A connection begins as
`tollway_platform`. A transaction on behalf of an organization changes to `tollway_tenant` and sets ORGANIZATION_SETTING, both until it ends
(`storage.database`). Each table with rows of organizations has a policy for each of the two roles: all rows for the platform, those of the
organization of the setting for the tenant. Without the setting a tenant sees nothing. Row security is forced, so that whoever has no policy
sees nothing; the owner has one, for migrations that change rows and for restores. Foreign keys are checked by PostgreSQL beside it.

Policies and grants are no migrations: `apply` brings them to what this module says after each one, and leaves what is right as it is. A
table that nobody listed here is the platform's alone, unless it has a column `organization_id`: then each row is its organization's.

This is a second line behind the conditions of queries. It does not stop SQL that an attacker wrote, which could change its role.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import sqlalchemy as sa

PLATFORM_ROLE = "tollway_platform"
TENANT_ROLE = "tollway_tenant"
ORGANIZATION_SETTING = "tollway.organization"
"""The setting that holds the id of the organization on whose behalf a transaction runs."""

WRITE = ("DELETE", "INSERT", "SELECT", "UPDATE")
READ = ("SELECT",)

ORGANIZATION_COLUMN = "organization_id"
OWN = f"current_setting('{ORGANIZATION_SETTING}', true)"

CONDITIONS: Mapping[str, str] = {
    "organizations": f"id = {OWN}",
    "price_books": f"organization_id IS NULL OR organization_id = {OWN}",  # general ones are everybody's
    "audit_heads": f"chain = {OWN}",
    "audit_records": f"chain = {OWN}",
    "audit_checkpoints": f"chain = {OWN}",
    "audit_cuts": f"chain = {OWN}",
    "ledger_accounts": f"owner = {OWN} OR owner = 'platform'",  # the other side of each posting; its balance is not shown
    # Rows that name what is an organization's: the policy of that table decides.
    "balances": f"EXISTS (SELECT 1 FROM ledger_accounts AS parent WHERE parent.id = account_id AND parent.owner = {OWN})",
    "ledger_entries": "EXISTS (SELECT 1 FROM ledger_transactions AS parent WHERE parent.id = transaction_id)"
    " OR EXISTS (SELECT 1 FROM credit_transactions AS parent WHERE parent.id = transaction_id)"
    " OR EXISTS (SELECT 1 FROM invoice_transactions AS parent WHERE parent.id = transaction_id)"
    " OR EXISTS (SELECT 1 FROM payments AS parent WHERE parent.id = transaction_id)"
    " OR EXISTS (SELECT 1 FROM contract_charges AS parent WHERE parent.id = transaction_id)",
    "serving_costs": "false",  # what an organization costs is the platform's alone
    "invoices": f"organization_id = {OWN} AND state = 'issued'",
    "invoice_files": "EXISTS (SELECT 1 FROM invoices AS parent WHERE parent.id = invoice_id)",
    "period_blocks": "EXISTS (SELECT 1 FROM billing_periods AS parent WHERE parent.id = period_id)",
    "quarantine_resolutions": "EXISTS (SELECT 1 FROM quarantined_records AS parent WHERE (parent.node_id, parent.epoch, parent.seq)"
    " = (quarantine_resolutions.node_id, quarantine_resolutions.epoch, quarantine_resolutions.seq))",
    "write_off_requests": "EXISTS (SELECT 1 FROM quarantined_records AS parent WHERE (parent.node_id, parent.epoch, parent.seq)"
    " = (write_off_requests.node_id, write_off_requests.epoch, write_off_requests.seq))",
    "adjustment_approvals": "EXISTS (SELECT 1 FROM usage_adjustments AS parent WHERE parent.id = adjustment_id)",
    "budget_windows": "EXISTS (SELECT 1 FROM budgets AS parent WHERE parent.id = budget_id)",
    "budget_leases": "EXISTS (SELECT 1 FROM budgets AS parent WHERE parent.id = budget_id)",
    "budget_alerts": "EXISTS (SELECT 1 FROM budgets AS parent WHERE parent.id = budget_id)",
    "price_lists": "EXISTS (SELECT 1 FROM price_books AS parent WHERE parent.id = book_id)",
    "book_prices": "EXISTS (SELECT 1 FROM price_books AS parent WHERE parent.id = book_id)",
    "compiled_prices": "EXISTS (SELECT 1 FROM price_lists AS parent WHERE parent.id = list_id)",
}
"""Condition of the rows that are the organization's own, where a column `organization_id` alone does not say it."""

READ_ONLY = frozenset(
    {
        *("quarantined_records", "quarantine_resolutions", "write_off_requests", "usage_events"),
        *("usage_rollups", "project_rollups", "organization_rollups"),
        *("ledger_accounts", "ledger_transactions", "ledger_entries", "balances"),
        *("price_books", "book_prices"),
        "erasures",
        *("credit_grants", "credit_draws", "credit_transactions", "credit_topup_rules", "credit_topups"),
        *("credit_redraws", "credit_redraw_usage"),
        *("billing_accounts", "invoices", "invoice_files", "invoice_transactions"),
        *("contracts", "contract_charges", "serving_costs"),
        *("payments", "settlements", "open_items", "dunning_notices", "dunning_letters", "dunning_holds", "invoice_syncs"),
        *("direct_debits", "credit_transfers"),
    }
)
"""Tables of which an organization sees its own rows (and general ones), and writes none."""

SHARED: Mapping[str, tuple[str, ...]] = {
    "alembic_version": (),
    "models": READ,
    "plans": READ,
    "plan_limits": READ,
    "publish_head": ("SELECT", "UPDATE"),
    "changes": ("DELETE", "INSERT"),
    "idempotency_keys": WRITE,
    "sign_in_attempts": WRITE,  # digests, with the attempts of a window
    "used_assertions": WRITE,  # digests, so that none is exchanged twice
    "epochs": (),
    "lost_declarations": (),
    "removed_months": READ,
}
"""Rights of a transaction of an organization on tables that are no organization's. Answers in `idempotency_keys` are sealed."""

SHARED_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "changes": ("version",),
    "epochs": ("closed_at", "epoch", "node_id"),  # which leases of its budgets still count
    "lost_declarations": ("declared_at", "epoch", "node_id"),
}
"""Columns that it may read of tables whose rows may be about other organizations, in order of their names."""

OWNER = "CURRENT_USER"
"""Stands for the role that owns a table, in its policies."""

SEE = "see Roles of PostgreSQL in docs/deployment.md"


class RoleRefused(RuntimeError):
    """The role of a database URL has too many rights, or too few. The message is for the operator."""


@dataclass(frozen=True, slots=True)
class TableAccess:
    """Protection of one table. `condition`: of its rows for the tenant; None without row security. `tenant`: what the tenant's role may do
    with it. `columns`: what it may read if that is not all."""

    condition: str | None
    tenant: tuple[str, ...]
    columns: tuple[str, ...] = ()

    @property
    def policies(self) -> dict[str, tuple[str, str]]:
        """Role and condition of each policy by its name, which shows whether the condition is still this one."""
        if self.condition is None:
            return {}
        digest = hashlib.sha256(self.condition.encode()).hexdigest()[:8]
        return {
            f"rows_of_tenant_{digest}": (TENANT_ROLE, self.condition),
            "rows_of_platform": (PLATFORM_ROLE, "true"),
            "rows_of_owner": (OWNER, "true"),
        }


def access_to(table: str, *, has_organization: bool) -> TableAccess:
    """Return the protection of `table`. `has_organization`: whether it has a column `organization_id`."""
    if table in SHARED:
        return TableAccess(None, SHARED[table], SHARED_COLUMNS.get(table, ()))
    own = f"{ORGANIZATION_COLUMN} = {OWN}" if has_organization else None
    condition = CONDITIONS.get(table, own)
    if condition is None:
        return TableAccess(None, ())
    return TableAccess(condition, READ if table in READ_ONLY else WRITE)


# ---- The catalog ------------------------------------------------------------------------------------------------------

_TABLES = sa.text(
    "SELECT cls.relname AS name, cls.relrowsecurity AND cls.relforcerowsecurity AS is_forced,"
    " EXISTS (SELECT 1 FROM pg_attribute WHERE attrelid = cls.oid AND attname = :column AND NOT attisdropped) AS has_organization,"
    " ARRAY(SELECT polname::text FROM pg_policy WHERE polrelid = cls.oid ORDER BY polname) AS policies,"
    " quote_ident(pg_get_userbyid(cls.relowner)) AS owner,"
    " NOT EXISTS (SELECT 1 FROM pg_policy WHERE polrelid = cls.oid AND polname = 'rows_of_owner'"
    "  AND polroles <> ARRAY[cls.relowner]) AS is_of_owner,"
    " ARRAY(SELECT DISTINCT granted.privilege_type::text FROM aclexplode(cls.relacl) AS granted JOIN pg_roles ON pg_roles.oid = grantee"
    "  WHERE rolname = :platform ORDER BY 1) AS platform,"
    " ARRAY(SELECT DISTINCT granted.privilege_type::text FROM aclexplode(cls.relacl) AS granted JOIN pg_roles ON pg_roles.oid = grantee"
    "  WHERE rolname = :tenant ORDER BY 1) AS tenant,"
    " ARRAY(SELECT attname::text FROM pg_attribute, aclexplode(attacl) AS granted JOIN pg_roles ON pg_roles.oid = grantee"
    "  WHERE attrelid = cls.oid AND rolname = :tenant ORDER BY 1) AS columns"
    " FROM pg_class AS cls WHERE cls.relnamespace = current_schema()::regnamespace AND cls.relkind IN ('r', 'p')"
    " ORDER BY cls.relispartition, cls.relname"
)


_FUNCTIONS = sa.text(
    "SELECT proc.oid::regprocedure::text AS signature, has_function_privilege(:platform, proc.oid, 'EXECUTE') AS platform,"
    " EXISTS (SELECT 1 FROM aclexplode(coalesce(proacl, acldefault('f', proowner))) AS granted WHERE grantee = 0) AS everybody"
    " FROM pg_proc AS proc WHERE pronamespace = current_schema()::regnamespace AND prosecdef ORDER BY 1"
)
"""Functions that run with the rights of the owner: the platform's role may call them, and nobody else."""


@dataclass(frozen=True, slots=True)
class Gap:
    """A table or function whose protection is not what it should be, and the statements that mend it."""

    name: str
    statements: tuple[str, ...]


def find_gaps(connection: sa.Connection) -> list[Gap]:
    """Return what differs between the database and this module; nothing if every table is protected as it should be."""
    names = {"column": ORGANIZATION_COLUMN, "platform": PLATFORM_ROLE, "tenant": TENANT_ROLE}
    tables = connection.execute(_TABLES, names).all()
    gaps = [Gap(row.name, statements) for row in tables if (statements := tuple(_mend(row)))]
    for function in connection.execute(_FUNCTIONS, {"platform": PLATFORM_ROLE}):
        if function.everybody or not function.platform:
            revoke = f"REVOKE ALL ON FUNCTION {function.signature} FROM PUBLIC"
            gaps.append(Gap(function.signature, (revoke, f"GRANT EXECUTE ON FUNCTION {function.signature} TO {PLATFORM_ROLE}")))
    return gaps


def list_gaps(connection: sa.Connection) -> list[str]:
    """Return the names of what differs between the database and this module."""
    return [gap.name for gap in find_gaps(connection)]


def find_unprotected(connection: sa.Connection) -> list[str]:
    """Return the tables that need row security and have none, whatever the conditions of their policies say."""
    names = {"column": ORGANIZATION_COLUMN, "platform": PLATFORM_ROLE, "tenant": TENANT_ROLE}
    tables = connection.execute(_TABLES, names).all()
    return [row.name for row in tables if _find_access(row).policies and not (row.policies and row.is_forced)]


def _find_access(row: sa.Row[tuple[object, ...]]) -> TableAccess:
    # Partitions of events are reached through their table, whose policies count; only the platform uses them by name.
    return TableAccess(None, ()) if row.name.startswith("usage_events_") else access_to(row.name, has_organization=row.has_organization)


def _mend(row: sa.Row[tuple[object, ...]]) -> Iterator[str]:
    wanted = _find_access(row)
    # Tables that were handed over keep the policy of their former owner: without its own, a migration would find no rows.
    if sorted(wanted.policies) != sorted(row.policies) or row.is_forced != bool(wanted.policies) or not row.is_of_owner:
        yield from (f"DROP POLICY {policy} ON {row.name}" for policy in row.policies)
        for name, (role, condition) in wanted.policies.items():
            to = row.owner if role == OWNER else role
            yield f"CREATE POLICY {name} ON {row.name} TO {to} USING ({condition}) WITH CHECK ({condition})"
        for verb in ("ENABLE", "FORCE") if wanted.policies else ("NO FORCE", "DISABLE"):
            yield f"ALTER TABLE {row.name} {verb} ROW LEVEL SECURITY"
    if tuple(row.platform) != WRITE:
        yield f"GRANT {', '.join(WRITE)} ON {row.name} TO {PLATFORM_ROLE}"
    if tuple(row.tenant) != tuple(sorted(wanted.tenant)) or tuple(row.columns) != wanted.columns:
        yield f"REVOKE ALL ON {row.name} FROM {TENANT_ROLE}"
        if wanted.tenant:
            yield f"GRANT {', '.join(wanted.tenant)} ON {row.name} TO {TENANT_ROLE}"
        if wanted.columns:
            yield f"GRANT SELECT ({', '.join(wanted.columns)}) ON {row.name} TO {TENANT_ROLE}"


def make_roles(connection: sa.Connection) -> None:
    """Make the two roles if the server has none. Raises RoleRefused if the owner may not."""
    for role in (PLATFORM_ROLE, TENANT_ROLE):
        if connection.scalar(sa.text("SELECT count(*) FROM pg_roles WHERE rolname = :role"), {"role": role}):
            continue
        may = connection.scalar(sa.text("SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user"))
        if not may:
            raise RoleRefused(f"the server has no role {role}, and the owner of the database cannot make it: {SEE}")
        # Roles belong to the server: another database of it may be migrated at the same time.
        connection.execute(
            sa.text(f"DO $$ BEGIN CREATE ROLE {role}; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$")
        )


def apply(connection: sa.Connection) -> None:
    """Bring policies and grants to what this module says. `connection` is the owner's. Raises RoleRefused."""
    make_roles(connection)
    gaps = find_gaps(connection)
    if gaps:
        schema = connection.scalar(sa.text("SELECT quote_ident(current_schema())"))
        connection.execute(sa.text(f"GRANT USAGE ON SCHEMA {schema} TO {PLATFORM_ROLE}, {TENANT_ROLE}"))
    for gap in gaps:
        for statement in gap.statements:
            connection.execute(sa.text(statement))


# ---- The role that connects -------------------------------------------------------------------------------------------

_CONNECTED_ROLE = sa.text(
    "SELECT me.rolname AS name, me.rolsuper OR me.rolbypassrls AS is_exempt,"
    " EXISTS (SELECT 1 FROM pg_class AS cls WHERE cls.relnamespace = current_schema()::regnamespace AND cls.relkind IN ('r', 'p')"
    "  AND pg_has_role(me.oid, cls.relowner, 'MEMBER')) AS is_owner,"
    " (SELECT count(*) FROM pg_roles AS ours WHERE ours.rolname IN (:platform, :tenant)"
    "  AND pg_has_role(me.oid, ours.oid, 'MEMBER')) AS ours"
    " FROM pg_roles AS me WHERE me.rolname = session_user"
)


def refuse_role(connection: sa.Connection) -> None:
    """Raise RoleRefused unless the role that connected is held to row security, and may change to both roles."""
    role = connection.execute(_CONNECTED_ROLE, {"platform": PLATFORM_ROLE, "tenant": TENANT_ROLE}).one()
    if role.is_exempt:
        raise RoleRefused(f"the database role {role.name} is a superuser or bypasses row security, so control does not run as it: {SEE}")
    if role.is_owner:
        raise RoleRefused(f"the database role {role.name} owns the tables or is a member of the role that does: {SEE}")
    if role.ours < 2:
        raise RoleRefused(f"the database role {role.name} is not a member of {PLATFORM_ROLE} and {TENANT_ROLE}: {SEE}")


def is_applied(connection: sa.Connection) -> bool:
    """Return whether the tables have row security at all: those of versions before it have none."""
    return bool(connection.scalar(sa.text("SELECT relrowsecurity FROM pg_class WHERE oid = to_regclass('organizations')")))


def assume_platform(connection: sa.Connection) -> None:
    """Give the transaction that runs on `connection` the rights of the platform."""
    connection.execute(sa.text(f"SET LOCAL ROLE {PLATFORM_ROLE}"))


def assume_tenant(connection: sa.Connection, organization_id: str) -> None:
    """Make the transaction that runs on `connection` one of the organization, until it ends."""
    connection.execute(_ASSUME, {"organization": organization_id})


_ASSUME = sa.text(f"SELECT set_config('role', '{TENANT_ROLE}', true), set_config('{ORGANIZATION_SETTING}', :organization, true)")
