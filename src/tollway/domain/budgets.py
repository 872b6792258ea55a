"""Budgets: how much an organization, a project, a key or an end user may spend in a window of time, and the rules by which that is never
exceeded.

Control owns a budget and grants parts of it to gateways as **leases**, each to one run (node and epoch) for one window. A gateway reserves
from its lease, in memory, the most that a request can cost (a **hold**) and replaces it by the real cost when the request ends. What was
spent is derived from rated events, which name the node and the epoch that held the lease, so both sides count the same:

    spent + what open leases still allow  <=  the limit

`extend_lease` is the one rule by which leases grow, `Lease` the one account of a gateway. Money is integer pico-currency of the
organization. docs/budgets.md explains the whole.
"""

import hashlib
import re
from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

import msgspec

from tollway.domain.billing_classes import BillingClass, Direction, OtherClasses, UnitPrices
from tollway.domain.catalog import find_group
from tollway.domain.credits import EVERYWHERE, CreditPlace
from tollway.domain.money import AMOUNT_PICO_MAX, CENT_PICO
from tollway.domain.periods import INSTANT_MAX, Bounds, days_of, month_of

THRESHOLDS_MAX = 10
"""Thresholds of one budget."""

SUBJECT_BUDGETS_MAX = 10
"""Active budgets of one key, project or organization that bind: a request is checked against all of them. As many more may only alert."""

SPEND_LIMIT = "spend_limit"
"""Name of the one budget of a project or organization that OpenAI's admin API shows as its spend limit."""

SPEND_ALERT = "spend_alert"
"""Name of the budgets that OpenAI's admin API shows as spend alerts."""

PREPAID_BUDGET = "prepaid"
"""Name of the budget that holds an organization to its credit."""

PLAN_BUDGET = "plan"
"""Name of the budget that an organization has by its plan."""

TAGS_MAX, TAG_KEY_CHARACTERS_MAX, TAG_VALUE_CHARACTERS_MAX = 16, 64, 512
"""Pairs in the `metadata` of one request, and the longest key and value, as OpenAI's API has them. Others are no tags."""

EACH_END_USER = "*"
"""In place of an end user: the budget is one of each end user, not of all together."""

END_USER_CHARACTERS_MAX = 512
"""Longest name of an end user that a budget can have."""

END_USERS_MAX = 100_000
"""End users whose spending one budget counts one by one. Further ones are granted nothing."""

THROTTLE_REQUESTS_MAX = 60_000
"""Most requests per minute that a spent budget lets through at each gateway."""

MONDAY = 0


END_USER_MARK = "."
"""Stands between the id of a budget and the digest of a part of it: of one end user, or of a place where credit with a scope is used."""

_END_USER_BUDGET = re.compile(r"[a-z]{2,8}_[0-9a-f]{32}\.[0-9a-f]{22}")


def name_end_user_budget(budget_id: str, end_user: str, key: bytes) -> str:
    """Return the id under which a budget of each end user counts one of them: its own, and a keyed hash (BLAKE2b, RFC 7693) of how
    requests name the end user. `key`: at most 64 bytes, the same at all gateways."""
    hashed = hashlib.blake2b(end_user.encode("utf-8", "surrogatepass"), digest_size=11, key=key)
    return f"{budget_id}{END_USER_MARK}{hashed.hexdigest()}"


def name_place_budget(budget_id: str, place: CreditPlace) -> str:
    """Return the id under which a prepaid budget counts the requests of one place: its own, and a hash (BLAKE2b, RFC 7693) of the place."""
    hashed = hashlib.blake2b(f"{place.project_id}/{place.model}".encode(), digest_size=11)
    return f"{budget_id}{END_USER_MARK}{hashed.hexdigest()}"


def find_budget_of_each(id: str) -> str | None:
    """Return the budget to which an id of `name_end_user_budget` or `name_place_budget` belongs; None for any other id."""
    return id.partition(END_USER_MARK)[0] if _END_USER_BUDGET.fullmatch(id) else None


class BudgetLevel(StrEnum):
    """The kind of thing whose spending a budget bounds, innermost first."""

    API_KEY = "api_key"
    PROJECT = "project"
    ORGANIZATION = "organization"


class BudgetWindow(StrEnum):
    """The time after which a budget begins anew, in the organization's time zone. Weeks begin on Monday; `total` never begins anew."""

    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    TOTAL = "total"


