"""Credit in a closed period, as exports state it and the hash of the period covers it: the grants that its usage could burn, and what its
close booked on them.

The lines of a closed period never change. A grant is among them if something was left of it before the period and it began before the end
of that; an end by a void stands in its line only if it came before the end of the period, because a later one changes nothing in it.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from tollway.domain.credits import CreditGrant, CreditTransaction
from tollway.domain.ledger import Entry
from tollway.domain.periods import Period
from tollway.storage import credits as stored
from tollway.storage.database import Transaction

Line = tuple[str, Mapping[str, Any]]
"""A line of an export: its type, `grant` or `credit`, and its other fields."""


def list_lines(tx: Transaction, period: Period, closed_at: int) -> Sequence[Line]:
    """Return the lines about credit of a period that is settled and is, or is being, closed at an instant: grants and then transactions,
    each by id. None where no usage of the period could burn credit and nothing was booked on any."""
    grants = stored.list_open_at(tx, period.organization_id, period.end_at, closed_at)
    before, booked = dict.fromkeys((each.id for each in grants), 0), list[Line]()
    for transaction, entries in stored.list_booked(tx, period.organization_id, before, period.start_at):
        if transaction.period_at == period.start_at:
            booked.append(("credit", _describe(transaction, entries)))
        else:
            before[transaction.grant_id] += transaction.amount_pico
    there = [each for each in grants if before[each.id] < each.amount_pico]
    return [*(("grant", _describe_grant(each, before[each.id], period)) for each in there), *booked]


def digest_lines(lines: Iterable[Line]) -> bytes | None:
    """Return the SHA-256 over lines as an export has them, a newline after each; None if there are none."""
    digest, count = hashlib.sha256(), 0
    for type, fields in lines:
        digest.update(msgspec.json.encode({"type": type, **fields}) + b"\n")
        count += 1
    return digest.digest() if count else None


def _describe_grant(grant: CreditGrant, used_pico: int, period: Period) -> Mapping[str, Any]:
    is_voided = grant.voided_at is not None and grant.voided_at < period.end_at
    return {
        "id": grant.id,
        "category": grant.category,
        "amount_pico": str(grant.amount_pico),
        "used_before_pico": str(used_pico),
        "cost_basis_bp": grant.cost_basis_bp,
        "priority": grant.priority,
        "effective_at": grant.effective_at,
        "expires_at": grant.expires_at,
        "voided_at": grant.voided_at if is_voided else None,
        "created_at": grant.created_at,
        "project_id": grant.project_id,
        "models": list(grant.models) if grant.model else None,
    }


def _describe(transaction: CreditTransaction, entries: Iterable[Entry]) -> Mapping[str, Any]:
    return {
        "id": transaction.id,
        "grant_id": transaction.grant_id,
        "move": transaction.move,
        "amount_pico": str(transaction.amount_pico),
        "booked_at": transaction.booked_at,
        "entries": [{"account": each.account.id, "amount_pico": str(each.amount_pico)} for each in entries],
    }
