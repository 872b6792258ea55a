"""Bars that grow to the left or to the right of a line: in the terminal, and as an SVG file. Pure; whoever calls prints or writes."""

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

RED, GREEN, PLAIN = "\x1b[31m", "\x1b[32m", "\x1b[0m"


@dataclass(frozen=True, slots=True)
class Bar:
    """A value with its name, and the value as text."""

    name: str
    value: int
    text: str


def length(value: int, longest: int, width: int) -> int:
    """Return how much of `width` a bar takes if `longest` fills it; at least one for what is not nothing."""
    if not value or not longest:
        return 0
    return max(1, abs(value) * width // longest)


def text_bars(values: Sequence[int], width: int, *, pretty: bool) -> list[str]:
    """One bar for each value, `width` characters to either side of the line. `pretty`: blocks in colour, for a terminal; else ASCII."""
    longest = max((abs(value) for value in values), default=0)
    lines = []
    for value in values:
        size = length(value, longest, width)
        if not pretty:
            left, right = ("-" * size if value < 0 else ""), ("+" * size if value > 0 else "")
            lines.append(f"{left:>{width}}|{right}")
            continue
        block = "█" * size
        left = " " * (width - size) + f"{RED}{block}{PLAIN}" if value < 0 else " " * width
        lines.append(f"{left}│{GREEN}{block}{PLAIN}" if value > 0 else f"{left}│")
    return lines


ROW, WIDTH, NAME, TEXT = 22, 240, 180, 150
"""Pixels: the height of a row, a side's width for bars, a name's, a value's."""


def svg_bars(title: str, subtitle: str, bars: Sequence[Bar]) -> str:
    """The same as an SVG 1.1 document that stands alone."""
    longest = max((abs(bar.value) for bar in bars), default=0)
    middle, width, height = NAME + WIDTH, NAME + 2 * WIDTH + TEXT, 70 + ROW * len(bars)
    rows = []
    for number, bar in enumerate(bars):
        top, size = 58 + number * ROW, length(bar.value, longest, WIDTH)
        colour, left = ("#b42318", middle - size) if bar.value < 0 else ("#067647", middle)
        rows.append(f'<text x="{NAME - 8}" y="{top + 15}" text-anchor="end">{escape(_short(bar.name))}</text>')
        rows.append(f'<rect x="{left}" y="{top + 3}" width="{size}" height="{ROW - 6}" fill="{colour}"/>')
        rows.append(f'<text x="{width - 8}" y="{top + 15}" text-anchor="end">{escape(bar.text)}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        ' font-family="system-ui, sans-serif" font-size="13">\n'
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>\n'
        f'<text x="12" y="22" font-size="15" font-weight="bold">{escape(title)}</text>\n'
        f'<text x="12" y="42" fill="#475467">{escape(subtitle)}</text>\n'
        + "\n".join(rows)
        + f'\n<line x1="{middle}" y1="52" x2="{middle}" y2="{height - 8}" stroke="#475467"/>\n</svg>\n'
    )


def _short(name: str) -> str:
    return name if len(name) <= 24 else name[:23] + "…"
