"""Changes that a transaction makes in the tables of resources, for the audit trail: the rows before and after.

Theory of operation. `watch` listens to the statements of one connection. Before an INSERT, UPDATE or DELETE of an audited table is
executed, the rows that it concerns are read: for an UPDATE or DELETE those of its WHERE, for an INSERT the row with the same primary key,
which may exist where the statement says ON CONFLICT. At the end the same rows are read again, and compared. So an operation cannot
forget to say what it changed. A column of raw bytes (a digest, a sealed credential) and those of SECRET are compared, and never shown.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from tollway.domain.audit import HIDDEN, RowChange
from tollway.storage import (
    schema,
    schema_budgets,
    schema_contracts,
    schema_credits,
    schema_data_protection,
    schema_events,
    schema_invoices,
    schema_money,
    schema_payments,
    schema_people,
    schema_periods,
    schema_prices,
    schema_serving_costs,
    schema_sign_in,
    schema_tokens,
)

AUDITED: Mapping[sa.Table, str] = {
    schema.organizations: "organization",
    schema.projects: "project",
    schema.service_accounts: "service_account",
    schema.api_keys: "api_key",
    schema.data_keys: "data_key",
    schema.models: "model",
    schema.deployments: "deployment",
    schema.model_limits: "model_limit",
    schema.plans: "plan",
    schema.plan_limits: "plan_limit",
    schema.limit_overrides: "limit_override",
    schema.nodes: "node",
    schema.join_tokens: "join_token",
    schema.refused_epochs: "refused_epoch",
    schema_people.custom_roles: "role",
    schema_people.users: "user",
    schema_people.user_groups: "group",
    schema_people.group_members: "group_member",
    schema_people.role_assignments: "role_assignment",
    schema_people.scim_users: "scim_user",
    schema_people.scim_groups: "scim_group",
    schema_people.invites: "invite",
    schema_sign_in.user_credentials: "user_credentials",
    schema_sign_in.user_sessions: "session",
    schema_sign_in.operators: "operator",
    schema_sign_in.operator_sessions: "operator_session",
    schema_sign_in.sign_in_connections: "sign_in_connection",
    schema_sign_in.user_identities: "user_identity",
    schema_tokens.token_signing_keys: "signing_key",
    schema_tokens.identity_providers: "identity_provider",
    schema_tokens.federation_rules: "federation_rule",
    schema_tokens.client_certificates: "certificate",
    schema_tokens.certificate_rules: "certificate_rule",
    schema_budgets.budgets: "budget",
    schema_budgets.budget_raises: "budget_raise",
    schema_credits.credit_grants: "credit_grant",
    schema_credits.credit_topup_rules: "credit_topup_rule",
    schema_contracts.contracts: "contract",
    schema_invoices.legal_entities: "legal_entity",
    schema_invoices.billing_accounts: "billing_account",
    schema_invoices.invoices: "invoice",
    schema_payments.payments: "payment",
    schema_payments.bank_statements: "bank_statement",
    schema_payments.bank_entries: "bank_entry",
    schema_payments.bank_returns: "bank_return",
    schema_payments.dunning_holds: "dunning_hold",
    schema_payments.invoice_syncs: "invoice_sync",
    schema_payments.direct_debits: "direct_debit",
    schema_payments.direct_debit_files: "direct_debit_file",
    schema_payments.credit_transfers: "credit_transfer",
    schema_payments.credit_transfer_files: "credit_transfer_file",
    schema_data_protection.leaked_keys: "leaked_key",
    schema_data_protection.erasures: "erasure",
    schema_events.webhook_endpoints: "webhook_endpoint",
    schema_events.telemetry_exports: "telemetry_export",
    schema_prices.price_books: "price_book",
    schema_prices.price_drafts: "price_draft",
    schema_prices.book_prices: "price",
    schema_prices.price_terms: "price_terms",
    schema_serving_costs.deployment_costs: "deployment_cost",
    schema_periods.billing_periods: "billing_period",
    schema_periods.lost_requests: "lost_request",
    schema_periods.lost_decisions: "lost_decision",
    schema_periods.lost_declarations: "lost_declaration",
    schema_periods.usage_adjustments: "adjustment",
    schema_periods.adjustment_approvals: "adjustment_approval",
    schema_money.quarantine_resolutions: "quarantine_resolution",
    schema_money.write_off_requests: "write_off_request",
    schema_money.removed_months: "removed_month",
}
"""Tables of resources, with the kind of resource. The other tables hold usage, money and the state of processes."""

SECRET: frozenset[sa.Column[Any]] = frozenset({schema_sign_in.user_sessions.c.refresh_id, schema_sign_in.operator_sessions.c.refresh_id})
"""Columns of text that are parts of secrets. Whoever knew the common part of the refresh tokens of a login could present a made-up one,
which counts as a copy and ends the login."""

NAMED_BY: Mapping[sa.Table, tuple[str, ...]] = {schema_sign_in.user_identities: ("organization_id", "connection_id", "user_id")}
"""Columns whose values name a row in the audit trail, where its primary key says something about a person: a subject at an identity
provider may be their address, and the id of a record's target is kept."""

