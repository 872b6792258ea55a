"""`tollway usage` and `tollway costs`: what was used, and what it costs.

Usage can be cut at any minute, because the API has it by minute, hour and day of UTC: a span is read in pieces, the widest that fit, so
that a month of any time zone is exact and takes few requests. The table and `-o json` print the same buckets."""

import time
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta, tzinfo
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer

from tollway.cli.client import Control, ControlUrl, DataDir, Key, Organization, connect_tenant, segment
from tollway.cli.money.period_exports import find_period
from tollway.cli.output import Output, OutputOption, print_json, print_table
from tollway.cli.times import Since, Until, Zone, read_range, show_day, show_minute, start_of_day
from tollway.domain.money import format_amount
from tollway.settings import OperatorError

BUCKETS_MAX = {"1m": 1440, "1h": 168, "1d": 31}
"""Most buckets of one answer, by width, as OpenAI has it."""


COST_BUCKETS_MAX = 180
"""Most buckets of one answer about costs, of any width."""

USAGE_PATHS = (
    "/organization/usage/completions",
    "/organization/usage/embeddings",
    "/organization/usage/images",
    "/organization/usage/audio_speeches",
    "/organization/usage/audio_transcriptions",
)
COSTS_PATH = "/organization/costs"


class BucketWidth(StrEnum):
    """Width of a line in time."""

    MINUTE = "1m"
    HOUR = "1h"
    DAY = "1d"


WIDTHS_SECONDS = {BucketWidth.MINUTE: 60, BucketWidth.HOUR: 3_600, BucketWidth.DAY: 86_400}


class UsageGroupField(StrEnum):
    """Field by which usage is grouped."""

    PROJECT = "project"
    KEY = "key"
    MODEL = "model"


class CostGroupField(StrEnum):
    """Field by which costs are grouped."""

    PROJECT = "project"
    LINE_ITEM = "line_item"
    MODEL = "model"


FIELDS = {"project": "project_id", "key": "api_key_id", "model": "model", "line_item": "line_item"}
NUMBERS = {"requests": "num_model_requests", "input": "input_tokens", "cached": "input_cached_tokens", "output": "output_tokens"}
"""Columns of the table of usage, with the API's field of each."""