class BudgetMode(StrEnum):
    """The strength of a budget: a hard one is never overspent, a soft one by a stated bound, and an alert binds no request at all."""

    HARD = "hard"
    SOFT = "soft"
    ALERT = "alert"


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """A budget of one subject.

    `subject_id`: of the key, project or organization. `amount_pico`: at least 1, in `currency`, which is the organization's. `counts_from`:
    requests admitted before that instant are not counted. `thresholds`: percentages of the limit at which an alert is raised, once in each
    window for the same limit, in rising order. `is_operators`: only operators may change it. `model`: a model or a group of models
    (`domain.catalog.covers_model`) whose requests alone are counted; empty for all. `tag`: a key and its value
    in `metadata` (`format_tag`) of requests that alone are counted; empty for all.
    `fallback_model`: the model by which a request is served that this budget would refuse, where that one can be afforded; empty for none.
    `plan_id`: of the plan that the organization has it by; it changes and ends with the plan. `end_user`: the end user, as requests name
    it, whose requests alone are counted; EACH_END_USER where each end user has the budget by itself; empty for all requests together.
    `throttle_requests_per_minute`: requests that each gateway lets through in a minute once a soft budget is spent; 0 refuses them.
    `is_prepaid`: its limit is not its amount, but what the organization's credit allows (`domain.credits`). `place_project_id`: of the part
    of a prepaid budget that counts requests of one place (`name_place_budget`): its project, beside `model`; else empty.
    """

    id: str
    organization_id: str
    level: BudgetLevel
    subject_id: str
    name: str
    mode: BudgetMode
    window: BudgetWindow
    amount_pico: int
    currency: str
    thresholds: tuple[int, ...]
    is_operators: bool
    created_at: int
    counts_from: int
    archived_at: int | None = None
    model: str = ""
    tag: str = ""
    fallback_model: str = ""
    plan_id: str | None = None
    end_user: str = ""
    throttle_requests_per_minute: int = 0
    is_prepaid: bool = False
    place_project_id: str = ""

    @property
    def place(self) -> CreditPlace:
        """Return where a prepaid budget, or a part of one, counts requests."""
        return CreditPlace(self.place_project_id, self.model) if self.place_project_id else EVERYWHERE

    def at_place(self, place: CreditPlace) -> "Budget":
        """Return the part of a prepaid budget that counts the requests of a place."""
        id = name_place_budget(self.id, place)
        return msgspec.structs.replace(self, id=id, model=place.model, place_project_id=place.project_id)

    @property
    def binds(self) -> bool:
        """Return whether requests must fit into it."""
        return self.mode is not BudgetMode.ALERT

    @property
    def is_partial(self) -> bool:
        """Return whether it counts only a part of the requests of its subject. Then records of requests name it, so that control counts
        the very requests that a gateway held to it, whatever has changed since."""
        return self.model != "" or self.tag != "" or self.end_user != ""

    @property
    def is_of_each(self) -> bool:
        """Return whether each end user has it by itself: its windows and leases are those of its end users (`name_end_user_budget`)."""
        return self.end_user == EACH_END_USER and END_USER_MARK not in self.id

    @property
    def concerns_gateways(self) -> bool:
        """Return whether gateways must know of it: to hold requests to it, or to name it in their records."""
        return self.binds or self.is_partial


class BudgetRaise(msgspec.Struct, frozen=True, kw_only=True):
    """A temporary raise of a budget, from `starts_at` (inclusive) to `ends_at` (exclusive)."""

    id: str
    budget_id: str
    amount_pico: int
    starts_at: int
    ends_at: int
    created_at: int


class Limit(msgspec.Struct, frozen=True):
    """The amount that may be spent, and the instant (exclusive) until which that is certain."""

    pico: int
    until_at: int


def find_limit(budget: Budget, raises: Sequence[BudgetRaise], window: Bounds, at: int) -> Limit:
    """Return the limit of a budget at instant `at` of a window: its amount and the raises that are in force."""
    pico, until_at = budget.amount_pico, window.end_at
    for each in raises:
        if each.starts_at <= at < each.ends_at:
            pico += each.amount_pico
            until_at = min(until_at, each.ends_at)
    return Limit(pico, until_at)


