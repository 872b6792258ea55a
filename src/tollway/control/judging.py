"""What records come to: which of them are events, what each costs, and their sums. Pure; shared by the collector and `verify`.

Theory of operation. A batch of thousands of records has few *groups*: the same caller, model, price and service tier, the same
outcome, deployment and so on. All that an event shares with its group is looked at once, for the group: whether names are names, which
price applies, what the outcome policy bills, how the columns of the row read. What is left for each event is its id, its instants and
its counts; two shifts tell whether all of these are in range.

Sums are taken in the same pass: a *run* is what a group comes to in one minute, one billing period and one hour of its first tokens. Rating
only multiplies, so what a run costs is its tokens times the unit prices, and nothing has to be added up in pico. Rollups, postings and what
engines did follow from the runs.

`Tally.rate` is a generator, so that the database can store the first rows while the last are judged.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from tollway.control.ledger import book_usage
from tollway.domain.money import AMOUNT_PICO_MAX
from tollway.domain.periods import INSTANT_MAX, Calendar
from tollway.domain.prices import BillingClass, PriceVersion
from tollway.domain.reconciliation import HOUR_US, UNKNOWN_DEPLOYMENT, EngineUsage, UsageKey
from tollway.domain.usage import (
    FINAL_HEAD,
    OUTCOME_POLICIES,
    TOKENS_MAX,
    Admit,
    Close,
    Final,
    Outcome,
    Tick,
    bills,
    content_hash,
    decode,
    decode_final,
)
from tollway.storage.ledger import Posting, UsageCause
from tollway.storage.schema_money import ROLLUP_WIDTHS_SECONDS
from tollway.storage.usage import EventRow, RollupKey, Shared, Stray, Sums
from tollway.wire.segments import Frame

ATTEMPTS_MAX = 1_000
"""Upstreams tried for one request: far above any list of candidates."""

MINUTE_US = 60_000_000

_TOKEN_BITS = TOKENS_MAX.bit_length()
_INSTANT_BITS = INSTANT_MAX.bit_length()
assert TOKENS_MAX == 2**_TOKEN_BITS - 1, "a shift tells which counts are in range"
assert INSTANT_MAX == 2**_INSTANT_BITS - 1, "and which instants"


class Refused(Exception):
    """The bytes are not the continuation of this epoch. Nothing was taken in; a person must look."""


# ---- Sorting out ------------------------------------------------------------------------------------------------------

_NAMES = re.compile(r"(?:[!-~]{1,64}\n){6}[!-~]{1,128}")
"""Ids, endpoint and service tier of at most 64 visible ASCII characters, and a model's name."""

_NAME = re.compile(r"[!-~]{1,64}")
_ALL_NAMES = re.compile(r"(?:[!-~]{1,64}\n)*[!-~]{1,64}")


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """What many events have in common: everything but id, instants and counts. `final` is the first of them; what is particular to it is
    not looked at. `is_valid`: whether a gateway can have written it (names that are names, a policy that we published)."""

    final: Final
    is_valid: bool

    @property
    def admit(self) -> Admit:
        """How they were admitted."""
        return self.final.admit


Entry = tuple[int, bytes, str, int, int | None, int, int, int, int, int, Group]
"""A FINAL: seq, payload, request id, admitted at, first token at, ended at, input, cached input, output, reasoning, group."""


