"""`tollway usage` and `tollway costs`: what was used, and what it costs.

Usage can be cut at any minute, because the API has it by minute, hour and day of UTC: a span is read in pieces, the widest that fit, so
that a month of any time zone is exact and takes few requests. The table and `-o json` print the same buckets."""

import time
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from enum import StrEnum
from typing import Annotated, Any

import typer

from tollway.cli.client import Control, ControlUrl, DataDir, Key, Organization, connect_tenant
from tollway.cli.output import Output, OutputOption, print_json, print_table
from tollway.cli.times import Since, Until, Zone, read_range, show_day, show_minute, start_of_day
from tollway.domain.money import format_amount

BUCKETS_MAX = {"1m": 1440, "1h": 168, "1d": 31}
"""Most buckets of one answer, by width, as OpenAI has it."""


class Bucket(StrEnum):
    """Width of a line in time."""

    MINUTE = "1m"
    HOUR = "1h"
    DAY = "1d"


WIDTHS_SECONDS = {Bucket.MINUTE: 60, Bucket.HOUR: 3_600, Bucket.DAY: 86_400}


class UsageGroup(StrEnum):
    """Field by which usage is grouped."""

    PROJECT = "project"
    KEY = "key"
    MODEL = "model"


class CostGroup(StrEnum):
    """Field by which costs are grouped."""

    PROJECT = "project"
    LINE_ITEM = "line_item"


FIELDS = {"project": "project_id", "key": "api_key_id", "model": "model", "line_item": "line_item"}
NUMBERS = {"requests": "num_model_requests", "input": "input_tokens", "cached": "input_cached_tokens", "output": "output_tokens"}
"""Columns of the table of usage, with the API's field of each."""


