"""A flame graph as one SVG file, from stacks and how often each was seen. Pure: no other tool, nothing fetched by the page.

A bar is a function, as wide as the share of samples in which it was running or waiting for what it called; what it called stands on it.
Hovering shows the whole name and the share. Functions are coloured by their package.
"""

from __future__ import annotations

import colorsys
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

Stack = tuple[str, ...]
"""Functions from the outermost to the innermost."""

WIDTH = 1200
ROW = 17
MARGIN = 10
HEADER = 46
LETTER = 6.2  # width of a letter of the font below
NARROWEST = 0.3  # a narrower bar cannot be seen


@dataclass(slots=True)
class _Bar:
    samples: int = 0
    inner: dict[str, _Bar] = field(default_factory=dict)


def render(samples: Mapping[Stack, int], title: str) -> str:
    """The SVG. `samples`: how often each stack was seen."""
    root = _Bar(sum(samples.values()))
    deepest = 0
    for stack, count in samples.items():
        bar = root
        deepest = max(deepest, len(stack))
        for name in stack:
            bar = bar.inner.setdefault(name, _Bar())
            bar.samples += count
    height = HEADER + (deepest + 1) * ROW + MARGIN
    scale = (WIDTH - 2 * MARGIN) / max(1, root.samples)
    bars = "\n".join(_draw(root, MARGIN, height - MARGIN - ROW, scale, root.samples))
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="ui-monospace, monospace" font-size="10">
<rect width="{WIDTH}" height="{height}" fill="#fcfcf9"/>
<text x="{MARGIN}" y="20" font-size="14">{escape(title)}</text>
<text x="{MARGIN}" y="36" fill="#666">{root.samples:,} samples; what a function called stands on it; hover for names and shares</text>
{bars}
</svg>
"""


def _draw(bar: _Bar, x: float, y: float, scale: float, total: int) -> Iterator[str]:
    for name, inner in sorted(bar.inner.items()):
        width = inner.samples * scale
        if width >= NARROWEST:
            label = name.rpartition(":")[2]
            letters = int((width - 4) / LETTER)
            text = label if len(label) <= letters else label[: letters - 1] + "…" if letters > 3 else ""
            yield (
                f'<g><title>{escape(name)}: {inner.samples / total:.1%}</title><rect x="{x:.1f}" y="{y}" width="{width:.1f}"'
                f' height="{ROW - 1}" rx="1" fill="{_colour(name)}"/>'
                + (f'<text x="{x + 2:.1f}" y="{y + 12}">{escape(text)}</text>' if text else "")
                + "</g>"
            )
            yield from _draw(inner, x, y - ROW, scale, total)
        x += width


def _colour(name: str) -> str:
    hue = zlib.crc32(name.partition("/")[0].encode()) % 360 / 360
    shade = 0.72 + zlib.crc32(name.encode()) % 12 / 100
    red, green, blue = colorsys.hls_to_rgb(hue, shade, 0.55)
    return f"#{int(red * 255):02x}{int(green * 255):02x}{int(blue * 255):02x}"


def by_file(samples: Mapping[Stack, int]) -> dict[str, float]:
    """Share (0 to 1) of the samples by the file of the innermost function, most first."""
    total = sum(samples.values())
    counts: dict[str, int] = {}
    for stack, count in samples.items():
        name = stack[-1].partition(":")[0]
        counts[name] = counts.get(name, 0) + count
    return {name: count / total for name, count in sorted(counts.items(), key=lambda item: -item[1])}


def write_folded(samples: Mapping[Stack, int]) -> str:
    """One line per stack, `a;b;c 12`: the form that other flame graph tools read too."""
    return "".join(f"{';'.join(stack)} {count}\n" for stack, count in sorted(samples.items()))


def read_folded(text: str) -> dict[Stack, int]:
    """Return what `write_folded` wrote. Raises ValueError for anything else."""
    samples = {}
    for line in text.splitlines():
        stack, _, count = line.rpartition(" ")
        samples[tuple(stack.split(";"))] = int(count)
    return samples
