"""Numbers, money and times as a language writes them. Money is exact: from decimal strings or pico, never through a float."""

from datetime import UTC, datetime
from decimal import Decimal

from babel import dates, numbers
from markupsafe import Markup

from tollway.domain.currencies import CURRENCIES
from tollway.domain.money import PICO

DECIMALS_MAX = 6
"""Decimals of an amount that would be nothing in the currency's smallest unit: what a request costs."""

DASH = "–"
"""Stands where there is no value."""


def format_number(language: str, value: int | None) -> str:
    """Return a whole number, grouped."""
    return DASH if value is None else numbers.format_decimal(value, locale=language)


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
    pattern = numbers.parse_pattern("#,##0" + ("." + "0" * decimals if decimals else ""))
    digits = pattern.apply(rounded, language)
    return f"{digits} {currency.upper()}"


def read_amount(value: str | int | Decimal) -> Decimal:
    """Return an amount in units of a currency: of a decimal string of the API, or of pico (an integer)."""
    return Decimal(value) / PICO if isinstance(value, int) else Decimal(value)


def show_money(language: str, value: str | int | Decimal | None, currency: str) -> Markup | str:
    """Return an amount for a page: rounded, with the exact value as its title. `value`: a decimal string, or pico."""
    if value is None:
        return DASH
    amount = read_amount(value)
    exact = f"{amount.normalize():f} {currency.upper()}"
    return Markup('<data value="{}" title="{}">{}</data>').format(exact, exact, format_money(language, amount, currency))


def show_time(language: str, at: int | None, *, with_seconds: bool = False) -> Markup | str:
    """Return an instant (Unix seconds) in UTC for a page; a script adds the viewer's own time to it."""
    if at is None:
        return DASH
    moment = datetime.fromtimestamp(at, UTC)
    day = dates.format_date(moment, "medium", locale=language)
    text = f"{day} {moment:%H:%M:%S}" if with_seconds else f"{day} {moment:%H:%M}"
    return Markup('<time datetime="{}">{} UTC</time>').format(f"{moment:%Y-%m-%dT%H:%M:%SZ}", text)


def show_day(language: str, at: int | None) -> Markup | str:
    """Return the day of an instant (Unix seconds) in UTC for a page."""
    if at is None:
        return DASH
    moment = datetime.fromtimestamp(at, UTC)
    return Markup('<time datetime="{}">{}</time>').format(f"{moment:%Y-%m-%d}", dates.format_date(moment, "medium", locale=language))


def format_percent(language: str, part: int | Decimal, whole: int | Decimal) -> str:
    """Return a share as whole percent."""
    return DASH if not whole else numbers.format_percent(float(part / whole), locale=language)


def format_milliseconds(language: str, value: float | None) -> str:
    """Return a span in milliseconds, in seconds from ten of them on."""
    if value is None:
        return DASH
    if value >= 10_000:
        return f"{numbers.format_decimal(round(value / 1000, 1), locale=language)} s"
    return f"{numbers.format_decimal(round(value), locale=language)} ms"
