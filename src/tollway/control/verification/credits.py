"""Verification of credits, for `verify`: each transaction against its grant, and what closed periods have burned against their events.

Events have been compared with the archive before; here they are taken as the database has them. Periods are settled one after the other, so
what each leaves of the grants is what the next begins with. A period whose events retention has removed is taken as it was settled.
"""

from collections.abc import Callable, Mapping, Sequence

from tollway.control.money.credits import entries_of, find_end, settle, transaction_id
from tollway.control.money.periods import is_kept
from tollway.domain.credits import CreditGrant, CreditMove, find_problem
from tollway.domain.periods import Period, PeriodState
from tollway.storage import credits as stored
from tollway.storage import periods as stored_periods
from tollway.storage.database import PlatformTx

Add = Callable[[str, str], None]
"""Notes a difference: of which table, and what it is."""

Replayed = dict[str, int]
"""Sums of entries by account."""


def compare_credits(tx: PlatformTx, periods: Mapping[str, Sequence[Period]], add: Add) -> tuple[Replayed, Replayed]:
    """Compare grants, draws and transactions with what periods and their events say. Returns what the entries come to by account, and what
    they should. `periods`: by organization, in order."""
    found = {transaction.id: (transaction, entries) for transaction, entries in stored.iterate_transactions(tx)}
    draws: dict[tuple[str, int], int] = {}
    for draw in stored.iterate_draws(tx):
        if all(period.start_at != draw.period_at for period in periods.get(draw.organization_id, ())):
            add("credit_draws", f"{draw.grant_id} was drawn on in no period of its organization")
        if draw.is_final:
            draws[draw.grant_id, draw.period_at] = draw.drawn_pico
    of_organization: dict[str, list[CreditGrant]] = {}
    for grant in stored.iterate_grants(tx):
        of_organization.setdefault(grant.organization_id, []).append(grant)
        if find_problem(grant) is not None:
            add("credit_grants", f"{grant.id} has terms that no grant can have")
    replayed, owed = Replayed(), Replayed()
    for _, entries in found.values():
        for entry in entries:
            replayed[entry.account.id] = replayed.get(entry.account.id, 0) + entry.amount_pico

    def expect(grant: CreditGrant, move: CreditMove, period_at: int | None, pico: int) -> None:
        right = entries_of(grant, move, pico)
        for entry in right:
            owed[entry.account.id] = owed.get(entry.account.id, 0) + entry.amount_pico
        transaction, entries = found.pop(transaction_id(grant, move, period_at), (None, ()))
        if transaction is None:
            add("credit_transactions", f"{grant.id} has no '{move}' of {pico} in the period from {period_at}")
        elif (transaction.grant_id, transaction.move, transaction.period_at, transaction.amount_pico) != (grant.id, move, period_at, pico):
            add("credit_transactions", f"{transaction.id} books {transaction.amount_pico}, its grant and its period come to {pico}")
        elif transaction.organization_id != grant.organization_id or entries != right:
            add("ledger_entries", f"{transaction.id} does not book what its cause comes to")

    for organization_id, grants in of_organization.items():
        left = {each.id: each.amount_pico for each in grants}
        ended: set[str] = set()
        for grant in grants:
            expect(grant, CreditMove.GRANT, None, grant.amount_pico)
        for period in periods.get(organization_id, ()):
            if period.state is not PeriodState.CLOSED:
                continue
            there = [each for each in grants if each.id not in ended]
            usage = stored.sum_usage(tx, organization_id, period.start_at)
            settled = settle(there, left, usage, period.start_at)
            if not is_kept(tx, list(stored_periods.iterate_blocks(tx, period.id))):
                taken = {each.id: draws.get((each.id, period.start_at), 0) for each in there}
                settled = settled._replace(burned={id: pico for id, pico in taken.items() if pico})
            for grant in there:
                burned = settled.burned.get(grant.id, 0)
                if burned != draws.pop((grant.id, period.start_at), 0):
                    add("credit_draws", f"{grant.id}: the events of the period from {period.start_at} burn {burned}")
                if burned:
                    expect(grant, CreditMove.BURN, period.start_at, burned)
                left[grant.id] -= burned
                if grant.ends_at <= period.start_at:
                    ended.add(grant.id)
                    if left[grant.id]:
                        expect(grant, find_end(grant), period.start_at, left[grant.id])
    for place, pico in draws.items():
        if pico:
            add("credit_draws", f"{place} is of no closed period")
    for transaction_id_ in found:
        add("credit_transactions", f"{transaction_id_} books what no grant and no period caused")
    return replayed, owed
