"""Cells of CSV files that people open with a spreadsheet."""

_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def escape_text(text: str) -> str:
    """Return a text that somebody chose so that no spreadsheet takes it for a formula: with an apostrophe before what would begin one
    (OWASP, CSV injection)."""
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text
