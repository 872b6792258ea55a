"""Batches: the records of one epoch as they arrive, decoded and validated. Pure; shared by the collector and `verify`.

A batch of thousands of records has few *groups*: the same caller, model, price and service tier, the same outcome, deployment and so on.
What an event shares with its group is validated once, for the group: names, policy, attempts. What is left for each event is its id, its
instants and its counts; two shifts test whether all of these are in range.

What an ADMIT says behind its id and its instant is the same text for all requests of a key for a model, so it is decoded once: the others
are known by their bytes. That holds for the one encoding that gateways write (`domain.usage.encode`); a record in any other form is decoded
by itself, and comes to the same.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import msgspec

from tollway.domain.billing_classes import Quantities
from tollway.domain.periods import INSTANT_MAX
from tollway.domain.rollups import ENDPOINT_CHARS_MAX, TEST_PREFIX, rollup_endpoint
from tollway.domain.usage import (
    BUDGETS_MAX,
    CHOICES_MAX,
    FINAL_HEAD,
    OUTCOME_POLICIES,
    TOKENS_MAX,
    Admit,
    Anomaly,
    Close,
    Final,
    Outcome,
    RejectedRecord,
    Tick,
    UsageSource,
    content_hash,
    decode,
    decode_admit,
    decode_ended,
    decode_final,
    encode,
)
from tollway.wire.segments import Frame

ATTEMPTS_MAX = 1_000
"""Upstreams tried for one request: far above any list of candidates."""

_TOKEN_BITS = TOKENS_MAX.bit_length()
_INSTANT_BITS = INSTANT_MAX.bit_length()
assert TOKENS_MAX == 2**_TOKEN_BITS - 1, "a shift tests which counts are in range"
assert INSTANT_MAX == 2**_INSTANT_BITS - 1, "a shift tests which instants are in range"

_NAMES = re.compile(r"(?:[!-~]{1,64}\n){6}[!-~]{1,128}")
"""Ids, endpoint and service tier of at most 64 visible ASCII characters, and a model's name."""

_NAME = re.compile(r"[!-~]{1,64}")

_ADMIT_PLACE = re.compile(rb'\{"record":"admit","request_id":"([0-9A-Za-z_-]{1,64})","admitted_at":(0|[1-9][0-9]{0,15}),')
"""Beginning of an ADMIT in the encoding of gateways: its id, in which JSON escapes nothing, and its instant."""

_NO_PLACE = len(b'{"record":"admit","request_id":"","admitted_at":0,')


class BatchRefused(Exception):
    """The bytes do not continue this epoch. Nothing was ingested; an operator must look."""


@dataclass(frozen=True, slots=True, eq=False)
class EventGroup:
    """A group of events that have everything in common but id, instants and counts.

    `final` is the first of them; only what the group shares is read from it. `is_valid`: whether a gateway can have written it (names in
    the allowed form, a published outcome policy).
    """

    final: Final
    is_valid: bool

    @property
    def admit(self) -> Admit:
        """The ADMIT of the group's first event."""
        return self.final.admit


class FinalRecord(msgspec.Struct, frozen=True, gc=False):
    """A valid FINAL of a batch: its bytes, what it does not share with its group, and its group."""

    seq: int
    payload: bytes
    event_id: str
    admitted_at: int
    first_token_at: int | None
    ended_at: int
    used: Quantities
    group: EventGroup

    @property
    def final(self) -> Final:
        """All that it says, decoded at each call."""
        return decode_final(self.payload)


GroupKey = tuple[Outcome | UsageSource | Anomaly | str | int | None, ...]
"""Values that the FINALs of a group have in common beside their ADMITs."""


