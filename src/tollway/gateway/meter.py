"""Phase 6 around phase 5: ADMIT before the upstream receives the request, exactly one FINAL, durable before success is reported.

`async with` a record cannot be left without a FINAL: relay finishes the record itself before the last byte of a success, and any
exception that comes through is the outcome of the request.
"""

from collections.abc import Callable
from typing import Final

import msgspec

from tollway.domain import faults
from tollway.domain.billing_classes import NOTHING, Quantities
from tollway.domain.faults import Fault
from tollway.domain.money import format_amount
from tollway.domain.proofs import hash_price
from tollway.domain.request_records import add_budgets, add_choices, encode_admit, encode_terms, find_cost
from tollway.domain.usage import (
    ESTIMATING,
    OUTCOME_POLICY_CURRENT,
    Admit,
    Anomaly,
    Ended,
    Outcome,
    UsageSource,
    encode,
)
from tollway.gateway.driver import OVER, ShieldedWaiter, Waiter
from tollway.gateway.ports import ChecksAnswer, UsageSink
from tollway.gateway.request import Call, ClientGone, Ending, Permit
from tollway.wire.progress_slots import FIRST_TOKEN_WORD, OUTPUT_WORD, RETRIES_WORD, SLOT_WORDS, write_quantities

_TIMEOUTS = frozenset(
    {
        faults.UPSTREAM_TIMEOUT_CONNECT,
        faults.UPSTREAM_TIMEOUT_FIRST,
        faults.UPSTREAM_TIMEOUT_IDLE,
        faults.UPSTREAM_TIMEOUT_TOTAL,
    }
)

_OF_CLIENT = frozenset({faults.DEADLINE_EXCEEDED, faults.CONTENT_DENIED, faults.SUMMARY_CUT})
"""Faults of the client's own, after which what was generated is billed as if it had left: its deadline, an answer that was denied, and a
summary of a conversation that is too long for one."""

_BILLED_BY_DELIVERY = frozenset({Outcome.UPSTREAM_ERROR, Outcome.TIMEOUT})
"""Outcomes that bill what was delivered, and nothing if nothing was."""

_NONE: Final = UsageSource.NONE  # a member of an enumeration costs a call in the interpreter each time it is looked up
_Raw: Final = msgspec.Raw


class UsageRecord(Ending):
    """The usage record of one admitted request while it runs.

    `admit`: as it was written. `final`: None until it ended. `input_estimate`: tokens of input to record if the engine has not reported
    them and the outcome allows it; 0 for none. `guard`: checks the answer; None where nothing does.
    """

    __slots__ = (
        "_first_token_word",
        "_output",
        "_output_word",
        "_progress",
        "_request_id",
        "_sink",
        "_slot",
        "_used",
        "admit",
        "anomaly",
        "attempts",
        "deployment_id",
        "first_token_at",
        "guard",
        "input_estimate",
        "now_us",
        "source",
    )

    def __init__(self, request_id: str, admit: bytes, sink: UsageSink, now_us: Callable[[], int]) -> None:
        self._request_id = request_id
        self.admit = admit
        self._used = NOTHING
        self._output = 0
        self.source = _NONE
        self.anomaly: Anomaly | None = None
        self.input_estimate = 0
        self.deployment_id: str | None = None
        self.attempts = 0
        self.first_token_at: int | None = None
        self.guard: ChecksAnswer | None = None
        self.final = None
        self._sink = sink
        self.now_us = now_us
        self._progress = sink.progress
        self._slot = sink.admit(admit)
        self._output_word = self._slot * SLOT_WORDS + OUTPUT_WORD
        self._first_token_word = self._slot * SLOT_WORDS + FIRST_TOKEN_WORD

    def __aenter__(self) -> Waiter:
        return OVER

    def __aexit__(self, type: object, error: BaseException | None, traceback: object) -> Waiter:
        if self.final is not None:
            return OVER
        outcome, code = find_outcome(error)
        if self.guard is not None and self.guard.has_sent_nothing and outcome in _BILLED_BY_DELIVERY and self.deployment_id is not None:
            self.choose(self.deployment_id)  # what was held back to be checked was not delivered
        return self.finish(outcome, code)

    def attempt(self, deployment_id: str) -> None:
        """Record that another upstream receives the request; what an earlier one used is discarded."""
        self.attempts += 1
        if self.attempts > 1:
            self.choose(deployment_id)
            self._progress[self._slot * SLOT_WORDS + RETRIES_WORD] = self.attempts - 1
        else:
            self.deployment_id = deployment_id

    def choose(self, deployment_id: str) -> None:
        """Record the attempt at this deployment as the one that serves, and discard what other attempts used."""
        self.deployment_id = deployment_id
        self.anomaly = None
        self.input_estimate = 0
        write_quantities(self._progress, self._slot, NOTHING, self._used)
        self._used = NOTHING
        self._output = 0
        self.source = _NONE
        self.first_token_at = None
        self._progress[self._first_token_word] = 0

    def note(self, used: Quantities, source: UsageSource) -> None:
        """Note what is known to be used so far: kept where a crash cannot reach it, before the bytes that carry it go to the client."""
        write_quantities(self._progress, self._slot, used, self._used)
        self._used = used
        self._output = used.output
        self.source = source
        if self.first_token_at is None and (used.output or used.output_tokens):
            self.first_token_at = self._progress[self._first_token_word] = self.now_us()

    def advance(self, output: int) -> None:
        """More output than `note` last knew, all else as it was: what there is to say about most chunks of a stream."""
        self._output = output
        self._progress[self._output_word] = output
        if self.first_token_at is None and output:
            self.first_token_at = self._progress[self._first_token_word] = self.now_us()

    @property
    def used(self) -> Quantities:
        """Return what is known to be used so far."""
        used = self._used
        return used if used.output == self._output else msgspec.structs.replace(used, output=self._output)

    @property
    def input_tokens(self) -> int:
        """Return how many input tokens the engine has reported so far; 0 before its first report."""
        return self._used.input_tokens

    def checkpoint(self) -> None:
        """Make what is known so far durable with the next group commit, against a loss of power."""
        self._sink.checkpoint(self._request_id, self.used, self.attempts - 1)

    def finish(self, outcome: Outcome, error: str | None = None) -> Waiter:
        """Write FINAL; await it to know that it is durable. Raises Fault metering_unavailable then, if it never will be."""
        used, source = self.used, self.source
        if self.input_estimate and outcome in ESTIMATING:
            used, source = used.with_input_of(Quantities(self.input_estimate)), UsageSource.ESTIMATED
        self.final = final = Ended(
            _Raw(self.admit),
            outcome,
            used,
            source,
            self.now_us(),
            self.deployment_id,
            self.attempts,
            self.first_token_at,
            error,
            self.anomaly,
        )
        durable = ShieldedWaiter()
        self._sink.final(self._slot, encode(final), durable.resume)
        return durable