@dataclass(slots=True)
class Batch:
    """Records of one epoch, sorted out: FINALs, what is no valid record (and why), the last TICK, CLOSE."""

    node_id: str
    epoch: int
    finals: list[Entry] = field(default_factory=list)
    groups: dict[tuple[object, ...], Group] = field(default_factory=dict)
    unreadable: list[tuple[int, bytes, str]] = field(default_factory=list)
    """Seq, payload, flaw."""
    ticked_at: int | None = None
    closed_at: int | None = None
    closed_seq: int | None = None

    def take(self, frames: Iterable[Frame]) -> None:
        """Sort out records; ADMITs may be left out."""
        finals, groups, ids = self.finals, self.groups, list[str]()
        for frame in frames:
            payload = frame.payload
            try:
                record = decode_final(payload) if payload.startswith(FINAL_HEAD) else decode(payload)
            except ValueError:
                self.unreadable.append((frame.seq, payload, "unreadable"))
                continue
            if not isinstance(record, Final):
                self._take_other(frame, record)
                continue
            admit, used = record.admit, record.used
            key = (
                admit.organization_id,
                admit.project_id,
                admit.key_id,
                admit.endpoint,
                admit.price_version,
                admit.service_tier,
                admit.model,
                admit.stream,
                admit.outcome_policy,
                record.outcome,
                record.source,
                record.deployment_id,
                record.attempts,
                record.error,
                record.anomaly,
            )
            group = groups.get(key)
            if group is None:
                group = groups[key] = Group(record, _is_possible(record))
            request_id, admitted_at, first_token_at, ended_at = admit.request_id, admit.admitted_at, record.first_token_at, record.ended_at
            input, cached_input, output, reasoning = used.input, used.cached_input, used.output, used.reasoning
            is_in_range = not (
                (input | cached_input | output | reasoning) >> _TOKEN_BITS
                or (admitted_at | ended_at | (first_token_at or 0)) >> _INSTANT_BITS  # one below zero makes them all below zero
            )
            if is_in_range and group.is_valid:
                ids.append(request_id)
                finals.append(
                    (
                        frame.seq,
                        payload,
                        request_id,
                        admitted_at,
                        first_token_at,
                        ended_at,
                        input,
                        cached_input,
                        output,
                        reasoning,
                        group,
                    )
                )
            else:
                self.unreadable.append((frame.seq, payload, "invalid"))
        joined = "\n".join(ids)  # all at once: a regular expression costs mostly its start
        if ids and (joined.count("\n") != len(ids) - 1 or _ALL_NAMES.fullmatch(joined) is None):
            self.unreadable += ((each[0], each[1], "invalid") for each in finals if _NAME.fullmatch(each[2]) is None)
            self.finals = [each for each in finals if _NAME.fullmatch(each[2]) is not None]

    def _take_other(self, frame: Frame, record: object) -> None:
        if isinstance(record, Tick):
            self.ticked_at = min(max(record.at, 0), INSTANT_MAX)
        elif isinstance(record, Close) and self.closed_seq is None:
            self.closed_at, self.closed_seq = min(max(record.at, 0), INSTANT_MAX), frame.seq

    def end(self, next_seq: int) -> None:
        """Raises Refused if the records up to `next_seq` go on after CLOSE."""
        if self.closed_seq is not None and next_seq != self.closed_seq + 1:
            raise Refused("a record after CLOSE")


def _is_possible(final: Final) -> bool:
    admit = final.admit
    names = (
        admit.organization_id,
        admit.project_id,
        admit.key_id,
        admit.endpoint,
        admit.price_version,
        admit.service_tier,
        admit.model,
    )
    return (
        _NAMES.fullmatch("\n".join(names)) is not None
        and 0 <= final.attempts <= ATTEMPTS_MAX
        and admit.outcome_policy in OUTCOME_POLICIES
        and all(name is None or _NAME.fullmatch(name) is not None for name in (final.deployment_id, final.error))
    )


# ---- Rating -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Payer:
    """An organization that may owe: its currency, and the price lists that were ever in its terms."""

    currency: str
    lists: frozenset[str]


def judge(admit: Admit, payers: Mapping[str, Payer], prices: Mapping[str, PriceVersion]) -> PriceVersion | str:
    """The price of a valid FINAL, or why it cannot be rated. Pure, and the same for all of a group.

    A list that was ever in the organization's terms will do: a gateway that has not heard of new terms admits by those before.
    """
    payer, price = payers.get(admit.organization_id), prices.get(admit.price_version)
    if payer is None:
        return "organization_unknown"
    if price is None:
        return "price_unknown"
    is_payers = price.currency == payer.currency and price.list in payer.lists
    if not is_payers or price.model != admit.model or price.tier is not admit.service_tier:
        return "price_not_applicable"
    return price


@dataclass(slots=True)
class Run:
    """The events of one group that ended in one minute (since 1970), are booked in one period, had their first token in one hour (since
    1970; that of the end, if there was none), and are alike in whether they are billed and whether an engine heard of them.

    Tokens are as used; requests is how many events; first and last are by seq.
    """

    group: Group
    price: PriceVersion
    bills_request: bool
    period_at: int
    minute: int
    heard_hour: int
    is_billed: bool
    is_heard: bool
    first_seq: int
    requests: int = 0
    input: int = 0
    cached_input: int = 0
    output: int = 0
    reasoning: int = 0
    last_seq: int = 0
    last_ended_at: int = 0

    def sums(self) -> Sums:
        """Tokens as billed, and what they cost."""
        if not self.is_billed:
            return Sums(requests=self.requests)
        price = self.price
        return Sums(
            self.requests,
            self.input,
            self.cached_input,
            self.output,
            self.reasoning,
            self.input * price.input_pico,
            self.cached_input * price.cached_input_pico,
            self.output * price.output_pico,
            self.reasoning * price.reasoning_pico,
            self.requests * price.request_pico if self.bills_request else 0,
        )