def usage(
    since: Since = "24h",
    until: Until = None,
    bucket: Annotated[BucketWidth | None, typer.Option("--bucket", help="One line per minute, hour or day; else one in all.")] = None,
    by: Annotated[list[UsageGroupField] | None, typer.Option("--by", help="Group by this field (repeatable).")] = None,
    test: Annotated[bool, typer.Option("--test", help="Show what test keys used, which is not billed.")] = False,
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Show usage: requests and tokens, by model by default. Input includes what came from the cache.

    Days are those of the time zone. Times are cut to whole minutes.
    """
    groups = [FIELDS[group] for group in (by or [UsageGroupField.MODEL])]
    with connect_tenant(control_url, key, data_dir, organization) as control:
        shown = control.get_zone(zone)
        start, end = read_range(since, until, shown, time.time())
        edges = list_edges(start, end, bucket, shown)
        buckets = _merge_usage(edges, _read(control, USAGE_PATHS, edges, groups, test=test), groups)
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
            else [show_day(each["start_time"], shown) if bucket is BucketWidth.DAY else show_minute(each["start_time"], shown)]
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
    by: Annotated[list[CostGroupField] | None, typer.Option("--by", help="Group by this field (repeatable).")] = None,
    period: Annotated[
        str | None, typer.Option("--period", metavar="PERIOD", help="Show what is booked in a billing period instead: 2026-11, or its id.")
    ] = None,
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Show exact costs by line item (model and token class) by default.

    Days are those of the time zone. With --period they are the costs of a billing period to the last digit: late requests and corrections
    stand where they are booked, a closed period never changes, and the current one shows the month to date.
    """
    if period is not None:
        _print_period(period, by or [CostGroupField.LINE_ITEM], output, control_url, key, data_dir, organization)
        return
    if by is not None and CostGroupField.MODEL in by:
        raise OperatorError("costs are grouped by model only with --period", hint="line items name their model", exit_code=2)
    groups = [FIELDS[group] for group in (by or [CostGroupField.LINE_ITEM])]
    with connect_tenant(control_url, key, data_dir, organization) as control:
        shown = control.get_zone(zone)
        start, end = read_range(since, until, shown, time.time())
        edges = list_edges(start, end, BucketWidth.DAY if daily else None, shown)
        buckets = _merge_costs(edges, _read(control, [COSTS_PATH], edges, groups), groups)
        names = _list_names(control, groups) if output is Output.TABLE else {}
    if output is Output.JSON:
        print_json(buckets)
        return
    columns = [*(["from"] if daily else []), *_headings(groups), "currency", "amount"]
    rows = [
        [*begin, *_name_groups(result, groups, names), result["amount"]["currency"].upper(), result["amount"]["value_decimal"]]
        for each in buckets
        for begin in [[show_day(each["start_time"], shown)] if daily else []]
        for result in each["results"]
    ]
    if len(rows) > 1:
        total = sum(int(result["amount"]["value_pico"]) for each in buckets for result in each["results"])
        rows.append(["total", *[""] * (len(columns) - 3), rows[0][-2], format_amount(total)])
    _print(columns, rows, 1)


def _print_period(
    period: str,
    by: list[CostGroupField],
    output: Output,
    control_url: str | None,
    key: str | None,
    data_dir: Path | None,
    organization: str | None,
) -> None:
    """Print the costs of a billing period, by line item or by model."""
    if by not in ([CostGroupField.LINE_ITEM], [CostGroupField.MODEL]):
        raise OperatorError("the costs of a period are grouped by line_item or by model", exit_code=2)
    with connect_tenant(control_url, key, data_dir, organization) as control:
        period_id = find_period(control.list_all("/organization/periods"), period)
        found = control.get(f"/organization/periods/{segment(period_id)}/costs", group_by=str(by[0]))
    if output is Output.JSON:
        print_json(found)
        return
    rows = [[row[by[0]], row["amount"]["currency"].upper(), row["amount"]["value_decimal"]] for row in found["data"]]
    if len(rows) > 1:
        rows.append(["total", rows[0][1], found["total"]])
    _print([str(by[0]), "currency", "amount"], rows, 1)
    if found["state"] != "closed":
        typer.echo("so far: the period is not closed", err=True)


# ---- Buckets ------------------------------------------------------------------------------------------------------------


def list_edges(start: int, end: int, bucket: BucketWidth | None, zone: tzinfo) -> list[int]:
    """Return where the buckets from `start` to `end` begin, and where the last one ends, in seconds since 1970.

    The first and the last bucket are whole: days of `zone`, hours and minutes of UTC. Without a width there is one bucket, of whole
    minutes."""
    width = WIDTHS_SECONDS[bucket or BucketWidth.MINUTE]
    if bucket is None:
        return [start - start % width, end + -end % width]
    if bucket is not BucketWidth.DAY:
        return [*range(start - start % width, end + -end % width + width, width)]
    day = datetime.fromtimestamp(start, zone).date()
    edges = [start_of_day(day, zone)]
    while edges[-1] < end:
        day += timedelta(days=1)
        edges.append(start_of_day(day, zone))
    return edges


def split_span(start: int, end: int) -> list[tuple[int, int, BucketWidth]]:
    """Return the pieces of a span of whole minutes, each with the widest buckets of UTC that it consists of: at most two of minutes, two
    of hours and one of days, in order of time."""
    return list(_split(start, end, [BucketWidth.DAY, BucketWidth.HOUR, BucketWidth.MINUTE]))


def _split(start: int, end: int, widths: Sequence[BucketWidth]) -> Iterator[tuple[int, int, BucketWidth]]:
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


def _read(
    control: Control, paths: Sequence[str], edges: Sequence[int], groups: list[str], *, test: bool = False
) -> Iterator[Mapping[str, Any]]:
    """Yield the API's buckets of live keys, or of test keys, from the first edge to the last, none of which lies across an edge."""
    only: dict[str, Any] = {"test": True} if test else {}
    if len(edges) == 2:
        pieces = split_span(*edges)
    else:
        width = next(
            width
            for width in (BucketWidth.DAY, BucketWidth.HOUR, BucketWidth.MINUTE)
            if not any(edge % WIDTHS_SECONDS[width] for edge in edges)
        )
        pieces = [(edges[0], edges[-1], width)]
    for path in paths:
        for start, end, width in pieces:
            yield from _buckets(control, path, start, end, width, groups, **only)


def _buckets(
    control: Control, path: str, start: int, end: int, width: BucketWidth, groups: list[str], **only: Any
) -> Iterator[Mapping[str, Any]]:
    """Yield the API's buckets that match the parameters `only`, page after page."""
    query: dict[str, Any] = {
        "start_time": start,
        "end_time": end,
        "bucket_width": width,
        "group_by": groups,
        "limit": COST_BUCKETS_MAX if path == COSTS_PATH else BUCKETS_MAX[width],
        **only,
    }
    while True:
        page = control.get(path, **query)
        yield from page["data"]
        if not page["has_more"]:
            return
        query["page"] = page["next_page"]


def _merge_usage(edges: Sequence[int], found: Iterator[Mapping[str, Any]], groups: list[str]) -> list[dict[str, Any]]:
    """Return one bucket between each two edges, in the shape of the API, with the sums of what was found in it by group."""
    merged: _Sums = [{} for _ in edges[1:]]
    for result, line in _lines(edges, found, groups, merged):
        for name, value in result.items():
            if isinstance(value, int):
                line[name] = line.get(name, 0) + value
    return _to_buckets(edges, merged)


def _merge_costs(edges: Sequence[int], found: Iterator[Mapping[str, Any]], groups: list[str]) -> list[dict[str, Any]]:
    """Return one bucket between each two edges, with exact sums of costs by group and without floats."""
    merged: _Sums = [{} for _ in edges[1:]]
    for result, line in _lines(edges, found, groups, merged):
        pico = int(result["amount"]["value_pico"]) + int(line["amount"]["value_pico"] if "amount" in line else 0)
        line["amount"] = {"currency": result["amount"]["currency"], "value_decimal": format_amount(pico), "value_pico": str(pico)}
        if result["quantity"] is not None:
            line["quantity"] = line.get("quantity", 0) + result["quantity"]
    return _to_buckets(edges, merged)


_Sums = list[dict[tuple[str, ...], dict[str, Any]]]
"""The lines of each bucket, by the values of their groups."""


def _lines(
    edges: Sequence[int], found: Iterator[Mapping[str, Any]], groups: list[str], merged: _Sums
) -> Iterator[tuple[Mapping[str, Any], dict[str, Any]]]:
    """Yield each result with the line of `merged` that it belongs to."""
    for each in found:
        place = merged[bisect_right(edges, each["start_time"]) - 1]
        for result in each["results"]:
            values = {group: result.get(group) for group in groups}
            yield result, place.setdefault(tuple(str(value) for value in values.values()), values)


def _to_buckets(edges: Sequence[int], merged: _Sums) -> list[dict[str, Any]]:
    return [
        {"object": "bucket", "start_time": start, "end_time": end, "results": [lines[group] for group in sorted(lines)]}
        for (start, end), lines in zip(pairwise(edges), merged, strict=True)
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


def _print(columns: Sequence[str], rows: Sequence[Sequence[Any]], numbers: int) -> None:
    if rows:
        print_table(columns, rows, right=frozenset(columns[-numbers:]))
    else:
        typer.echo("nothing yet: usage is counted when a request has ended", err=True)