def cut_window(window: BudgetWindow, at: int, time_zone: str, existing: Sequence[Bounds]) -> Bounds:
    """Return the window that contains instant `at`: an existing one, or one that is cut by the calendar and overlaps none of them.

    `existing`: windows of the budget, which stay as they are when the time zone of the organization changes. Raises ValueError if the
    zone is unknown.
    """
    for each in existing:
        if each.start_at <= at < each.end_at:
            return each
    bounds = _find_calendar_bounds(window, at, time_zone)
    start_at = max((each.end_at for each in existing if each.end_at <= at), default=bounds.start_at)
    end_at = min((each.start_at for each in existing if each.start_at > at), default=bounds.end_at)
    return Bounds(max(bounds.start_at, start_at), min(bounds.end_at, end_at))


def _find_calendar_bounds(window: BudgetWindow, at: int, time_zone: str) -> Bounds:
    match window:
        case BudgetWindow.DAY:
            return days_of(at, time_zone, 1)
        case BudgetWindow.WEEK:
            return days_of(at, time_zone, 7, MONDAY)
        case BudgetWindow.MONTH:
            return month_of(at, time_zone)
        case BudgetWindow.TOTAL:
            return Bounds(0, INSTANT_MAX)


# ---- What a request can cost -------------------------------------------------------------------------------------------


def find_fixed_cost(prices: UnitPrices, input_tokens_max: int, images: int = 0, media: OtherClasses | None = None) -> int:
    """Return the most that a request can cost before its first token of output: its input in the dearest class, the request itself, the
    images that it asks for, and its `media` (seconds, characters and pixels)."""
    fixed = input_tokens_max * prices.highest_of(Direction.INPUT) + prices.request
    if images:
        fixed += images * prices.get(BillingClass.IMAGES)
    return fixed if media is None else fixed + UnitPrices(other=media).cost(prices)


def find_output_price(prices: UnitPrices) -> int:
    """Return the most that one token of output can cost: as an answer or as reasoning."""
    return prices.highest_of(Direction.OUTPUT)