def usage(
    since: Since = "24h",
    until: Until = None,
    bucket: Annotated[Bucket | None, typer.Option("--bucket", help="One line per minute, hour or day; else one in all.")] = None,
    by: Annotated[list[UsageGroup] | None, typer.Option("--by", help="Group by this field (repeatable).")] = None,
    test: Annotated[bool, typer.Option("--test", help="Show what test keys used, which is not billed.")] = False,
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Show usage: requests and tokens, by model unless told otherwise. Input includes what came from the cache.

    Days are those of the time zone. Times are cut to whole minutes.
    """
    groups = [FIELDS[group] for group in (by or [UsageGroup.MODEL])]
    with connect_tenant(control_url, key, data_dir, organization) as control:
        shown = control.get_zone(zone)
        start, end = read_range(since, until, shown, time.time())
        edges = list_edges(start, end, bucket, shown)
        buckets = _merge(edges, _read(control, edges, groups, test=test), groups)
        names = _list_names(control, groups) if output is Output.TABLE else {}
    if output is Output.JSON:
        print_json(buckets)
        return
    columns = [*([] if bucket is None else ["from"]), *_headings(groups), *NUMBERS]
    rows = []
    for each in buckets:
        begin = (
            []
            if bucket is None
            else [show_day(each["start_time"], shown) if bucket is Bucket.DAY else show_minute(each["start_time"], shown)]
        )
        for result in each["results"]:
            rows.append([*begin, *_name_groups(result, groups, names), *(result.get(field, 0) for field in NUMBERS.values())])
    if len(rows) > 1:
        totals = [sum(row[at] for row in rows) for at in range(-len(NUMBERS), 0)]
        rows.append(["total", *[""] * (len(columns) - len(NUMBERS) - 1), *totals])
    _print(columns, rows, len(NUMBERS))


def costs(
    since: Since = "30d",
    until: Until = None,
    daily: Annotated[bool, typer.Option("--daily", help="One line per day; else one in all.")] = False,
    by: Annotated[list[CostGroup] | None, typer.Option("--by", help="Group by this field (repeatable).")] = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Show exact costs by line item (model and token class) unless told otherwise. Whole days, in UTC."""
    groups = [FIELDS[group] for group in (by or [CostGroup.LINE_ITEM])]
    start, end = read_range(since, until, UTC, time.time())
    with connect_tenant(control_url, key, data_dir, organization) as control:
        buckets = list(_buckets(control, "/organization/costs", start, end, Bucket.DAY, groups))
        names = _list_names(control, groups) if output is Output.TABLE else {}
    if output is Output.JSON:
        print_json(buckets)
        return
    sums: dict[tuple[Any, ...], int] = {}
    for each in buckets:
        begin = (each["start_time"],) if daily else ()
        for result in each["results"]:
            group = (*begin, *(result.get(field) for field in groups), result["amount"]["currency"].upper())
            sums[group] = sums.get(group, 0) + int(result["amount"]["value_pico"])
    columns = [*(["from (UTC)"] if daily else []), *_headings(groups), "currency", "amount"]
    rows: list[list[Any]] = []
    for group, pico in sorted(sums.items(), key=_order):
        begin_cells = [show_day(group[0], UTC)] if daily else []
        fields = dict(zip(groups, group[len(begin_cells) :], strict=False))
        rows.append([*begin_cells, *_name_groups(fields, groups, names), group[-1], format_amount(pico)])
    if len(rows) > 1 and len({group[-1] for group in sums}) == 1:
        blank = [""] * (len(columns) - 3)
        rows.append(["total", *blank, next(iter(sums))[-1], format_amount(sum(sums.values()))])
    _print(columns, rows, 1)


# ---- Buckets ------------------------------------------------------------------------------------------------------------


def list_edges(start: int, end: int, bucket: Bucket | None, zone: tzinfo) -> list[int]:
    """Return where the buckets from `start` to `end` begin, and where the last one ends, in seconds since 1970.

    The first and the last bucket are whole: days of `zone`, hours and minutes of UTC. Without a width there is one bucket, of whole
    minutes."""
    width = WIDTHS_SECONDS[bucket or Bucket.MINUTE]
    if bucket is None:
        return [start - start % width, end + -end % width]
    if bucket is not Bucket.DAY:
        return [*range(start - start % width, end + -end % width + width, width)]
    day = datetime.fromtimestamp(start, zone).date()
    edges = [start_of_day(day, zone)]
    while edges[-1] < end:
        day += timedelta(days=1)
        edges.append(start_of_day(day, zone))
    return edges


def split_span(start: int, end: int) -> list[tuple[int, int, Bucket]]:
    """Return the pieces of a span of whole minutes, each with the widest buckets of UTC that it consists of: at most two of minutes, two
    of hours and one of days, in order of time."""
    return list(_split(start, end, [Bucket.DAY, Bucket.HOUR, Bucket.MINUTE]))


def _split(start: int, end: int, widths: Sequence[Bucket]) -> Iterator[tuple[int, int, Bucket]]:
    width = WIDTHS_SECONDS[widths[0]]
    first, last = start + -start % width, end - end % width
    if first >= last:
        if start < end:
            yield from _split(start, end, widths[1:])
        return
    if start < first:
        yield from _split(start, first, widths[1:])
    yield first, last, widths[0]
    if last < end:
        yield from _split(last, end, widths[1:])


def _read(control: Control, edges: Sequence[int], groups: list[str], *, test: bool) -> Iterator[Mapping[str, Any]]:
    """Yield the API's buckets of live keys, or of test keys, from the first edge to the last, none of which lies across an edge."""
    only: dict[str, Any] = {"test": True} if test else {}
    if len(edges) == 2:
        pieces = split_span(*edges)
    else:
        width = next(width for width in (Bucket.DAY, Bucket.HOUR, Bucket.MINUTE) if not any(edge % WIDTHS_SECONDS[width] for edge in edges))
        pieces = [(edges[0], edges[-1], width)]
    for kind in ("completions", "embeddings"):
        for start, end, width in pieces:
            yield from _buckets(control, f"/organization/usage/{kind}", start, end, width, groups, **only)


def _buckets(
    control: Control, path: str, start: int, end: int, width: Bucket, groups: list[str], **only: Any
) -> Iterator[Mapping[str, Any]]:
    """Yield the API's buckets that match the parameters `only`, page after page."""
    query: dict[str, Any] = {
        "start_time": start,
        "end_time": end,
        "bucket_width": width,
        "group_by": groups,
        "limit": BUCKETS_MAX[width],
        **only,
    }
    while True:
        page = control.get(path, **query)
        yield from page["data"]
        if not page["has_more"]:
            return
        query["page"] = page["next_page"]


def _merge(edges: Sequence[int], found: Iterator[Mapping[str, Any]], groups: list[str]) -> list[dict[str, Any]]:
    """Return one bucket between each two edges, in the shape of the API, with the sums of what was found in it by group."""
    sums: list[dict[tuple[str, ...], dict[str, Any]]] = [{} for _ in edges[1:]]
    for each in found:
        place = sums[bisect_right(edges, each["start_time"]) - 1]
        for result in each["results"]:
            values = {group: result.get(group) for group in groups}
            line = place.setdefault(tuple(str(value) for value in values.values()), values)
            for name, value in result.items():
                if isinstance(value, int):
                    line[name] = line.get(name, 0) + value
    return [
        {"object": "bucket", "start_time": start, "end_time": end, "results": [lines[group] for group in sorted(lines)]}
        for start, end, lines in zip(edges, edges[1:], sums, strict=False)
    ]


# ---- Tables -------------------------------------------------------------------------------------------------------------


def _list_names(control: Control, groups: Sequence[str]) -> dict[str, str]:
    """Return the names of the projects and keys that a table groups by, by id. Revoked keys are no longer listed and have none."""
    names = {}
    if {"project_id", "api_key_id"} & {*groups}:
        for project in control.list_all("/organization/projects", include_archived=True):
            names[project["id"]] = project["name"]
            if "api_key_id" in groups:
                names |= {each["id"]: each["name"] for each in control.list_all(f"/organization/projects/{project['id']}/api_keys")}
    return names


def _headings(groups: Sequence[str]) -> list[str]:
    return [heading for group in groups for heading in ([group, group.removesuffix("_id")] if group.endswith("_id") else [group])]


def _name_groups(values: Mapping[str, Any], groups: Sequence[str], names: Mapping[str, str]) -> list[str | None]:
    """Return the cells of a line's groups: the name follows each id."""
    cells: list[str | None] = []
    for group in groups:
        value = values[group]
        cells += [value, names.get(value)] if group.endswith("_id") else [value]
    return cells


def _order(item: tuple[tuple[Any, ...], Any]) -> tuple[str, ...]:
    return tuple(f"{name:020}" if isinstance(name, int) else str(name or "") for name in item[0])


def _print(columns: Sequence[str], rows: Sequence[Sequence[Any]], numbers: int) -> None:
    if rows:
        print_table(columns, rows, right=frozenset(columns[-numbers:]))
    else:
        typer.echo("nothing yet: usage is counted when a request has ended", err=True)
