"""Charts as SVG that the server draws: bars of one or several series over buckets of time, with axes, and a title on each bar.

A series has the same colour wherever its name appears: the colour follows from the name. Heights are geometry and may be rounded; the
numbers stand in the titles, and in the table that each page shows beside its chart."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal

from babel import dates
from markupsafe import Markup, escape

WIDTH, HEIGHT = 720, 200
LEFT, BOTTOM, TOP = 88, 22, 8
"""Space (in units of the view box) for the labels of the axes, and above the highest bar."""

COLOURS = 8
"""Colours of series that the style sheet has (`.series-0` and on)."""

SERIES_MAX = 6
"""Rows that are drawn by themselves; the others are added up."""

LEAST_HEIGHT = Decimal("0.5")
"""Height of a bar that would be seen no more."""

LABELS_MAX = 8
"""Labels of the time axis, so that they do not overlap."""


@dataclass(frozen=True, slots=True)
class Series:
    """One named row of values, one a bucket."""

    name: str
    values: Sequence[Decimal | int]

    @property
    def colour(self) -> int:
        """Return the number of its colour, which follows from the name."""
        return hashlib.sha256(self.name.encode()).digest()[0] % COLOURS


@dataclass(frozen=True, slots=True)
class BarChart:
    """Stacked bars. `starts`: of the buckets, in Unix seconds of UTC. `label`: what is drawn, with its unit. `write`: writes a value."""

    label: str
    starts: Sequence[int]
    width_seconds: int
    series: Sequence[Series]
    write: Callable[[Decimal | int], str]


def add_others(rows: Sequence[Series], totals: Sequence[Decimal], others: str) -> list[Series]:
    """Return rows, and what they lack of the totals of their buckets as one more with the name `others`, if that is anything."""
    rest = [total - sum((Decimal(each.values[at]) for each in rows), Decimal(0)) for at, total in enumerate(totals)]
    return [*rows, Series(others, rest)] if any(rest) else list(rows)


def draw_bars(language: str, chart: BarChart) -> Markup:
    """Return a chart as SVG."""
    totals = [sum((Decimal(series.values[at]) for series in chart.series), Decimal(0)) for at in range(len(chart.starts))]
    top = max([*totals, Decimal(0)])
    parts = [Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, HEIGHT, chart.label)]
    inner_height, slot = HEIGHT - BOTTOM - TOP, (WIDTH - LEFT) / max(len(chart.starts), 1)
    colours = {each.name: each.colour for each in chart.series}
    for share in (0, 1, 2):
        y = TOP + inner_height * (2 - share) / 2
        parts.append(Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(LEFT, WIDTH, y, y))
        if share and top:
            text = chart.write(top * share / 2)
            parts.append(Markup('<text class="axis end" x="{}" y="{:.1f}">{}</text>').format(LEFT - 6, y + 4, text))
    for at, start in enumerate(chart.starts):
        x, base, moment = LEFT + at * slot, Decimal(TOP + inner_height), _label_time(language, start, chart.width_seconds)
        for series in chart.series:
            value = Decimal(series.values[at])
            if value <= 0 or not top:
                continue
            height = value * inner_height / top
            base -= height
            title = escape(f"{moment} · {series.name}: {chart.write(series.values[at])}")
            parts.append(  # written at once: a page has hundreds of bars, and `Markup.format` takes most of the time of a chart
                Markup(
                    f'<rect class="series-{colours[series.name]}" x="{x + slot * 0.1:.1f}" y="{base:.1f}" width="{slot * 0.8:.1f}"'
                    f' height="{max(height, LEAST_HEIGHT):.1f}"><title>{title}</title></rect>'
                )
            )
    step = max(1, -(-len(chart.starts) // LABELS_MAX))
    for at in range(0, len(chart.starts), step):
        text = _label_time(language, chart.starts[at], chart.width_seconds)
        parts.append(Markup('<text class="axis" x="{:.1f}" y="{}">{}</text>').format(LEFT + at * slot, HEIGHT - 6, text))
    return Markup("").join([*parts, Markup("</svg>")])


def _label_time(language: str, start: int, width_seconds: int) -> str:
    moment = datetime.fromtimestamp(start, UTC)
    if width_seconds >= 86_400:
        return dates.format_skeleton("MMMd", moment, locale=language)
    return f"{moment:%H:%M}"
