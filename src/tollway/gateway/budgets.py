"""Budgets in the memory of one gateway run: what it was granted, what its requests hold and have used.

Theory of operation. Each budget that requests of this run were bound by has an `Account` with the run's lease of the present window.
A request reserves the most that it can cost in all accounts that bind it, or in none, before it is metered; when it ends, the reservation
is replaced by its real cost. That touches memory only. `link.leases` keeps the leases ahead of the need: it takes `next_request` to
control and brings the answer to `apply`. A request that finds too little available waits for the next answer, for LEASE_WAIT_SECONDS at
most; then it gets what there is, as fewer tokens of output, or is refused.

While control is away, requests spend what is leased; after that those with a hard budget are refused, those with only soft ones admitted.

A lease is kept as large as twice the most that was held lately, which halves with each request to control, so that idle gateways give
everything back. Where control has little left, only what is held is kept, and each request asks for what it needs.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from tollway.domain.budgets import (
    BudgetMode,
    Lease,
    LeaseGrant,
    LeaseRequest,
    find_affordable_output,
    find_fixed_cost,
    find_output_price,
)
from tollway.domain.faults import BUDGET_EXCEEDED, BUDGET_UNAVAILABLE, COST_EXCEEDED, OVERLOADED, Fault
from tollway.domain.money import format_amount
from tollway.domain.snapshot import BudgetEntry
from tollway.domain.usage import OUTCOME_POLICY_CURRENT, Ended, billed_by
from tollway.gateway.driver import OVER, Waiter
from tollway.gateway.request import Call

OUTPUT_TOKENS_UNBOUNDED = 16_384
"""Output of each sequence that a request may have under a hard budget if neither it nor its model bounds it."""

OUTPUT_TOKENS_USEFUL = 16
"""Least output of each sequence to which a request is shortened; where not even that much can be paid, it is refused."""

OUTPUT_TOKENS_EXPECTED = 512
"""Output of each sequence that is reserved in a soft budget, as far as the request may have so much."""

INPUT_BYTES_PER_TOKEN = 3
"""Bytes of a body for a token that is reserved in a soft budget."""

LEASE_WAIT_SECONDS = 2.0
"""Longest wait of a request for a larger lease: many times what control needs, below what a client notices as an outage."""

DECAY_US = 500_000
"""Time in which the most that was held counts half."""

WAITING_MAX = 2_000
"""Requests that wait for a larger lease; more are refused."""

REQUEST_LEASES_MAX = 256
"""Leases in one request to control."""


class Account:
    """The lease of one budget in one window. `entry` is the budget's; `start_at`, `end_at` are the window's, None before the first answer.

    `asked_at`: an instant of the window. `until_at`: from then on nothing may be reserved before control was asked again. `is_scarce`:
    control had little left. `spent_pico`, `limit_pico`, `free_pico`: of the last answer. `peak_pico`: most that was held at once, which
    decays. `need_pico`: of requests that wait.
    """

    __slots__ = (
        "asked_at",
        "end_at",
        "entry",
        "free_pico",
        "is_scarce",
        "lease",
        "limit_pico",
        "need_pico",
        "peak_pico",
        "spent_pico",
        "start_at",
        "until_at",
    )

    def __init__(self, entry: BudgetEntry, asked_at: int) -> None:
        self.entry = entry
        self.asked_at = asked_at
        self.start_at: int | None = None
        self.end_at: int | None = None
        self.until_at = 0
        self.lease = Lease()
        self.is_scarce = False
        self.spent_pico = 0
        self.limit_pico = 0
        self.free_pico = 0
        self.peak_pico = 0
        self.need_pico = 0

    def is_over(self, now_us: int) -> bool:
        """Return whether the window has ended."""
        return self.end_at is not None and now_us >= self.end_at

    def find_available(self, now_us: int) -> int:
        """Return what may be reserved at this instant."""
        return self.lease.available_pico if now_us < self.until_at else 0

    def find_goal(self) -> int:
        """Return what should be available for requests to come."""
        return 0 if self.is_scarce else max(2 * self.peak_pico - self.lease.held_pico, 0)


class BudgetHold:
    """The reservation of one request: in the accounts of `amounts`, from `Budgets.reserve` to `Budgets.settle`.

    `waiter` is resumed once the reservation was made or refused. `asked_in`: the request to control whose answer decides it.
    """

    __slots__ = ("amounts", "asked_in", "call", "entries", "is_ended", "needs", "timer", "waiter")

    def __init__(self, call: Call, entries: Sequence[BudgetEntry]) -> None:
        self.call = call
        self.entries = entries
        self.amounts: list[tuple[Account, int]] = []
        self.needs: list[tuple[Account, int]] = []
        self.asked_in = 0
        self.waiter: Waiter = OVER
        self.timer: asyncio.TimerHandle | None = None
        self.is_ended = False


class Budgets:
    """All accounts of one gateway run. Used from one event loop. `wake` is called when control should be asked."""

    def __init__(self, now_us: Callable[[], int]) -> None:
        self._now_us = now_us
        self.wake: Callable[[], None] = _do_nothing
        self.is_linked = False
        self._accounts: dict[str, Account] = {}
        self._ended: list[Account] = []
        self._waiting: deque[BudgetHold] = deque()
        self._sequence = 0
        self._asked: list[Account] = []
        self._decayed_at = 0

    # ---- Requests ------------------------------------------------------------------------------------------------------

    def reserve(self, call: Call, entries: Sequence[BudgetEntry], max_cost_pico: int | None) -> BudgetHold:
        """Return the reservation of a call, in the budgets `entries` that bind it. Await its `waiter`; end it by `settle` in any case.

        The call's output is lowered to what `max_cost_pico` and the budgets buy. Raises Fault: insufficient_quota, budget_unavailable,
        max_cost_exceeded or overloaded; here, or from the waiter.
        """
        hold = BudgetHold(call, entries)
        if max_cost_pico is not None and not call.caller.is_test:
            _hold_to_max_cost(call, max_cost_pico)
        if not entries or self._try_full(hold):
            return hold
        if len(self._waiting) >= WAITING_MAX:
            raise Fault(OVERLOADED)
        if not self.is_linked:
            self._decide(hold, is_answered=False)
            return hold
        hold.asked_in = self._sequence + 1
        hold.waiter = Waiter()
        hold.timer = asyncio.get_running_loop().call_later(LEASE_WAIT_SECONDS, self._give_up, hold)
        hold.needs = self._list_needs(hold)
        for account, pico in hold.needs:
            account.need_pico += pico
        self._waiting.append(hold)
        self.wake()
        return hold

    def settle(self, hold: BudgetHold, final: Ended | None) -> None:
        """End a reservation: nothing of it is held any more, and what the request costs, by its FINAL (None: nothing), is used."""
        if hold.is_ended:
            return
        hold.is_ended = True
        if hold.timer is not None:
            hold.timer.cancel()
            hold.timer = None
        if hold.needs:
            self._forget_needs(hold)
            self._waiting.remove(hold)
        if not hold.amounts:
            return
        call = hold.call
        pico = 0
        if final is not None:
            pico = billed_by(OUTCOME_POLICY_CURRENT, call.request.endpoint, final).times(call.price.unit_prices).total
        is_short = False
        for account, held in hold.amounts:
            account.lease.held_pico -= held
            account.lease.used_pico += pico
            is_short = is_short or account.is_scarce
        hold.amounts = []
        if self._waiting:
            self._serve_waiting(self._sequence, is_answered=None)
        if is_short:
            self.wake()

    def _find_account(self, entry: BudgetEntry, now_us: int) -> Account:
        account = self._accounts.get(entry.id)
        if account is None or account.is_over(now_us):
            if account is not None:
                self._ended.append(account)
            account = self._accounts[entry.id] = Account(entry, now_us)
        elif account.start_at is not None and now_us < account.start_at:  # it waited over the end of its window
            return next((each for each in self._ended if each.entry.id == entry.id and each.end_at == account.start_at), account)
        return account

    def _try_full(self, hold: BudgetHold) -> bool:
        """Reserve the most that the call can cost, or nothing."""
        now_us = hold.call.request.received_at
        amounts = [(self._find_account(each, now_us), _find_cost(hold.call, each)) for each in hold.entries]
        for account, pico in amounts:
            if account.find_available(now_us) < pico:
                return False
        self._take(hold, amounts)
        return True

    def _take(self, hold: BudgetHold, amounts: list[tuple[Account, int]]) -> None:
        hold.amounts = amounts
        for account, pico in amounts:
            lease = account.lease
            lease.held_pico += pico
            if lease.held_pico > account.peak_pico:
                account.peak_pico = lease.held_pico
            if 2 * lease.available_pico < account.find_goal():
                self.wake()

    def _list_needs(self, hold: BudgetHold) -> list[tuple[Account, int]]:
        now_us = hold.call.request.received_at
        return [(self._find_account(each, now_us), _find_cost(hold.call, each)) for each in hold.entries]

    def _forget_needs(self, hold: BudgetHold) -> None:
        for account, pico in hold.needs:
            account.need_pico -= pico
        hold.needs = []

    def _give_up(self, hold: BudgetHold) -> None:
        """Decide a request that has waited for too long."""
        if hold.needs:
            self._waiting.remove(hold)
            self._finish(hold, is_answered=False)

    def _serve_waiting(self, sequence: int, *, is_answered: bool | None) -> None:
        """Decide requests that wait for the answer to request `sequence` or an earlier one; those for which there is enough, in any case.

        `is_answered`: whether control has answered; None if it was not asked, so that no request is refused yet.
        """
        waiting, self._waiting = self._waiting, deque()
        left: deque[BudgetHold] = deque()
        ready: list[BudgetHold] = []
        for hold in waiting:
            if self._try_full(hold):
                self._forget_needs(hold)
                ready.append(hold)
            elif is_answered is None or hold.asked_in > sequence or (is_answered and not self._was_asked(hold)):
                left.append(hold)
            else:
                ready.append(hold)
        left.extend(self._waiting)
        self._waiting = left
        for hold in ready:
            if hold.amounts:
                self._resume(hold, None)
            else:
                self._finish(hold, is_answered=is_answered is True)

    def _was_asked(self, hold: BudgetHold) -> bool:
        """Return whether the latest request to control asked for all that `hold` needs."""
        return len(self._asked) < REQUEST_LEASES_MAX or all(account in self._asked for account, _ in hold.needs)

    def _finish(self, hold: BudgetHold, *, is_answered: bool) -> None:
        """Decide a request that no longer waits."""
        self._forget_needs(hold)
        try:
            self._decide(hold, is_answered=is_answered)
        except Fault as fault:
            self._resume(hold, fault)
        else:
            self._resume(hold, None)

    def _resume(self, hold: BudgetHold, fault: Fault | None) -> None:
        if hold.timer is not None:
            hold.timer.cancel()
            hold.timer = None
        hold.waiter.resume(fault)

    def _decide(self, hold: BudgetHold, *, is_answered: bool) -> None:
        """Reserve what there is, with the call's output lowered to it. Raises Fault if that is too little."""
        call = hold.call
        now_us = call.request.received_at
        accounts = [self._find_account(each, now_us) for each in hold.entries]
        for account in accounts:
            available = account.find_available(now_us)
            if account.entry.mode is BudgetMode.SOFT:
                if is_answered and available < _find_cost(call, account.entry):
                    raise _refuse(call, account, available)
            elif not _lower_output(call, available):
                raise _refuse(call, account, available) if is_answered else Fault(BUDGET_UNAVAILABLE, retry_after_seconds=1)
        self._take(hold, [(account, _find_cost(call, account.entry)) for account in accounts])

    # ---- Leases --------------------------------------------------------------------------------------------------------

    def next_request(self) -> tuple[int, list[LeaseRequest]]:
        """Return what to ask control, with its number; an empty list if there is nothing to ask. What is stated as given back is no longer
        reserved by anyone, whatever becomes of the message."""
        now_us = self._now_us()
        asked: list[Account] = []
        requests: list[LeaseRequest] = []
        if now_us - self._decayed_at >= DECAY_US:
            self._decayed_at = now_us
            for account in self._accounts.values():
                account.peak_pico = max(account.peak_pico // 2, account.lease.held_pico)
        accounts = sorted([*self._ended, *self._accounts.values()], key=lambda each: each.need_pico == 0)
        for account in accounts:
            if len(asked) >= REQUEST_LEASES_MAX:
                break
            request = _find_request(account, now_us)
            if request is not None:
                asked.append(account)
                requests.append(request)
        self._ended = [each for each in self._ended if each.lease.held_pico or each in asked]
        self._sequence += 1
        self._asked = asked
        return self._sequence, requests

    def apply(self, sequence: int, grants: Sequence[LeaseGrant]) -> None:
        """Take over control's answer to request `sequence`, which must be the latest."""
        if sequence != self._sequence:
            return
        self.is_linked = True
        for grant in grants:
            account = next((each for each in self._asked if _is_of(each, grant)), None)
            if account is None:
                continue
            if not grant.exists:
                self._accounts.pop(grant.budget_id, None)
                continue
            account.start_at, account.end_at, account.until_at = grant.start_at, grant.end_at, grant.until_at
            account.lease.granted_pico = grant.granted_pico
            account.limit_pico, account.spent_pico, account.free_pico = grant.limit_pico, grant.spent_pico, grant.free_pico
            account.is_scarce = grant.free_pico <= account.lease.held_pico + 2 * account.peak_pico
        self._serve_waiting(sequence, is_answered=True)

    def fail(self, sequence: int) -> None:
        """Control did not answer request `sequence`."""
        if sequence == self._sequence:
            self.is_linked = False
            self._serve_waiting(sequence, is_answered=False)

    def is_asking(self) -> bool:
        """Return whether a request waits for an answer of control."""
        return bool(self._waiting)

    # ---- The snapshot --------------------------------------------------------------------------------------------------

    def change(self, budget_id: str, entry: BudgetEntry | None) -> None:
        """Take note that a budget changed or ended (None): nothing more is reserved before control was asked again."""
        account = self._accounts.get(budget_id)
        if account is None:
            return
        if entry is None:
            del self._accounts[budget_id]
        else:
            account.entry = entry
            account.until_at = 0
            self.wake()

    def change_all(self, entries: Mapping[str, BudgetEntry]) -> None:
        """Take note of a whole snapshot."""
        for budget_id in list(self._accounts):
            self.change(budget_id, entries.get(budget_id))

    def list_accounts(self, entries: Sequence[BudgetEntry]) -> list[Account]:
        """Return the accounts of these budgets, as far as this run has them."""
        return [self._accounts[each.id] for each in entries if each.id in self._accounts]


def describe_budgets(entries: Sequence[BudgetEntry], budgets: Budgets) -> list[dict[str, object]]:
    """Return the budgets that bind a caller, innermost level first, as this gateway knows them: amounts are null before it asked control.

    `spent`: by rated requests on all gateways; `available`: what this gateway may reserve at once; `held`: by its requests under way.
    """
    known = {each.entry.id: each for each in budgets.list_accounts(entries)}
    found: list[dict[str, object]] = []
    for entry in entries:
        account = known.get(entry.id)
        amounts: tuple[int | None, ...] = (None,) * 4
        if account is not None and account.end_at is not None:
            lease = account.lease
            amounts = (account.limit_pico, account.spent_pico, max(lease.available_pico, 0), lease.held_pico)
        names = ("limit", "spent", "available", "held")
        shown = {name: None if pico is None else format_amount(pico) for name, pico in zip(names, amounts, strict=True)}
        found.append(
            {"object": "budget", "id": entry.id, "level": entry.level, "subject_id": entry.subject_id, "mode": entry.mode, **shown}
        )
    return found


def _do_nothing() -> None: ...


def _is_of(account: Account, grant: LeaseGrant) -> bool:
    if account.entry.id != grant.budget_id:
        return False
    if account.start_at is None:
        return not grant.exists or grant.start_at <= account.asked_at < grant.end_at
    return account.start_at == grant.start_at


def _find_request(account: Account, now_us: int) -> LeaseRequest | None:
    """Return what to say of an account, None if nothing changes. It gives back what it does not keep."""
    lease = account.lease
    is_over = account.is_over(now_us)
    must_ask = account.until_at <= now_us and not is_over and (account.need_pico > 0 or lease.granted_pico > lease.used_pico)
    keep = 0 if is_over or account.until_at <= now_us else account.find_goal()
    before = lease.granted_pico
    lease.shrink(keep)
    wanted = 0 if is_over else max(keep - lease.available_pico, 0)
    need = max(account.need_pico - max(lease.available_pico, 0), 0)
    if lease.available_pico < 0:
        need += -lease.available_pico
    if not (must_ask or need or wanted or lease.granted_pico != before):
        return None
    at = account.asked_at if account.start_at is None else account.start_at
    return LeaseRequest(
        budget_id=account.entry.id,
        at=at,
        current_pico=lease.granted_pico,
        need_pico=0 if is_over else need,
        target_pico=need + wanted,
    )


# ---- Costs -------------------------------------------------------------------------------------------------------------


def _find_output_max(call: Call) -> int:
    """Return the most output that the call can have, of all sequences together."""
    most = call.output_tokens_max
    return OUTPUT_TOKENS_UNBOUNDED * call.sequences if most is None else most


def _find_cost(call: Call, entry: BudgetEntry) -> int:
    """Return what a call reserves in a budget: the most that it can cost in a hard one, what is to be expected in a soft one."""
    prices = call.price.unit_prices
    input_tokens, output_tokens = call.input_tokens_max, _find_output_max(call)
    if entry.mode is BudgetMode.SOFT:
        input_tokens = min(input_tokens, call.prompt_bytes // INPUT_BYTES_PER_TOKEN + 1)
        output_tokens = min(output_tokens, OUTPUT_TOKENS_EXPECTED * call.sequences)
    return find_fixed_cost(prices, input_tokens) + output_tokens * find_output_price(prices)


def _lower_output(call: Call, available_pico: int) -> bool:
    """Lower the output of a call to what `available_pico` buys; False, and nothing is changed, if that is too little to be useful."""
    most = _find_output_max(call)
    affordable = find_affordable_output(call.price.unit_prices, call.input_tokens_max, available_pico, most)
    if affordable == most:
        if call.output_tokens_max is None:
            call.lower_output(OUTPUT_TOKENS_UNBOUNDED)
        return True
    each = affordable // call.sequences
    if each < min(OUTPUT_TOKENS_USEFUL, most // call.sequences):
        return False
    call.lower_output(each)
    return True


def _hold_to_max_cost(call: Call, max_cost_pico: int) -> None:
    if not _lower_output(call, max_cost_pico):
        least = _find_least_cost(call)
        currency = call.caller.organization.currency
        raise Fault(
            COST_EXCEEDED,
            message=f"The request can cost {format_amount(least)} {currency} or more, above the most that it allows"
            f" ({format_amount(max_cost_pico)} {currency}).",
        )


def _find_least_cost(call: Call) -> int:
    """Return what the call must be able to cost to be admitted: its input, and a useful part of its output."""
    prices = call.price.unit_prices
    useful = min(OUTPUT_TOKENS_USEFUL * call.sequences, _find_output_max(call))
    return find_fixed_cost(prices, call.input_tokens_max) + useful * find_output_price(prices)


def _refuse(call: Call, account: Account, available_pico: int) -> Fault:
    """Return the refusal of a call by a budget: which one, what is left of it, and what is missing."""
    entry = account.entry
    currency = call.caller.organization.currency
    available = max(available_pico, 0)
    least = _find_least_cost(call) if entry.mode is BudgetMode.HARD else _find_cost(call, entry)
    level = entry.level.value.replace("api_key", "API key")
    message = (
        f"You exceeded your current quota: the budget {entry.id} of {level} {entry.subject_id} is"
        f" {format_amount(account.limit_pico)} {currency}, of which {format_amount(available)} can be used now;"
        f" this request may cost {format_amount(least)} {currency}, {format_amount(max(least - available, 0))} more."
    )
    is_spent = account.limit_pico - account.spent_pico < least
    return Fault(BUDGET_EXCEEDED, message=message, headers=b"x-should-retry: false\r\n" if is_spent else b"")
