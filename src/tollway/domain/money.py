"""Money: integers of pico-currency (1e-12 of a unit of any ISO 4217 currency). All rounding in Tollway is in this file.

Why pico: one pico per token is exactly one micro per million tokens, so every price with up to six decimals per million tokens is a
whole number, and so is every price x quantity. Nothing here or above ever holds an amount in a float.
"""

import re

PICO = 1_000_000_000_000
"""Pico-units in one unit of currency (1 EUR = 10**12)."""

CENT_PICO = PICO // 100
"""Pico-units in a hundredth of a unit of currency."""

PRICE_DECIMALS_MAX = 6
"""Decimals of a price per million tokens; the seventh would be less than one pico per token."""

UNIT_PRICE_PICO_MAX = 10**12
"""Highest price of one token or request: one currency unit. With 2**31 tokens in a class an amount still fits 64 bits once checked
by AMOUNT_PICO_MAX; a price above this is a typing error, refused at write."""

AMOUNT_PICO_MAX = 2**63 - 1
"""Highest amount of one rated line: what a signed 64-bit column holds (9.2 million currency units)."""

_DECIMAL = re.compile(r"(0|[1-9][0-9]{0,11})(?:\.([0-9]{1,12}))?")


def parse_price_per_million(text: str) -> int:
    """Pico per token of a price given per 1,000,000 tokens as a decimal string, e.g. "0.27" -> 270000.

    Raises ValueError for anything but a plain non-negative decimal with at most six decimals, or one above UNIT_PRICE_PICO_MAX.
    """
    return _parse(text, PRICE_DECIMALS_MAX, UNIT_PRICE_PICO_MAX)


def parse_amount(text: str) -> int:
    """Pico of an amount given in currency units as a decimal string with at most twelve decimals, e.g. "1.5" -> 1_500_000_000_000.

    Raises ValueError for anything else, or above UNIT_PRICE_PICO_MAX (used for prices per request).
    """
    return _parse(text, 12, UNIT_PRICE_PICO_MAX)


def parse_sum(text: str) -> int:
    """Pico of any sum of money, in currency units as a decimal string with at most twelve decimals. Raises ValueError for anything else,
    or above AMOUNT_PICO_MAX."""
    return _parse(text, 12, AMOUNT_PICO_MAX)


def _parse(text: str, decimals: int, pico_max: int) -> int:
    match = _DECIMAL.fullmatch(text)
    if match is None:
        raise ValueError("not a plain decimal number (digits, optionally a point and at most 12 digits; no sign, no exponent)")
    whole, fraction = match.group(1), match.group(2) or ""
    if len(fraction.rstrip("0")) > decimals:
        raise ValueError(f"more than {decimals} decimals")
    pico: int = int(whole) * 10**decimals + int(fraction[:decimals].ljust(decimals, "0"))
    if pico > pico_max:
        raise ValueError("above the highest price" if pico_max == UNIT_PRICE_PICO_MAX else "too much")
    return pico


def format_price_per_million(unit_pico: int) -> str:
    """The decimal string per million tokens that `parse_price_per_million` reads back to `unit_pico`."""
    return _format(unit_pico, PRICE_DECIMALS_MAX)


def format_amount(pico: int) -> str:
    """An exact amount in currency units as the shortest decimal string: 1_500_000_000_000 -> "1.5", 0 -> "0"; may be negative."""
    return _format(pico, 12)


def round_amount(pico: int, decimals: int) -> str:
    """An amount in currency units with exactly so many decimals (at most twelve), half to even; may be negative. To be looked at, never
    to be reckoned with."""
    step = 10 ** (12 - decimals)
    whole, fraction = divmod(divide_half_even(abs(pico), step), 10**decimals)
    sign = "-" if pico < 0 and (whole or fraction) else ""
    return f"{sign}{whole}.{fraction:0{decimals}d}" if decimals else f"{sign}{whole}"


def divide_half_even(numerator: int, denominator: int) -> int:
    """The integer nearest to numerator / denominator (both not negative), a tie to the even one."""
    quotient, rest = divmod(numerator, denominator)
    double = rest * 2
    return quotient + (double > denominator or (double == denominator and quotient & 1))


def _format(value: int, decimals: int) -> str:
    sign, value = ("-", -value) if value < 0 else ("", value)
    whole, fraction = divmod(value, 10**decimals)
    digits = f"{fraction:0{decimals}d}".rstrip("0")
    return f"{sign}{whole}.{digits}" if digits else f"{sign}{whole}"


def round_half_up(pico: int, step: int) -> int:
    """Return the number of steps of `step` pico nearest to an amount, a tie away from zero: the rounding of invoices. May be negative."""
    whole = (2 * abs(pico) + step) // (2 * step)
    return -whole if pico < 0 else whole


def format_minor(amount_minor: int, minor_units: int) -> str:
    """Return an amount in the smallest unit of a currency as a decimal string with all of its decimals: 1234 of two -> "12.34"."""
    return round_amount(amount_minor * 10 ** (12 - minor_units), minor_units)