RunKey = tuple[int, int, int, bool, bool]
"""Minute of the end, hour of the first token, start of the period, billed, heard of."""


@dataclass(slots=True)
class _Rating:
    """How the events of a group are rated."""

    price: PriceVersion
    bills: bool
    bills_delivered: bool
    bills_request: bool
    calendar: Calendar
    shared: Shared
    runs: dict[RunKey, Run] = field(default_factory=dict)


@dataclass(slots=True)
class Tally:
    """What a batch comes to: how many events, what was put aside, and the sums."""

    payers: Mapping[str, Payer]
    prices: Mapping[str, PriceVersion]
    calendars: Mapping[str, Calendar]
    """The billing periods of each organization; those that are cut here must be stored."""
    known: dict[str, bytes]
    """Content hashes of events already taken in, by id; grows with each one that is added."""
    events: int = 0
    runs: list[Run] = field(default_factory=list)
    conflicts: list[Stray] = field(default_factory=list)
    quarantined: list[Stray] = field(default_factory=list)

    def rate(self, batch: Batch, taken: Mapping[str, tuple[tuple[str, int, int], bytes]] | None = None) -> Iterator[EventRow]:
        """Judge every FINAL of a batch, in order: the rows of those that are events, as they are found.

        `taken`: place (node, epoch, seq) and content hash of what was taken in under an id, for whoever does not know in which order
        epochs were: where several records have one id, the one of that place became the event.
        """
        node_id, epoch, known = batch.node_id, batch.epoch, self.known
        self.quarantined += (_stray(batch, seq, None, b"", payload, flaw) for seq, payload, flaw in batch.unreadable)
        ratings = {group: self._rate_group(batch, group) for group in batch.groups.values() if group.is_valid}
        for (
            seq,
            payload,
            event_id,
            admitted_at,
            first_token_at,
            ended_at,
            input,
            cached_input,
            output,
            reasoning,
            group,
        ) in batch.finals:
            hashed, rating = content_hash(payload), ratings[group]
            if isinstance(rating, str):
                self.quarantined.append(_stray(batch, seq, event_id, hashed, payload, rating))
                continue
            is_billed = rating.bills or (rating.bills_delivered and output + reasoning > 0)
            if is_billed:
                price = rating.price
                input_pico = input * price.input_pico
                cached_input_pico = cached_input * price.cached_input_pico
                output_pico = output * price.output_pico
                reasoning_pico = reasoning * price.reasoning_pico
                request_pico = price.request_pico if rating.bills_request else 0
                # No amount is below zero, so that a sum within bounds is one of amounts within bounds.
                if input_pico + cached_input_pico + output_pico + reasoning_pico + request_pico > AMOUNT_PICO_MAX and (
                    max(input_pico, cached_input_pico, output_pico, reasoning_pico, request_pico) > AMOUNT_PICO_MAX
                ):
                    self.quarantined.append(_stray(batch, seq, event_id, hashed, payload, "amount_too_large"))
                    continue
            else:
                input_pico = cached_input_pico = output_pico = reasoning_pico = request_pico = 0
            other = known.get(event_id)
            if other is None and taken is not None and event_id in taken:
                place, its_hash = taken[event_id]
                other = None if place == (node_id, epoch, seq) else its_hash
            if other is not None:
                if other != hashed:
                    self.conflicts.append(_stray(batch, seq, event_id, hashed, payload, "conflict"))
                continue
            known[event_id] = hashed
            period_at = rating.calendar.place(ended_at)
            heard_at = ended_at if first_token_at is None or first_token_at > ended_at else first_token_at
            is_heard = group.final.deployment_id is not None or (input | cached_input | output | reasoning) > 0
            key = (ended_at // MINUTE_US, heard_at // HOUR_US, period_at, is_billed, is_heard)
            run = rating.runs.get(key)
            if run is None:
                run = rating.runs[key] = Run(
                    group, rating.price, rating.bills_request, period_at, key[0], key[1], is_billed, is_heard, first_seq=seq
                )
                self.runs.append(run)
            run.requests += 1
            run.input += input
            run.cached_input += cached_input
            run.output += output
            run.reasoning += reasoning
            run.last_seq = seq
            run.last_ended_at = ended_at
            self.events += 1
            yield (
                event_id,
                seq,
                admitted_at,
                first_token_at,
                ended_at,
                input,
                cached_input,
                output,
                reasoning,
                input_pico,
                cached_input_pico,
                output_pico,
                reasoning_pico,
                request_pico,
                period_at,
                hashed,
                rating.shared,
            )

    def _rate_group(self, batch: Batch, group: Group) -> "_Rating | str":
        price, final, admit = judge(group.admit, self.payers, self.prices), group.final, group.admit
        if isinstance(price, str):
            return price
        policy = OUTCOME_POLICIES[admit.outcome_policy]
        bills_tokens, bills_request = bills(policy, final.outcome, delivered=False)
        bills_delivered, bills_delivered_request = bills(policy, final.outcome, delivered=True)
        return _Rating(
            price=price,
            bills=bills_tokens,
            bills_delivered=bills_delivered,
            bills_request=bills_request or bills_delivered_request,
            calendar=self.calendars[admit.organization_id],
            shared=Shared.of(batch.node_id, batch.epoch, final),
        )

    def roll_up(self) -> dict[RollupKey, Sums]:
        """The sums of all events by minute, hour and day of their end, tokens as billed."""
        rollups: dict[RollupKey, Sums] = {}
        for run in self.runs:
            admit, sums, minute_at = run.group.admit, run.sums(), run.minute * MINUTE_US
            for width_seconds in ROLLUP_WIDTHS_SECONDS:
                start_at = minute_at - minute_at % (width_seconds * 1_000_000)
                key = (admit.organization_id, width_seconds, start_at, admit.project_id, admit.key_id, admit.model, admit.endpoint)
                rolled = rollups.get(key)
                if rolled is None:
                    rolled = rollups[key] = Sums()
                rolled.add(sums)
        return rollups

    def sum_usage(self) -> dict[UsageKey, EngineUsage]:
        """What `domain.reconciliation.sum_usage` makes of the same requests, one by one (`verify` has it do so)."""
        usage: dict[UsageKey, EngineUsage] = {}
        for run in self.runs:
            if not run.is_heard:
                continue
            final = run.group.final
            deployment_id, model = final.deployment_id or UNKNOWN_DEPLOYMENT, final.admit.model
            ended = usage.setdefault((run.minute * MINUTE_US // HOUR_US * HOUR_US, deployment_id, model), EngineUsage())
            ended.requests += run.requests
            ended.incomplete += run.requests if final.outcome is not Outcome.COMPLETED else 0
            ended.retried += run.requests if final.attempts > 1 else 0
            ended.anomalous += run.requests if final.anomaly is not None else 0
            ended.output += run.output + run.reasoning
            heard = usage.setdefault((run.heard_hour * HOUR_US, deployment_id, model), EngineUsage())
            heard.input += run.input
            heard.cached_input += run.cached_input
        return usage

    def sum_costs(self) -> dict[str, "Costs"]:
        """What the events cost, by organization."""
        costs: dict[str, Costs] = {}
        for run in self.runs:
            _add_costs(costs.setdefault(run.group.admit.organization_id, {}), run)
        return costs

    def book(self, batch: Batch, now: int) -> list[Posting]:
        """The ledger transactions for all events of this batch: one for each organization and period in which something is owed."""
        booked: dict[tuple[str, int], list[Run]] = {}
        for run in self.runs:
            booked.setdefault((run.group.admit.organization_id, run.period_at), []).append(run)
        postings = []
        for (organization_id, period_at), runs in sorted(booked.items(), key=lambda each: each[0]):
            costs: Costs = {}
            for run in runs:
                _add_costs(costs, run)
            last = max(runs, key=lambda run: run.last_seq)
            cause = UsageCause(
                batch.node_id, batch.epoch, min(run.first_seq for run in runs), last.last_seq, sum(run.requests for run in runs)
            )
            currency = self.payers[organization_id].currency
            posting = book_usage(organization_id, period_at, cause, last.last_ended_at, costs, currency, now)
            if posting is not None:
                postings.append(posting)
        return postings


Costs = dict[tuple[str, BillingClass], int]
"""Pico-currency by model and billing class; nothing is zero."""


def _add_costs(costs: Costs, run: Run) -> None:
    model, sums = run.group.admit.model, run.sums()
    for billing_class, pico in (
        (BillingClass.INPUT, sums.input_pico),
        (BillingClass.CACHED_INPUT, sums.cached_input_pico),
        (BillingClass.OUTPUT, sums.output_pico),
        (BillingClass.REASONING, sums.reasoning_pico),
        (BillingClass.REQUEST, sums.request_pico),
    ):
        if pico:
            costs[model, billing_class] = costs.get((model, billing_class), 0) + pico


def _stray(batch: Batch, seq: int, event_id: str | None, hashed: bytes, payload: bytes, reason: str) -> Stray:
    return Stray(batch.node_id, batch.epoch, seq, event_id, payload, hashed, reason)