def meter(permit: Permit, sink: UsageSink, now_us: Callable[[], int]) -> UsageRecord:
    """Write ADMIT for the permitted call, and return its record. Raises Fault metering_unavailable or overloaded;
    then no ADMIT was written."""
    call: Call = permit.call
    request = call.request
    terms = call.grant.encoded_admit_suffixes.get((call.price.id, call.stream)) or _encode_terms(call)
    if call.sequences != call.prompts:
        terms = add_choices(terms, call.sequences // call.prompts)
    if call.named_budgets:
        terms = add_budgets(terms, call.named_budgets)
    record = UsageRecord(request.id, encode_admit(request.id, request.received_at, terms), sink, now_us)
    if call.guard is not None:
        record.guard = call.guard
    return record


def _encode_terms(call: Call) -> bytes:
    """Return what all of the caller's ADMITs for this model, endpoint and price say; cached in the grant, which has few prices. Encoding
    it for each request would cost 13 thousand instructions more (4 %)."""
    request, caller, grant = call.request, call.caller, call.grant
    admit = Admit(
        request_id="",
        admitted_at=0,
        organization_id=caller.organization.id,
        project_id=caller.project.id,
        key_id=caller.principal.id,
        model=call.model.id,
        endpoint=request.endpoint,
        stream=call.stream,
        price_version=call.price.id,
        price_hash=hash_price(call.price, grant.terms_valid_from),
        outcome_policy=OUTCOME_POLICY_CURRENT,
        service_tier=call.price.tier,
        test=caller.is_test,
    )
    terms = grant.encoded_admit_suffixes[call.price.id, call.stream] = encode_terms(admit)
    return terms


def find_amount(call: Call, final: Ended) -> int:
    """Return what a request that ended so costs, in pico of the organization's currency: nothing with a test key."""
    return 0 if call.caller.is_test else find_cost(OUTCOME_POLICY_CURRENT, call.request.endpoint, final, call.price.unit_prices)


def show_cost(call: Call, record: UsageRecord) -> bytes:
    """Return a header line that says what a request with a FINAL costs."""
    pico = 0 if record.final is None else find_amount(call, record.final)
    return f"x-tollway-cost: {format_amount(pico)} {call.caller.organization.currency}\r\n".encode()


def find_outcome(error: BaseException | None) -> tuple[Outcome, str | None]:
    """Return the outcome, and the error code if any, of a request that relay did not finish itself."""
    if isinstance(error, ClientGone):
        return Outcome.CLIENT_CANCELLED, None
    if isinstance(error, Fault):
        if error.kind in _OF_CLIENT:
            return Outcome.CLIENT_CANCELLED, error.kind.code
        return (Outcome.TIMEOUT if error.kind in _TIMEOUTS else Outcome.UPSTREAM_ERROR), error.kind.code
    return Outcome.UPSTREAM_ERROR, faults.INTERNAL.code
