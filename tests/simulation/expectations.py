"""Promises that must hold once nothing is left to come: the books against the truth, computed here again, in another way.

Shares no code with rating, rollups or the ledger: prices are multiplied here, outcomes are billed by a table written from
docs/outcomes.md, and tables are read as they stand.
"""

from typing import Any

import sqlalchemy as sa

from tests.simulation.limits import check_limits
from tests.simulation.traffic import Counts, Truth, counts_of, totals_of
from tollway.control.verification.verify import verify
from tollway.domain.rollups import ROLLUP_WIDTHS_SECONDS
from tollway.storage import schema_money as money
from tollway.storage.budgets import list_leases
from tollway.storage.schema_budgets import budget_windows

VERIFY_SHARE = 0.25
"""Share of the histories that are also verified from the archive, which costs as much as all the rest."""

CLOCK_ERROR_US = 3_600_000_000
"""Largest error of a gateway's clock with which control still bills its records: an hour."""

ALWAYS = {"completed", "client_cancelled", "budget_stopped", "gateway_crash"}
AFTER_TOKENS = {"upstream_error", "timeout"}

DAMAGE = {"spool_damaged", "spool_shipping_stopped"}
HARMLESS = {
    "leases_unavailable",
    "spool_recovery_failed",
    "spool_care_failed",
    "spool_disk_full",
    "spool_shipping_waits",
    "records_not_accepted",
}
"""Alarms that the faults of a history explain, and that end with them."""

BROKEN = "[Errno 5] injected"
"""A disk that reports errors: what excuses a spool that gives up. A full one does not."""


def check_history(history: Any) -> None:
    """Every promise, at rest."""
    fail = history.world.fail
    with history.control.ledger.database.platform(write=False) as tx:
        rows = {row.event_id: row for row in tx.connection.execute(sa.select(money.usage_events))}
        balances = {row.account_id: row.posted_pico for row in tx.connection.execute(sa.select(money.balances))}
        rollups = [row._asdict() for row in tx.connection.execute(sa.select(money.usage_rollups))]
        conflicts = tx.connection.execute(sa.select(sa.func.count()).select_from(money.event_conflicts)).scalar_one()
        quarantined = {row.event_id: row for row in tx.connection.execute(sa.select(money.quarantined_records))}
    if conflicts:
        fail(f"{conflicts} conflicts")
    misdated = _find_misdated_epochs(history)
    owed: dict[str, int] = {}
    for truth in history.traffic.truths.values():
        row = rows.pop(truth.id, None)
        if kept := quarantined.pop(truth.id, None):
            _check_quarantined(history, truth, kept, misdated)
            if row is not None:
                fail(f"{truth.id} is billed and in quarantine")
        elif row is None:
            _check_missing(history, truth)
        else:
            if _is_admitted_at_impossible_instant(truth):
                fail(f"{truth.id} is billed, though its gateway's clock was wrong by hours")
            _check_event(history, truth, row)
            account = f"{truth.organization_id}/unbilled/{truth.price.currency}"
            owed[account] = owed.get(account, 0) + cost_of(truth, row)
    for event_id in rows:
        fail(f"{event_id} was never asked for")
    for event_id, kept in quarantined.items():
        fail(f"{event_id} is in quarantine ({kept.reason}) and was never asked for")
    _check_sums(history, owed, balances, rollups)
    _check_budget(history, owed)
    if history.limits is not None:
        check_limits(history.limits)
    _check_alarms(history)
    if history.world.chance.random() < VERIFY_SHARE:
        report = verify(history.control.ledger.database, history.control.archive)
        # The archive may have records of a batch that did not commit, and that a gateway with a damaged disk cannot send again.
        if report.differences or (report.missing_records and not history.tainted):
            fail(f"verify: {report.missing_records} records are missing, {report.differences}")


def used_of(row: Any) -> Counts:
    """Return the counts of an event."""
    return row.input, row.cached_input, row.output, row.reasoning


def bills(row: Any) -> bool:
    """Return whether its tokens are billed."""
    return row.outcome in ALWAYS or (row.outcome in AFTER_TOKENS and row.output + row.reasoning > 0)


def cost_of(truth: Truth, row: Any) -> int:
    """Return what an event must cost, in pico."""
    if not bills(row):
        return 0
    price = truth.price
    units = (price.unit_prices.input, price.unit_prices.cached_input, price.unit_prices.output, price.unit_prices.reasoning)
    cost = sum(count * unit for count, unit in zip(used_of(row), units, strict=True))
    return cost + (price.unit_prices.request if row.outcome == "completed" else 0)


def _find_misdated_epochs(history: Any) -> set[int]:
    """Return the epochs in which a record may have an impossible instant: the gateway's clock jumped by hours, or the epoch was numbered
    behind one whose clock was ahead by hours."""
    latest = history.world.true_clock() + CLOCK_ERROR_US
    begun = [gateway for gateway in history.gateways if gateway.has_begun]
    return {
        gateway.spool.epoch.number
        for gateway in begun
        if abs(gateway.process.skew_seconds) * 1e6 > CLOCK_ERROR_US or gateway.spool.epoch.number > latest
    }


def _is_admitted_at_impossible_instant(truth: Truth) -> bool:
    return not truth.epoch - CLOCK_ERROR_US <= truth.admitted_at <= truth.true_admitted_at + CLOCK_ERROR_US


