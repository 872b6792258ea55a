"""Closing billing periods: proven complete, frozen, hashed, and from then on beyond change.

A period is closed in steps that may be repeated, by anyone, after any crash. First it is frozen: with the organization locked, so
that nobody books for it, the periods before it must be closed, its end must be past, and every epoch of every gateway must be whole
up to that end or declared lost (`control/gateways/epochs.py`). From that commit on nothing is booked in it any more; what comes late goes
into the next. Then its events are hashed, a block at a time, in transactions that lock nothing. At last root, digests (of corrections,
and of prices and terms) and amounts are stored, and it is closed. A call does a bounded part of the hashing and is called again until
the state is closed.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from tollway.control.gateways import epochs
from tollway.control.gateways.epochs import Blocker, BlockerKind
from tollway.control.money import closed_credits, contracts, credits, serving_costs
from tollway.control.money.conditions import digest_conditions, list_conditions
from tollway.control.money.contracts import ContractUsage
from tollway.control.money.ledger import UNBILLED
from tollway.domain.corrections import fields_of
from tollway.domain.credits import CreditUsage
from tollway.domain.faults import RESOURCE_UNKNOWN, STATE_CONFLICT, Fault
from tollway.domain.pages import Page, PageWindow
from tollway.domain.periods import Closing, Period, PeriodClosure, PeriodState
from tollway.domain.proofs import BLOCK_LEAVES, Leaf, encode_leaf, find_path, find_root, hash_leaf, hash_statement, leaf_of
from tollway.domain.quarantine import WriteOff
from tollway.storage import corrections as stored_corrections
from tollway.storage import ledger as stored_ledger
from tollway.storage import partitions, rejected_records
from tollway.storage import periods as stored
from tollway.storage import usage_events as stored_usage
from tollway.storage.database import Database, PlatformTx, TenantTx, Transaction
from tollway.storage.periods import Block

BLOCKS_PER_CALL = 32
"""32,768 events: two seconds of a core, so that progress is reported often, on a busy machine too."""


UNKNOWN = "There is no such billing period."

NOT_KEPT = "Events of this period are not kept any more."


class Blocked(Exception):
    """A period cannot be closed yet: records are missing, or wait in quarantine."""

    def __init__(self, blockers: list[Blocker]) -> None:
        super().__init__(describe(blockers))
        self.blockers = blockers


def describe(blockers: Sequence[Blocker]) -> str:
    """Return what keeps a period open, in a sentence for operators: the first of at least one blocker, and how many there are."""
    first = blockers[0]
    place = first.node_id if first.epoch is None else f"{first.node_id}, epoch {first.epoch}"
    more = f" ({len(blockers)} such blockers; see all of them)" if len(blockers) > 1 else ""
    problem = "Records wait in quarantine" if first.kind is BlockerKind.RECORDS_QUARANTINED else "Records are missing"
    return f"{problem}: {place}: {first.text}{more}."


@dataclass(frozen=True, slots=True)
class Proof:
    """Proof that an event is in a period: its leaf, the index of the leaf, and the siblings on the path to the root."""

    leaf: Leaf
    index: int
    tree_size: int
    path: tuple[bytes, ...]
    root: bytes


# ---- Reading ----------------------------------------------------------------------------------------------------------


def get_period(tx: PlatformTx, period_id: str) -> Period:
    """A period of whatever organization. Raises RESOURCE_UNKNOWN."""
    period = stored.find_period(tx, period_id)
    if period is None:
        raise Fault(RESOURCE_UNKNOWN, message=UNKNOWN)
    return period


def get_own_period(tx: TenantTx, period_id: str) -> Period:
    """A period of the organization. Raises RESOURCE_UNKNOWN for any other."""
    period = stored.find_own_period(tx, period_id)
    if period is None:
        raise Fault(RESOURCE_UNKNOWN, message=UNKNOWN)
    return period


def list_periods(tx: PlatformTx, window: PageWindow, *, organization_id: str | None, state: PeriodState | None) -> Page[Period]:
    """Periods in order of their start, of everyone or of one organization."""
    return stored.list_periods(tx, window, organization_id=organization_id, state=state)


def list_own_periods(tx: TenantTx, window: PageWindow) -> Page[Period]:
    """The organization's periods in order of their start."""
    return stored.list_own_periods(tx, window)


