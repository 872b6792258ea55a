"""`tollway usage` and `tollway costs`: what was used, and what it costs."""

import re
import time
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Annotated, Any

import typer

from tollway.cli.client import Control, ControlUrl, DataDir, Key, Organization, connect_tenant
from tollway.cli.output import Output, OutputOption, print_json, print_table
from tollway.domain.money import format_amount
from tollway.settings import OperatorError

Since = Annotated[str, typer.Option(help="How far back: 30m, 24h, 7d, or an instant in seconds since 1970.")]

BUCKETS_MAX = {"1m": 1440, "1h": 168, "1d": 31}
"""Most buckets of one answer, by width, as OpenAI has it."""


class Bucket(StrEnum):
    """Width of a line in time."""

    MINUTE = "1m"
    HOUR = "1h"
    DAY = "1d"


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


def usage(
    since: Since = "24h",
    bucket: Annotated[Bucket | None, typer.Option(help="One line per minute, hour or day; else one in all.")] = None,
    by: Annotated[list[UsageGroup] | None, typer.Option(help="Group by this field (repeatable).")] = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Show usage: requests and tokens, by model unless told otherwise. Input includes what came from the cache."""
    groups = [FIELDS[group] for group in (by or [UsageGroup.MODEL])]
    width = bucket or _width(since)
    with connect_tenant(control_url, key, data_dir, organization) as control:
        buckets = [
            each
            for kind in ("completions", "embeddings")
            for each in _buckets(control, f"/organization/usage/{kind}", since, width, groups)
        ]
    if output is Output.JSON:
        print_json(sorted(buckets, key=lambda each: each["start_time"]))
        return
    numbers = ("num_model_requests", "input_tokens", "input_cached_tokens", "output_tokens")
    sums: dict[tuple[Any, ...], list[int]] = {}
    for each in buckets:
        start = () if bucket is None else (each["start_time"],)
        for result in each["results"]:
            line = sums.setdefault((*start, *(result.get(group) for group in groups)), [0] * len(numbers))
            for at, name in enumerate(numbers):
                line[at] += result.get(name) or 0
    columns = [*([] if bucket is None else ["from"]), *groups, "requests", "input", "cached", "output"]
    rows = [(*_shown(names, bucket), *line) for names, line in sorted(sums.items(), key=_order)]
    if len(rows) > 1:
        totals = [sum(column) for column in zip(*sums.values(), strict=True)]
        rows.append(("total", *[""] * (len(columns) - len(numbers) - 1), *totals))
    _print(columns, rows, len(numbers))


def costs(
    since: Since = "30d",
    daily: Annotated[bool, typer.Option("--daily", help="One line per day; else one in all.")] = False,
    by: Annotated[list[CostGroup] | None, typer.Option(help="Group by this field (repeatable).")] = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Show exact costs by line item (model and token class) unless told otherwise. Whole days, in UTC."""
    groups = [FIELDS[group] for group in (by or [CostGroup.LINE_ITEM])]
    with connect_tenant(control_url, key, data_dir, organization) as control:
        buckets = list(_buckets(control, "/organization/costs", since, Bucket.DAY, groups))
    if output is Output.JSON:
        print_json(buckets)
        return
    sums: dict[tuple[Any, ...], int] = {}
    for each in buckets:
        start = (each["start_time"],) if daily else ()
        for result in each["results"]:
            names = (*start, *(result.get(group) for group in groups), result["amount"]["currency"].upper())
            sums[names] = sums.get(names, 0) + int(result["amount"]["value_pico"])
    bucket = Bucket.DAY if daily else None
    columns = [*(["from"] if daily else []), *groups, "currency", "amount"]
    rows = [(*_shown(names, bucket), format_amount(pico)) for names, pico in sorted(sums.items(), key=_order)]
    if len(rows) > 1 and len({names[-1] for names in sums}) == 1:
        blank = [""] * (len(columns) - 3)
        rows.append(("total", *blank, next(iter(sums))[-1], format_amount(sum(sums.values()))))
    _print(columns, rows, 1)


def _buckets(control: Control, path: str, since: str, width: Bucket, groups: list[str]) -> Iterator[Mapping[str, Any]]:
    """All buckets from `since` on, page after page."""
    query: dict[str, Any] = {
        "start_time": instant_of(since, time.time()),
        "bucket_width": width,
        "group_by": groups,
        "limit": BUCKETS_MAX[width],
    }
    while True:
        page = control.get(path, **query)
        yield from page["data"]
        if not page["has_more"]:
            return
        query["page"] = page["next_page"]


def instant_of(text: str, now_seconds: float) -> int:
    """Seconds since 1970 of "24h" ago, or of an instant given as such."""
    match = re.fullmatch(r"(\d{1,6})([mhdw])", text)
    if match:
        seconds = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}[match.group(2)]
        return max(0, int(now_seconds) - int(match.group(1)) * seconds)
    if re.fullmatch(r"\d{1,12}", text):
        return int(text)
    raise OperatorError(f"--since {text} is no time span", hint="for example 30m, 24h or 7d", exit_code=2)


def _width(since: str) -> Bucket:
    """The finest buckets that sum up to now in a few pages: an edge may include up to one bucket more."""
    age_seconds = time.time() - instant_of(since, time.time())
    return Bucket.MINUTE if age_seconds <= 86_400 else Bucket.HOUR if age_seconds <= 31 * 86_400 else Bucket.DAY


def _order(item: tuple[tuple[Any, ...], Any]) -> tuple[str, ...]:
    return tuple(f"{name:020}" if isinstance(name, int) else str(name or "") for name in item[0])


def _shown(names: tuple[Any, ...], bucket: Bucket | None) -> tuple[Any, ...]:
    if bucket is None:
        return names
    form = "%Y-%m-%d" if bucket is Bucket.DAY else "%Y-%m-%d %H:%M"
    return (time.strftime(form, time.gmtime(names[0])), *names[1:])


def _print(columns: list[str], rows: list[tuple[Any, ...]], numbers: int) -> None:
    if rows:
        print_table(columns, rows, right=frozenset(columns[-numbers:]))
    else:
        typer.echo("nothing yet: usage is counted when a request has ended", err=True)