def _check_quarantined(history: Any, truth: Truth, kept: Any, misdated: set[int]) -> None:
    """A record is kept aside only if the clock of its gateway was wrong by hours: it is billed to nobody, and it is not lost."""
    if kept.reason != "instant_impossible" or truth.epoch not in misdated:
        history.world.fail(f"{truth.id} (epoch {truth.epoch}) is in quarantine: {kept.reason}")
    if (kept.epoch, kept.organization_id) != (truth.epoch, truth.organization_id):
        history.world.fail(f"{truth.id} is another's in quarantine")


def _check_missing(history: Any, truth: Truth) -> None:
    """No event: only if nobody had been told, or somebody broke the disk."""
    fail, state = history.world.fail, f"{truth.id} (epoch {truth.epoch})"
    tainted = history.tainted.get(truth.epoch)
    if not truth.admitted or (truth.power_cut and not truth.durable):
        return
    if tainted is not None:
        if tainted != "torn" and not any(event in DAMAGE and fields.get("epoch") == truth.epoch for event, fields in history.alarms):
            fail(f"{state} is lost with a damaged segment that nobody reported")
        return
    fail(f"{state} has no event{', though its success was shown' if truth.shown else ''}")


def _check_event(history: Any, truth: Truth, row: Any) -> None:
    fail, used = history.world.fail, used_of(row)
    if (row.organization_id, row.price_version, row.epoch) != (truth.organization_id, truth.price.id, truth.epoch):
        fail(f"{truth.id} is another's")
    if row.outcome == "gateway_crash":
        if truth.durable and truth.epoch not in history.tainted:
            fail(f"{truth.id} ended durably and was recovered all the same")
        if any(count > most for count, most in zip(used, truth.generated, strict=True)):
            fail(f"{truth.id} bills {used}, generated were {truth.generated}")
        if any(count > most for count, most in zip(totals_of(used), truth.generated_totals, strict=True)):
            fail(f"{truth.id} bills {used}, of all classes together {truth.generated_totals} were generated")
        is_certain = not truth.power_cut and truth.epoch not in history.tainted
        if is_certain and any(count < least for count, least in zip(totals_of(used), totals_of(truth.delivered), strict=True)):
            fail(f"{truth.id} bills {used}, delivered were {truth.delivered}")
        return
    if truth.expected is None:
        fail(f"{truth.id} ended as {row.outcome} without a reason")
        return
    outcome, counts = truth.expected
    if (row.outcome, used) != (str(outcome), counts):
        fail(f"{truth.id} is {row.outcome} {used} instead of {outcome} {counts}")
    if truth.ended is not None and counts_of(truth.ended.used) != used:
        fail(f"{truth.id} has other counts than its FINAL")


def _check_sums(history: Any, owed: dict[str, int], balances: dict[str, int], rollups: list[dict[str, Any]]) -> None:
    fail = history.world.fail
    unbilled = {account: pico for account, pico in balances.items() if "/unbilled/" in account and pico}
    if unbilled != {account: pico for account, pico in owed.items() if pico}:
        fail(f"the organizations owe {owed}, the ledger says {unbilled}")
    totals: dict[str, int] = {}
    for account, pico in balances.items():
        currency = account.rpartition("/")[2]
        totals[currency] = totals.get(currency, 0) + pico
    if any(totals.values()):
        fail(f"the ledger sums to {totals}")
    for width in ROLLUP_WIDTHS_SECONDS:
        summed: dict[str, int] = {}
        for row in rollups:
            if row["width_seconds"] == width:
                pico = sum(row[f"{name}_units"] * 10**12 + row[f"{name}_pico"] for name in money.ROLLUP_COSTS)
                summed[row["organization_id"]] = summed.get(row["organization_id"], 0) + pico
        by_organization = {account.partition("/")[0]: pico for account, pico in owed.items() if pico}
        if {organization: pico for organization, pico in summed.items() if pico} != by_organization:
            fail(f"rollups of {width} s sum to {summed}, owed are {by_organization}")


def _check_budget(history: Any, owed: dict[str, int]) -> None:
    """A hard budget is never overspent, what is spent of it is what its organization owes, and no lease outlives its epoch."""
    budget, fail = history.control.budget, history.world.fail
    if budget is None:
        return
    history.control.check_budget()
    with history.control.ledger.database.platform(write=False) as tx:
        rows = tx.connection.execute(sa.select(budget_windows.c.spent_pico).where(budget_windows.c.budget_id == budget.id)).scalars()
        spent_pico = sum(rows)
        leases = list_leases(tx, budget.id, 0)
    owed_pico = owed.get(f"{budget.organization_id}/unbilled/{budget.currency}", 0)
    if spent_pico != owed_pico or (owed_pico > budget.amount_pico and not budget.is_prepaid):
        fail(f"of the budget of {budget.amount_pico}, {spent_pico} are spent, owed are {owed_pico}")
    if leased := [each.epoch for each in leases if each.outstanding_pico and each.epoch not in history.tainted]:
        fail(f"nothing is under way, and money is leased to the epochs {leased}")


def _check_alarms(history: Any) -> None:
    """Nobody is called without a reason: damage is reported where there is some, and only there."""
    for event, fields in history.alarms:
        if event in DAMAGE:
            excused = fields.get("epoch") in history.tainted
        elif event == "spool_failed":
            excused = BROKEN in str(fields.get("error"))
        else:
            excused = event in HARMLESS
        if not excused:
            history.world.fail(f"alarm without cause: {event} {fields}")
