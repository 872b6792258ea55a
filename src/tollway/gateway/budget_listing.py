"""The budgets that bind a caller, as a gateway shows them to it."""

from collections.abc import Sequence

from tollway.domain.money import format_amount
from tollway.domain.periods import INSTANT_MAX
from tollway.domain.snapshot import BudgetEntry
from tollway.gateway.budgets import BudgetAccount, Budgets


def describe_budgets(entries: Sequence[BudgetEntry], budgets: Budgets) -> list[dict[str, object]]:
    """Return the budgets that bind a caller, innermost level first, as this gateway knows them: amounts are null before it asked control.

    `spent`: by rated requests on all gateways; `left`: the limit less that; `available`: what this gateway may reserve at once; `held`: by
    its requests under way. `window_end_at`: Unix seconds at which the budget begins anew, null for one that never does. `binds`: of the
    budgets that are known, this one has the least left.
    """
    known = {each.entry.id: each for each in budgets.list_accounts(entries) if each.end_at is not None}
    least = min(known.values(), key=lambda each: each.limit_pico - each.spent_pico, default=None)
    return [_describe(each, known.get(each.id), least) for each in entries]


def _describe(entry: BudgetEntry, account: BudgetAccount | None, least: BudgetAccount | None) -> dict[str, object]:
    amounts: tuple[int | None, ...] = (None,) * 5
    window: tuple[int | None, ...] = (None,) * 2
    if account is not None and account.start_at is not None and account.end_at is not None:
        lease, left = account.lease, max(account.limit_pico - account.spent_pico, 0)
        amounts = (account.limit_pico, account.spent_pico, left, max(lease.available_pico, 0), lease.held_pico)
        window = (account.start_at // 1_000_000, None if account.end_at == INSTANT_MAX else account.end_at // 1_000_000)
    names = ("limit", "spent", "left", "available", "held")
    shown = {name: None if pico is None else format_amount(pico) for name, pico in zip(names, amounts, strict=True)}
    return {
        "object": "budget",
        "id": entry.id,
        "level": entry.level,
        "subject_id": entry.subject_id,
        "model": entry.model or None,
        "tag": entry.tag or None,
        "end_user": entry.end_user or None,
        "mode": entry.mode,
        **shown,
        "window_start_at": window[0],
        "window_end_at": window[1],
        "binds": account is not None and account is least,
    }