def sum_totals(tx: Transaction, periods: Sequence[Period]) -> dict[str, int]:
    """Return what each of some periods comes to, in pico-currency, corrections included, by its id: what a closed one was closed with, and
    what is booked in another so far."""
    unclosed = [(period.organization_id, period.start_at) for period in periods if period.closed is None]
    booked = stored_ledger.sum_account(tx, unclosed, UNBILLED)
    return {
        period.id: booked.get((period.organization_id, period.start_at), 0) if period.closed is None else period.closed.total_pico
        for period in periods
    }


def list_blockers(tx: PlatformTx, period_id: str) -> list[Blocker]:
    """Return what keeps a period from being closed, missing records first; nothing if nothing does, or if it is closed."""
    period = get_period(tx, period_id)
    if period.state is not PeriodState.OPEN:
        return []
    return [*epochs.list_blockers(tx, period.start_at, period.end_at), *list_quarantine_blockers(tx, period)]


def list_quarantine_blockers(tx: PlatformTx, period: Period) -> list[Blocker]:
    """Return which records in quarantine would be booked in a period, or may be, by epoch and reason."""
    blockers = []
    for each in rejected_records.list_open_summaries(tx, period.organization_id, period.end_at):
        count = "a record is" if each.records == 1 else f"{each.records} records are"
        span = f"{each.first_seq}" if each.records == 1 else f"{each.first_seq} to {each.last_seq}"
        text = f"{count} in quarantine ({each.reason}, {span}): rate them again or write them off with `tollway quarantine`"
        blockers.append(Blocker(BlockerKind.RECORDS_QUARANTINED, each.node_id, each.epoch, None, text))
    return blockers


# ---- Closing ----------------------------------------------------------------------------------------------------------


def close(database: Database, period_id: str, *, actor: str, now: int) -> Period:
    """Bring a period one call further towards closed: freeze it, then hash at most BLOCKS_PER_CALL blocks, then close it.

    Returns it as it stands then; closed already is no fault. Raises Blocked, RESOURCE_UNKNOWN, or STATE_CONFLICT while it lasts or
    while one before it is not closed.
    """
    with database.platform() as tx:  # on its own, because what it opens keeps this period from being frozen
        contracts.open_periods(tx, get_period(tx, period_id).organization_id, now)
    with database.platform() as tx:
        period = freeze(tx, period_id, actor=actor, now=now)
    for _ in range(BLOCKS_PER_CALL):
        if period.state is PeriodState.CLOSED:
            return period
        with database.platform(write=False) as tx:
            block = make_block(tx, period, stored.find_last_block(tx, period.id))
            digest = digest_conditions(list_conditions(tx, period)) if block is None else b""
            usage = credits.sum_usage(tx, period) if block is None else {}
            by_contract = contracts.sum_valid_usage(tx, period) if block is None else []
            served = serving_costs.sum_usage(tx, period) if block is None else None
        with database.platform() as tx:
            if block is not None:
                stored.insert_block(tx, period, block)
            else:
                period = _finish(tx, period, digest, usage, by_contract, served, now)
    return period


def freeze(tx: PlatformTx, period_id: str, *, actor: str, now: int) -> Period:
    """Let a period take no bookings any more; one that is frozen already is left as it is. Raises as `close` does."""
    period = get_period(tx, period_id)
    stored.lock_organization(tx, period.organization_id)
    period = get_period(tx, period_id)  # as it is now that nobody else can change it
    if period.state is not PeriodState.OPEN:
        return period
    if now < period.end_at:
        raise Fault(STATE_CONFLICT, message="The period has not ended yet.")
    if stored.find_unfinished_before(tx, period) is not None:
        raise Fault(STATE_CONFLICT, message="A period before it is not closed yet.")
    blockers = list_blockers(tx, period.id)
    if blockers:
        raise Blocked(blockers)
    report, digest = epochs.report_cover(tx, period.start_at, period.end_at)
    written_off = rejected_records.list_write_offs(tx, period.organization_id, period.start_at, period.end_at)
    if written_off:
        report = {**report, "written_off": list(map(_write_off_row, written_off))}
    stored.freeze(tx, period, Closing(now, actor, digest, report))
    return get_period(tx, period_id)