ROWS_MAX = 50
"""Rows of one transaction that are compared. One that archives an organization may change thousands; the rest is counted."""

TEXT_CHARACTERS_MAX = 512
"""Longest text of a field that is kept. Of a longer one the rest is cut, and the SHA-256 of the whole stands in its place."""

Key = tuple[sa.Table, tuple[Any, ...]]
Row = Mapping[str, Any]


class RowChanges:
    """The changes of one transaction. `omitted`: rows beyond ROWS_MAX that a statement concerned."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection
        self._before: dict[Key, Row | None] = {}
        self._is_reading = False
        self.omitted = 0

    def note(self, statement: sa.UpdateBase, parameters: Sequence[Mapping[str, Any]]) -> None:
        """Read the rows that `statement` is about to change."""
        table = statement.table
        if self._is_reading or not isinstance(table, sa.Table) or table not in AUDITED:
            return
        self._is_reading = True
        try:
            if isinstance(statement, sa.Insert):
                self._note_insert(table, statement, parameters)
            else:
                for each in parameters or [{}]:
                    self._read_before(table, statement, each)
        finally:
            self._is_reading = False

    def list_changes(self) -> list[RowChange]:
        """Return what became of each row, in the order in which the rows were first touched; rows that stayed as they were are left out."""
        self._is_reading = True
        changes = []
        for (table, key), before in self._before.items():
            after = self._find(table, key)
            if before != after:
                changes.append(_describe(table, key, before or {}, after or {}))
        return changes

    def _note_insert(self, table: sa.Table, statement: sa.Insert, parameters: Sequence[Mapping[str, Any]]) -> None:
        """Read the rows that have the keys of those to be inserted, as far as they are compared; the rest is counted."""
        stated = statement.compile(dialect=self._connection.dialect).params
        for each in parameters or [{}]:
            values = {**stated, **each}
            key = tuple(values.get(column.name) for column in table.primary_key)
            if None in key:
                continue
            is_compared = (table, key) in self._before or len(self._before) < ROWS_MAX
            self._keep(table, key, self._find(table, key) if is_compared else None)

    def _read_before(self, table: sa.Table, statement: sa.UpdateBase, parameters: Mapping[str, Any]) -> None:
        assert isinstance(statement, sa.Update | sa.Delete)
        condition = sa.true() if statement.whereclause is None else statement.whereclause
        query = sa.select(table).where(condition).limit(ROWS_MAX).with_for_update()  # as the statement is about to lock them
        rows = self._connection.execute(query, dict(parameters)).mappings().all()
        for row in rows:
            self._keep(table, tuple(row[column.name] for column in table.primary_key), dict(row))
        if len(rows) == ROWS_MAX:
            counted = self._connection.execute(sa.select(sa.func.count()).select_from(table).where(condition), dict(parameters))
            self.omitted += counted.scalar_one() - ROWS_MAX

    def _keep(self, table: sa.Table, key: tuple[Any, ...], row: Row | None) -> None:
        if (table, key) in self._before:
            return
        if len(self._before) >= ROWS_MAX:
            self.omitted += 1
            return
        self._before[table, key] = row

    def _find(self, table: sa.Table, key: tuple[Any, ...]) -> Row | None:
        query = sa.select(table).where(*(column == value for column, value in zip(table.primary_key, key, strict=True)))
        row = self._connection.execute(query).mappings().one_or_none()
        return None if row is None else dict(row)


def watch(connection: sa.Connection) -> RowChanges:
    """Return the changes that are made over `connection` from now on, until it is given back."""
    changes = RowChanges(connection)

    def note(_connection: sa.Connection, statement: Any, multiple: Any, single: Any, _options: Any) -> None:
        if isinstance(statement, sa.UpdateBase):
            changes.note(statement, multiple or ([single] if single else []))

    listen: Callable[..., None] = sa.event.listen
    listen(connection, "before_execute", note)
    return changes


def _describe(table: sa.Table, key: tuple[Any, ...], before: Row, after: Row) -> RowChange:
    columns = [column for column in table.c if before.get(column.name) != after.get(column.name)]
    named_by = NAMED_BY.get(table)
    parts = key if named_by is None else [(after or before)[name] for name in named_by]
    return RowChange(
        kind=AUDITED[table],
        id=":".join(str(part) for part in parts),
        before={each.name: _show(each, before[each.name]) for each in columns if each.name in before},
        after={each.name: _show(each, after[each.name]) for each in columns if each.name in after},
    )


def _show(column: sa.Column[Any], value: Any) -> object:
    if isinstance(value, bytes | memoryview) or (column in SECRET and value is not None):
        return HIDDEN
    if isinstance(value, str) and len(value) > TEXT_CHARACTERS_MAX:
        return f"{value[:TEXT_CHARACTERS_MAX]}... (SHA-256 {hashlib.sha256(value.encode()).hexdigest()})"
    return value
