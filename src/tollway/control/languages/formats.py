"""Numbers and money as a language writes them. Money is exact: from decimal strings or pico, never through a float."""

import functools
from collections.abc import Callable
from decimal import Decimal

from babel import numbers
from markupsafe import Markup, escape

from tollway.domain import money
from tollway.domain.currencies import CURRENCIES

DECIMALS_MAX = 6
"""Decimals of an amount that would be nothing in the currency's smallest unit: what a request costs."""

DASH = "–"
"""Stands where there is no value."""


def format_number(language: str, value: int | None) -> str:
    """Return a whole number, grouped."""
    return DASH if value is None else f"{value:,}".translate(_read_separators(language))


def format_basis_points(language: str, value: int | None) -> str:
    """Return a share in percent, from basis points."""
    return DASH if value is None else numbers.format_decimal(Decimal(value).scaleb(-2), format="#,##0.00", locale=language)


def format_compact(language: str, value: int) -> str:
    """Return a number in three digits or fewer with its magnitude, as for an axis."""
    return numbers.format_compact_decimal(value, locale=language, fraction_digits=1)


def format_money(language: str, amount: Decimal, currency: str) -> str:
    """Return an amount in units of a currency, rounded to what can be paid (half to even), or to more decimals if it would be nothing."""
    known = CURRENCIES.get(currency.upper())
    decimals = 2 if known is None else known.minor_units
    rounded = round(amount, decimals)
    if amount and not rounded:
        rounded = round(amount, DECIMALS_MAX)
        decimals = max(decimals, -int(rounded.normalize().as_tuple().exponent)) if rounded else DECIMALS_MAX
    return f"{rounded:,.{decimals}f}".translate(_read_separators(language)) + f" {currency.upper()}"


@functools.cache
def _read_separators(language: str) -> dict[int, str]:
    """Return the separators of a language for those of Python. A page has hundreds of amounts, and Babel reads its pattern for each."""
    return {ord(","): numbers.get_group_symbol(language), ord("."): numbers.get_decimal_symbol(language)}


def read_amount(value: str | int | Decimal) -> Decimal:
    """Return an amount in units of a currency: of a decimal string of the API, or of pico (an integer)."""
    return Decimal(money.format_amount(value) if isinstance(value, int) else value)


def show_money(language: str, value: str | int | Decimal | None, currency: str) -> Markup | str:
    """Return an amount for a page: rounded, with the exact value as its title. `value`: a decimal string, or pico."""
    if value is None:
        return DASH
    amount = read_amount(value)
    exact = escape(f"{amount.normalize():f} {currency.upper()}")
    return Markup(f'<data value="{exact}" title="{exact}">{escape(format_money(language, amount, currency))}</data>')


def write_money(language: str, currency: str) -> Callable[[Decimal | int], str]:
    """Return how amounts (in units of the currency) are written in a chart."""
    return lambda value: format_money(language, Decimal(value), currency)


def write_number(language: str) -> Callable[[Decimal | int], str]:
    """Return how whole numbers are written in a chart."""
    return lambda value: format_compact(language, round(value))