def _write_off_row(each: WriteOff) -> dict[str, object]:
    return {
        "node_id": each.node_id,
        "epoch": each.epoch,
        "records": each.records,
        "first_seq": each.first_seq,
        "last_seq": each.last_seq,
        "reason": each.reason,
        "actor": each.actor,
        "approver": each.approver,
    }


def make_block(tx: Transaction, period: Period, last: Block | None) -> Block | None:
    """The block of a frozen period that follows `last`; None if there are no more events. The same whenever it is made."""
    after = "" if last is None else last.last_event_id
    leaves, amounts, first, final = [], dict[str, int](), "", ""
    for event, lines in stored_usage.list_period_events(tx, period.organization_id, period.start_at, limit=BLOCK_LEAVES, after=after):
        final = event.final.admit.request_id
        first = first or final
        leaves.append(hash_leaf(encode_leaf(leaf_of(event, lines, period.currency))))
        for line in (line for line in lines if line.amount_pico):
            amounts[line.billing_class] = amounts.get(line.billing_class, 0) + line.amount_pico
    if not leaves:
        return None
    return Block(0 if last is None else last.number + 1, len(leaves), first, final, find_root(leaves), amounts)


def _finish(
    tx: PlatformTx,
    period: Period,
    conditions_digest: bytes,
    usage: Mapping[CreditUsage, int],
    by_contract: Sequence[ContractUsage],
    served: serving_costs.PeriodUsage | None,
    now: int,
) -> Period:
    """Store what the blocks, corrections and conditions of a frozen period come to, settle its `usage` with the organization's credit, and
    book what its contracts add (`by_contract`: its usage by contract) and what serving it cost (`served`). One that somebody else has
    closed meanwhile stays as it is."""
    stored.lock_organization(tx, period.organization_id)
    period = get_period(tx, period.id)
    if period.state is PeriodState.CLOSED:
        return period
    hashes, events, amounts = [], 0, dict[str, int]()
    for block in stored.iterate_blocks(tx, period.id):
        hashes.append(block.hash)
        events += block.events
        for name, pico in block.amounts.items():
            amounts[name] = amounts.get(name, 0) + pico
    count, digest, corrected_pico = digest_adjustments(tx, period)
    closed = PeriodClosure(
        closed_at=now,
        events=events,
        merkle_root=find_root(hashes),
        adjustments=count,
        adjustments_digest=digest,
        adjustments_pico=corrected_pico,
        amounts=amounts,
        conditions_digest=conditions_digest,
    )
    credits.settle_period(tx, period, usage, now)
    digest_of_credits = closed_credits.digest_lines(closed_credits.list_lines(tx, period, now))
    contracts_pico = contracts.charge(tx, period, by_contract, sum(amounts.values()), now)
    digest_of_contracts = contracts.digest_lines(contracts.list_lines(tx, period))
    closed = replace(closed, credits_digest=digest_of_credits, contracts_pico=contracts_pico, contracts_digest=digest_of_contracts)
    statement = make_statement(replace(period, closed=closed))
    stored.close(tx, period, replace(closed, period_hash=hash_statement(statement)))
    serving_costs.book(tx, period, served, now)
    return get_period(tx, period.id)