@dataclass(slots=True)
class Batch:
    """Records of one epoch by kind: FINALs, records that are not valid, the instant of the last TICK, and CLOSE."""

    node_id: str
    epoch: int
    finals: list[FinalRecord] = field(default_factory=list)
    groups: list[EventGroup] = field(default_factory=list)
    unreadable: list[RejectedRecord] = field(default_factory=list)
    ticked_at: int | None = None
    closed_at: int | None = None
    closed_seq: int | None = None
    _terms: dict[bytes, dict[GroupKey, EventGroup]] = field(default_factory=dict, init=False)
    """The groups by what the ADMITs of their FINALs say behind their ids and instants, in the encoding of gateways."""

    def add(self, frames: Iterable[Frame]) -> None:
        """Decode and validate records; ADMITs may be left out."""
        finals, known = self.finals, self._terms
        for frame in frames:
            payload = frame.payload
            try:
                if not payload.startswith(FINAL_HEAD):
                    record = decode(payload)
                    if not isinstance(record, Final):
                        self._add_other(frame, record)
                        continue
                ended = decode_ended(payload)
                raw = bytes(ended.admit)
                place = _ADMIT_PLACE.match(raw)
                of_terms = None if place is None else known.get(raw[place.end() :])
                if place is None or of_terms is None:
                    admit = decode_admit(raw)
                    event_id, admitted_at, is_named = admit.request_id, admit.admitted_at, _find_name(admit.request_id) is not None
                    of_terms = known.setdefault(encode(msgspec.structs.replace(admit, request_id="", admitted_at=0))[_NO_PLACE:], {})
                else:
                    id, instant = place.groups()
                    event_id, admitted_at, is_named = id.decode(), int(instant), True
            except ValueError:
                self._reject(frame.seq, payload, "unreadable")
                continue
            key = (ended.outcome, ended.source, ended.deployment_id, ended.attempts, ended.error, ended.anomaly)
            group = of_terms.get(key)
            if group is None:
                final = decode_final(payload)
                group = of_terms[key] = EventGroup(final, _is_possible(final))
                self.groups.append(group)
            used, first_token_at = ended.used, ended.first_token_at
            instants = admitted_at | ended.ended_at | (first_token_at or 0)  # one below zero makes the union so
            if used.bits >> _TOKEN_BITS or used.request or instants >> _INSTANT_BITS or not is_named or not group.is_valid:
                self._reject(frame.seq, payload, "invalid", decode_final(payload))
            else:
                finals.append(FinalRecord(frame.seq, payload, event_id, admitted_at, first_token_at, ended.ended_at, used, group))

    def reject_finals(self, is_rejected: Callable[[FinalRecord], bool], reason: str) -> None:
        """Move the FINALs for which `is_rejected` holds to those that cannot be rated, for `reason`."""
        kept = []
        for record in self.finals:
            if is_rejected(record):
                place = (self.node_id, self.epoch, record.seq, record.event_id)
                content = (record.payload, content_hash(record.payload))
                self.unreadable.append(RejectedRecord(*place, *content, reason, record.group.admit.organization_id, record.ended_at))
            else:
                kept.append(record)
        self.finals = kept

    def _reject(self, seq: int, payload: bytes, reason: str, final: Final | None = None) -> None:
        event_id = organization_id = served_at = None
        if final is not None:  # what it says is used to find it again, as far as it is possible at all
            event_id, organization_id = _find_name(final.admit.request_id), _find_name(final.admit.organization_id)
            served_at = final.ended_at if 0 <= final.ended_at <= INSTANT_MAX else None
        self.unreadable.append(RejectedRecord(self.node_id, self.epoch, seq, event_id, payload, b"", reason, organization_id, served_at))

    def _add_other(self, frame: Frame, record: object) -> None:
        if isinstance(record, Tick):
            self.ticked_at = min(max(record.at, 0), INSTANT_MAX)
        elif isinstance(record, Close) and self.closed_seq is None:
            self.closed_at, self.closed_seq = min(max(record.at, 0), INSTANT_MAX), frame.seq

    def end(self, next_seq: int) -> None:
        """Finish a batch of the records before `next_seq`. Raises BatchRefused if they go on after CLOSE."""
        if self.closed_seq is not None and next_seq != self.closed_seq + 1:
            raise BatchRefused("a record after CLOSE")


def _find_name(text: str) -> str | None:
    return text if _NAME.fullmatch(text) else None


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
        and not admit.endpoint.startswith(TEST_PREFIX)
        and len(rollup_endpoint(admit.endpoint, test=admit.test)) <= ENDPOINT_CHARS_MAX
        and 1 <= admit.choices <= CHOICES_MAX
        and len(admit.budgets) <= BUDGETS_MAX
        and all(_NAME.fullmatch(each) is not None for each in admit.budgets)
        and 0 <= final.attempts <= ATTEMPTS_MAX
        and admit.outcome_policy in OUTCOME_POLICIES
        and all(name is None or _NAME.fullmatch(name) is not None for name in (final.deployment_id, final.error))
    )