def find_affordable_output(prices: UnitPrices, fixed_pico: int, available_pico: int, tokens_max: int) -> int:
    """Return how many tokens of output `available_pico` buys beside the fixed cost, at most `tokens_max`; -1 if not even that."""
    left = available_pico - fixed_pico
    if left < 0:
        return -1
    price = find_output_price(prices)
    return tokens_max if price == 0 else min(left // price, tokens_max)


# ---- Leases ------------------------------------------------------------------------------------------------------------


class LeaseRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Statement of a gateway run about its lease of one budget, and its wish.

    `at`: an instant of the window. `current_pico`: what was granted in all, less what was given back; used and held amounts are part of it.
    None: the run has forgotten its account of this window, in which nothing was left, and asks what it had used.
    `need_pico`: more that requests wait for. `target_pico`: more that it would like to have for requests to come. `project_id`, `model`:
    the place of a part of a prepaid budget; empty for any other budget.
    """

    budget_id: str
    at: int
    current_pico: int | None
    need_pico: int = 0
    target_pico: int = 0
    project_id: str = ""
    model: str = ""


class LeaseGrant(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a `LeaseRequest`: the lease of the window from `start_at` (inclusive) to `end_at` (exclusive).

    `granted_pico`: in all. `until_at`: when it must be asked for anew, because the limit may fall then. `limit_pico`, `spent_pico`: of the
    budget, over all gateways. `free_pico`: what is neither spent nor leased after this grant. `exists`: False if there is no such budget.
    `is_recalled`: all that was granted is used, and nothing was added: the answer to a request without `current_pico`.
    """

    budget_id: str
    start_at: int
    end_at: int
    until_at: int
    granted_pico: int
    limit_pico: int
    spent_pico: int
    free_pico: int
    exists: bool = True
    is_recalled: bool = False


def extend_lease(free_pico: int, need_pico: int, target_pico: int, holders: int) -> int:
    """Return by how much a lease grows.

    `free_pico`: what is neither spent nor leased, possibly negative. `need_pico`: what requests wait for; it is granted as far as it is
    there. `target_pico`: what the gateway would like to have for requests to come; beyond the need it gets at most half of its share
    among `holders` gateways (at least 1), so that the last gateway to ask still finds something.
    """
    if free_pico <= 0:
        return 0
    need = min(need_pico, free_pico)
    comfort = min(max(target_pico - need, 0), (free_pico - need) // (2 * holders))
    return need + comfort


class Lease:
    """The account of one gateway run for one window of a budget: `granted_pico` by control in all, of which `used_pico` were spent and
    `held_pico` are reserved by requests under way."""

    __slots__ = ("granted_pico", "held_pico", "used_pico")

    def __init__(self) -> None:
        self.granted_pico = 0
        self.used_pico = 0
        self.held_pico = 0

    @property
    def available_pico(self) -> int:
        """Return what may still be reserved; negative if the lease was overdrawn."""
        return self.granted_pico - self.used_pico - self.held_pico

    def shrink(self, keep_pico: int) -> None:
        """Give back what is available beyond `keep_pico`. From here on it cannot be reserved, whether or not control hears of it."""
        surplus = self.available_pico - max(keep_pico, 0)
        if surplus > 0:
            self.granted_pico -= surplus


class BudgetStanding(msgspec.Struct, frozen=True, kw_only=True):
    """Standing of a budget in one window: `spent_pico` by rated events, `leased_pico` what gateways may still spend of their leases."""

    budget: Budget
    window: Bounds
    limit: Limit
    spent_pico: int
    leased_pico: int

    @property
    def left_pico(self) -> int:
        """Return what is not spent; 0 if it is overspent. Of a budget of each end user: what one has that has spent nothing."""
        return self.limit.pico if self.budget.is_of_each else max(self.limit.pico - self.spent_pico, 0)


def find_least_left(standings: Sequence[BudgetStanding]) -> BudgetStanding | None:
    """Return the budget of which least is left, which ends spending first; None of none. Those of each end user are left out."""
    return min((each for each in standings if not each.budget.is_of_each), key=lambda each: each.left_pico, default=None)


class BudgetAlert(msgspec.Struct, frozen=True, kw_only=True):
    """The record that spending reached a threshold of a budget, at most once in each window for the same limit."""

    budget_id: str
    window_start_at: int
    threshold: int
    spent_pico: int
    limit_pico: int
    crossed_at: int


def check_amount(pico: int) -> str | None:
    """Return what is wrong with the amount of a budget or a raise; None if nothing is."""
    if not 0 < pico <= AMOUNT_PICO_MAX:
        return "it must be more than zero and at most 9,223,372 currency units"
    return None


def find_reached(thresholds: Sequence[int], spent_pico: int, limit_pico: int) -> list[int]:
    """Return the thresholds, in percent of the limit, that spending has reached."""
    return [each for each in thresholds if spent_pico * 100 >= each * limit_pico]


def check_thresholds(thresholds: Sequence[int]) -> str | None:
    """Return what is wrong with thresholds; None if nothing is."""
    if len(thresholds) > THRESHOLDS_MAX:
        return f"there may be at most {THRESHOLDS_MAX}"
    if any(not 1 <= each <= 1000 for each in thresholds) or list(thresholds) != sorted(set(thresholds)):
        return "they must be different percentages between 1 and 1000, in rising order"
    return None


def format_tag(key: str, value: str) -> str:
    """Return a key and its value in `metadata` as budgets name them."""
    return f"{key}={value}"


def check_tag(tag: str) -> str | None:
    """Return why no request can carry a tag (`format_tag`); None if one can."""
    key, equals, value = tag.partition("=")
    if not equals or not 1 <= len(key) <= TAG_KEY_CHARACTERS_MAX or len(value) > TAG_VALUE_CHARACTERS_MAX or not tag.isprintable():
        return (
            f"no request can carry it: write KEY=VALUE, with a key of 1 to {TAG_KEY_CHARACTERS_MAX} and a value of at most"
            f" {TAG_VALUE_CHARACTERS_MAX} printable characters, as they stand in `metadata`"
        )
    return None


def check_end_user(end_user: str) -> str | None:
    """Return why no request can name this end user; None if one can."""
    if not 1 <= len(end_user) <= END_USER_CHARACTERS_MAX or not end_user.isprintable():
        return f"no request can name it: write 1 to {END_USER_CHARACTERS_MAX} printable characters, or '{EACH_END_USER}' for each end user"
    return None


class TermsProblem(NamedTuple):
    """A field of a budget whose value it cannot have, and the reason as a clause."""

    field: str
    reason: str


def find_terms_problem(
    name: str,
    mode: BudgetMode,
    window: BudgetWindow,
    amount_pico: int,
    thresholds: Sequence[int],
    model: str = "",
    tag: str = "",
    end_user: str = "",
) -> TermsProblem | None:
    """Return what is wrong with the terms of a budget; None if nothing is.

    Budgets named `SPEND_LIMIT` and `SPEND_ALERT` must be what OpenAI's shapes can express: one month, whole hundredths of the currency
    unit, hard or an alert at the amount itself.
    """
    problem = check_amount(amount_pico)
    if problem is not None:
        return TermsProblem("amount", problem)
    problem = check_thresholds(thresholds)
    if problem is not None:
        return TermsProblem("thresholds", problem)
    if mode is BudgetMode.ALERT and not thresholds:
        return TermsProblem("thresholds", "a budget of mode 'alert' needs at least one")
    problem = check_tag(tag) if tag else None
    if problem is not None:
        return TermsProblem("tag", problem)
    problem = check_end_user(end_user) if end_user else None
    if problem is not None:
        return TermsProblem("end_user", problem)
    if end_user == EACH_END_USER and mode is BudgetMode.ALERT:
        return TermsProblem("end_user", "a budget of each end user binds requests: it is 'hard' or 'soft'")
    if name not in (SPEND_LIMIT, SPEND_ALERT):
        return None
    if model or tag or end_user:
        field = "model" if model else "tag" if tag else "end_user"
        return TermsProblem(field, f"a budget named '{name}' counts all requests")
    return _find_shape_problem(name, mode, window, amount_pico, thresholds)


def find_problem(budget: Budget) -> TermsProblem | None:
    """Return what is wrong with the terms of a budget; None if nothing is."""
    terms = (budget.name, budget.mode, budget.window, budget.amount_pico, budget.thresholds)
    return (
        find_terms_problem(*terms, budget.model, budget.tag, budget.end_user)
        or find_fallback_problem(budget.mode, budget.model, budget.fallback_model)
        or find_throttle_problem(budget.mode, budget.fallback_model, budget.throttle_requests_per_minute)
    )


def find_fallback_problem(mode: BudgetMode, model: str, fallback_model: str) -> TermsProblem | None:
    """Return what is wrong with the model to which requests fall back; None if nothing is."""
    if fallback_model and mode is BudgetMode.ALERT:
        return TermsProblem("fallback_model", "a budget of mode 'alert' refuses no request")
    if fallback_model and (fallback_model == model or find_group(fallback_model) is not None):
        return TermsProblem("fallback_model", "it must be another model, and no group of models")
    return None


def find_throttle_problem(mode: BudgetMode, fallback_model: str, requests_per_minute: int) -> TermsProblem | None:
    """Return what is wrong with the rate to which a spent budget throttles requests (0: it does not); None if nothing is."""
    field = "throttle_requests_per_minute"
    if not 0 <= requests_per_minute <= THROTTLE_REQUESTS_MAX:
        return TermsProblem(field, f"it must be from 1 to {THROTTLE_REQUESTS_MAX:,}")
    if requests_per_minute and mode is not BudgetMode.SOFT:
        return TermsProblem(field, "requests beyond the amount are let through by a budget of mode 'soft' alone")
    if requests_per_minute and fallback_model:
        return TermsProblem(field, "a spent budget falls back to another model or throttles requests, not both")
    return None


def _find_shape_problem(
    name: str, mode: BudgetMode, window: BudgetWindow, amount_pico: int, thresholds: Sequence[int]
) -> TermsProblem | None:
    expected = BudgetMode.HARD if name == SPEND_LIMIT else BudgetMode.ALERT
    if mode is not expected:
        return TermsProblem("mode", f"a budget named '{name}' is of mode '{expected}'")
    if window is not BudgetWindow.MONTH:
        return TermsProblem("window", f"a budget named '{name}' is of a month")
    if amount_pico % CENT_PICO:
        return TermsProblem("amount", f"a budget named '{name}' has at most two decimals")
    if name == SPEND_ALERT and tuple(thresholds) != (100,):
        return TermsProblem("thresholds", f"a budget named '{name}' has 100 as its only one")
    return None