def make_statement(period: Period) -> Mapping[str, Any]:
    """Return all that a closed period comes to: what its hash is made over, and its line of an export."""
    closing, closed = period.closing, period.closed
    assert closing is not None and closed is not None, "only a closed period has a statement"
    return {
        "id": period.id,
        "organization_id": period.organization_id,
        "currency": period.currency,
        "start_at": period.start_at,
        "end_at": period.end_at,
        "time_zone": period.time_zone,
        "frozen_at": closing.frozen_at,
        "closed_at": closed.closed_at,
        "closed_by": closing.closed_by,
        "events": closed.events,
        "merkle_root": closed.merkle_root.hex(),
        "amounts_pico": {name: str(pico) for name, pico in closed.amounts.items()},
        "adjustments": closed.adjustments,
        "adjustments_digest": closed.adjustments_digest.hex(),
        "adjustments_pico": str(closed.adjustments_pico),
        "conditions_digest": None if closed.conditions_digest is None else closed.conditions_digest.hex(),
        **({} if closed.credits_digest is None else {"credits_digest": closed.credits_digest.hex()}),
        **_describe_contracts(closed),
        "watermark_digest": closing.watermark_digest.hex(),
        "report": closing.report,
    }


def _describe_contracts(closed: PeriodClosure) -> Mapping[str, str]:
    """Return the fields of a statement about contracts, none without one."""
    if closed.contracts_digest is None:
        return {}
    return {"contracts_digest": closed.contracts_digest.hex(), "contracts_pico": str(closed.contracts_pico)}


def digest_adjustments(tx: Transaction, period: Period) -> tuple[int, bytes, int]:
    """The corrections booked in a period: how many, the SHA-256 over them in order of their ids (a line of JSON each), their sum."""
    digest, count, pico = hashlib.sha256(), 0, 0
    for adjustment in stored_corrections.iterate_booked(tx, period.organization_id, period.start_at):
        digest.update(msgspec.json.encode(fields_of(adjustment)) + b"\n")
        count, pico = count + 1, pico + adjustment.amount_pico
    return count, digest.digest(), pico


def is_kept(tx: Transaction, blocks: Sequence[Block]) -> bool:
    """Return whether retention has left alone every month of which these blocks have events."""
    removed = partitions.list_removed(tx)
    return not any(
        block.first_event_id < (each.month + 1).first_id and block.last_event_id >= each.month.first_id
        for block in blocks
        for each in removed
    )


def are_corrected_kept(tx: Transaction, period: Period) -> bool:
    """Return whether retention has left alone every event that a correction in the period names."""
    removed = partitions.list_removed(tx)
    if not removed:
        return True
    booked = stored_corrections.iterate_booked(tx, period.organization_id, period.start_at)
    # All are read, since a cursor of the server that is left before its end stays open.
    return sum(each.month.holds(correction.event_id) for correction in booked for each in removed) == 0


# ---- Proofs -----------------------------------------------------------------------------------------------------------


def prove(tx: TenantTx, period_id: str, request_id: str) -> Proof:
    """The proof that a request is in a closed period of the organization.

    Raises RESOURCE_UNKNOWN if it is not, or another's, and STATE_CONFLICT if the period is not closed, or its events are not kept.
    """
    period = get_own_period(tx, period_id)
    if period.closed is None:
        raise Fault(STATE_CONFLICT, message="The period is not closed yet.")
    block = stored.find_block_of(tx, period.id, request_id)
    if block is None:
        raise Fault(RESOURCE_UNKNOWN, message="There is no such request in this billing period.")
    events = stored_usage.list_period_events(tx, period.organization_id, period.start_at, limit=BLOCK_LEAVES, first=block.first_event_id)
    if len(events) != block.events:
        raise Fault(STATE_CONFLICT, message=NOT_KEPT)
    leaves = [leaf_of(event, lines, period.currency) for event, lines in events]
    inside = next((at for at, leaf in enumerate(leaves) if leaf.event_id == request_id), None)
    if inside is None:
        raise Fault(RESOURCE_UNKNOWN, message="There is no such request in this billing period.")
    path = find_path(inside, [hash_leaf(encode_leaf(leaf)) for leaf in leaves])
    path += find_path(block.number, [each.hash for each in stored.iterate_blocks(tx, period.id)])
    index = block.number * BLOCK_LEAVES + inside
    return Proof(leaves[inside], index, period.closed.events, tuple(path), period.closed.merkle_root)
