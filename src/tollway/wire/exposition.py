"""Counters and gauges out of a page of metrics, in the Prometheus text format (version 0.0.4) or OpenMetrics' superset of it for counters.

Only the lines of the counters asked for are looked at, and those strictly: a page comes from an engine, and what it says is compared
with money. The caller bounds the page.
"""

import re
from collections.abc import Sequence

COUNT_MAX = 2**53
"""Engines keep counters as floats, which are exact up to here: 285 years at a million tokens a second."""

SERIES_MAX = 4096
"""Series of the counters asked for on one page: ranks times adapters of a large engine are far below."""

_REST = re.compile(
    rb'(?P<labels>\{(?:[^"{}\\]|"(?:[^"\\]|\\.)*")*\})?[ \t]+'
    rb"(?P<value>[0-9]{1,20}(?:\.[0-9]{0,20})?(?:[eE][+-]?[0-9]{1,3})?)"
    rb"(?:[ \t]+-?[0-9]{1,20}(?:\.[0-9]{1,9})?)?(?:[ \t]*#.*)?[ \t]*"
)
"""The rest of a line after a counter's name: labels, value, timestamp and (OpenMetrics) an exemplar."""


def sum_counters(page: bytes, names: Sequence[str], prefix: str) -> list[int]:
    """Return the value of each counter, summed over its series, in whole numbers; 0 for one that has no series yet.

    `prefix`: what all metrics of this kind of engine begin with. Some libraries show a counter only once it has counted, so a page
    that has others of this engine and not this one means 0. Raises ValueError for a page that has nothing of this engine, or whose
    counters are not numbers that a counter can have.
    """
    wanted = {name.encode(): index for index, name in enumerate(names)}
    sums = [0] * len(names)
    seen: set[tuple[int, bytes]] = set()
    is_ours, begin = False, prefix.encode()
    for line in page.split(b"\n"):
        if not line.startswith(begin):
            is_ours = is_ours or line.startswith(b"# TYPE " + begin)
            continue
        is_ours = True
        name = re.split(rb"[ \t{]", line, maxsplit=1)[0]
        index = wanted.get(name)
        if index is None:
            continue
        found = _REST.fullmatch(line.rstrip(b"\r"), len(name))
        if found is None:
            raise ValueError(f"the value of {names[index]} is not one of a counter")
        value = float(found["value"])
        series = (index, found["labels"] or b"")
        if value > COUNT_MAX or series in seen or len(seen) >= SERIES_MAX:
            raise ValueError(f"{names[index]} is out of range, or stands twice")
        seen.add(series)
        sums[index] += round(value)
    if not is_ours:
        raise ValueError(f"a page without {prefix}* metrics")
    return sums


def sum_gauge(page: bytes, name: str, labels: bytes = b"") -> float:
    """Return the value of a gauge, summed over its series, of those that have the label `labels` (`name="value"`) if it is given. Raises
    ValueError if the page has no series of it, or one that is no number of at most COUNT_MAX: a gauge that is missing is not 0."""
    begin, at, total, series = name.encode(), 0, 0.0, 0
    while (at := page.find(begin, at)) >= 0:
        before, end = at, page.find(b"\n", at)
        line = page[at : end if end >= 0 else len(page)]
        at += len(line)
        if (before and page[before - 1] != 0x0A) or line[len(begin) : len(begin) + 1] not in (b"{", b" ", b"\t"):
            continue
        found = _REST.fullmatch(line.rstrip(b"\r"), len(begin))
        if labels and labels not in line:
            continue
        series += 1
        if found is None or float(found["value"]) > COUNT_MAX or series > SERIES_MAX:
            raise ValueError(f"the value of {name} is out of range")
        total += float(found["value"])
    if not series:
        raise ValueError(f"a page without {name}")
    return total
