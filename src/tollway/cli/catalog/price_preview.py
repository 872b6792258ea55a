"""`tollway prices preview`: who would have paid more under a draft, who less, and by how much."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import tzinfo
from pathlib import Path
from typing import Annotated, Any

import typer

from tollway.cli.catalog.picture import Bar, svg_bars, text_bars
from tollway.cli.client import Control, ControlUrl, DataDir, Key, connect, segment
from tollway.cli.output import Output, OutputOption, is_pretty, print_json, print_table
from tollway.cli.times import MaybeSince, Until, Zone, read_instant, show_day
from tollway.domain.currencies import CURRENCIES
from tollway.domain.money import round_amount
from tollway.settings import OperatorError

BAR_WIDTH = 20
"""Characters of a bar to either side: the table stays narrower than most terminals."""

MORE_DECIMALS = 2
"""Shown beyond the currency's smallest unit, because a month of a small tenant is less than a cent. JSON has every digit."""


def preview(
    draft_id: Annotated[str, typer.Argument(metavar="DRAFT_ID", help="See `tollway prices drafts`.")],
    since: MaybeSince = None,
    until: Until = None,
    zone: Zone = None,
    everybody: Annotated[
        bool,
        typer.Option(
            "--all-organizations", help="As if every organization of the currency paid by the draft's book, those of other books too."
        ),
    ] = False,
    top: Annotated[int, typer.Option(help="Organizations to show; those whose bill changes most.", min=1)] = 30,
    svg: Annotated[Path | None, typer.Option("--svg", metavar="FILE", help="Save the picture too.")] = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Re-rate history under a draft and show, by organization, who pays more and who pays less.

    The last full month (UTC) by default. What a request was billed is compared with what it would have cost under the draft;
    requests that the draft has no price for would not have been served, and are counted apart.
    """
    body: dict[str, Any] = {"everybody": everybody}
    with connect(control_url, key, data_dir) as control:
        shown_zone = control.get_zone(zone)
        now_seconds = time.time()
        if since is not None:
            body["from"] = read_instant(since, shown_zone, now_seconds, option="--since")
        if until is not None:
            body["to"] = read_instant(until, shown_zone, now_seconds, option="--until")
        result = _follow(control.stream(f"/platform/price_drafts/{segment(draft_id)}/preview", body))
        names = _names(control, result["organizations"])
    for each in result["organizations"]:
        each["organization"] = names.get(each["organization_id"], each["organization_id"])
    changed = sorted(result["organizations"], key=lambda each: -abs(int(each["difference_pico"])))
    shown = sorted(changed[:top], key=lambda each: -int(each["difference_pico"]))
    if svg is not None:
        svg.write_text(_picture(result, shown, shown_zone), encoding="utf-8")
    if output is Output.JSON:
        print_json(result)
    else:
        _print(result, shown, shown_zone, hidden=changed[top:])


def _follow(lines: Iterator[Mapping[str, Any]]) -> dict[str, Any]:
    """The result at the end of `lines`, with progress on the terminal meanwhile."""
    started, watched = time.monotonic(), sys.stderr.isatty()
    result: dict[str, Any] = {}
    for line in lines:
        if line["object"] != "platform.price_preview.progress":
            result = dict(line)
        elif watched:
            rate = int(line["events"] / max(time.monotonic() - started, 0.001))
            print(f"\r\x1b[K{line['percent']:3} %  {line['events']:,} events  {rate:,}/s", end="", file=sys.stderr, flush=True)
    if watched:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    if not result:
        raise OperatorError("the preview broke off", hint="try again; nothing was changed")
    return result


def _names(control: Control, organizations: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    if not organizations:
        return {}
    return {each["id"]: each["name"] for each in control.list_all("/platform/organizations", include_archived=True)}


def _print(result: Mapping[str, Any], shown: Sequence[Mapping[str, Any]], zone: tzinfo, *, hidden: Sequence[Mapping[str, Any]]) -> None:
    currency, total = result["currency"], result["total"]
    print(f"requests {_show_range(result, zone)}, {_span(result)}, in {currency}")
    if not result["organizations"]:
        print("no organization that would pay by this draft used anything", file=sys.stderr)
        return
    bars = text_bars([int(each["difference_pico"]) for each in shown], BAR_WIDTH, pretty=is_pretty(sys.stdout))
    rows = [[*_row(each["organization"], each, currency), bar] for each, bar in zip(shown, bars, strict=True)]
    if hidden:
        rest = {name: sum(int(each[name]) for each in hidden) for name in ("events", "current_pico", "draft_pico", "difference_pico")}
        rows.append([*_row(f"and {len(hidden)} more", rest, currency), ""])
    rows.append([*_row("total", total, currency), ""])
    heading = f"{'pays less':>{BAR_WIDTH}} | pays more"
    columns = ["organization", "events", "billed", "draft", "difference", "%", heading]
    print_table(columns, rows, right=frozenset(columns[1:6]))
    unpriced = [each for each in result["organizations"] if each["unpriced_events"]]
    if unpriced:
        amount = _amount(int(total["unpriced_pico"]), currency)
        events, amount = f"{total['unpriced_events']:,}", f"{_amount(int(total['unpriced_pico']), currency)} {currency}"
        print(f"{events} events of {len(unpriced)} organizations have no price under the draft: their models would be closed.")
        print(f"What they were billed, {amount}, is in `billed` and in no difference.")


def _row(name: str, values: Mapping[str, Any], currency: str) -> list[str | None]:
    difference = int(values["difference_pico"])
    percent = values.get("difference_percent")
    return [
        name,
        f"{values['events']:,}",
        _amount(int(values["current_pico"]), currency),
        _amount(int(values["draft_pico"]), currency),
        ("+" if difference > 0 else "") + _amount(difference, currency),
        None if percent is None else percent if percent.startswith("-") else f"+{percent}",
    ]


def _picture(result: Mapping[str, Any], shown: Sequence[Mapping[str, Any]], zone: tzinfo) -> str:
    currency = result["currency"]
    bars = []
    for each in shown:
        difference, percent = int(each["difference_pico"]), each["difference_percent"]
        text = ("+" if difference > 0 else "") + _amount(difference, currency)
        bars.append(Bar(each["organization"], difference, text if percent is None else f"{text}  ({percent} %)"))
    total = _amount(int(result["total"]["difference_pico"]), currency)
    title = f"Change of bills under draft {result['draft_id']}, in {currency}"
    span = f"Requests {_show_range(result, zone)}, {_span(result)}. Left: pays less. All together: {total}."
    return svg_bars(title, span, bars)


def _show_range(result: Mapping[str, Any], zone: tzinfo) -> str:
    return f"from {show_day(result['from'], zone)} to {show_day(result['to'], zone)}"


def _span(result: Mapping[str, Any]) -> str:
    return f"{result['total']['events']:,} events of {len(result['organizations'])} organizations"


def _amount(pico: int, currency: str) -> str:
    known = CURRENCIES.get(currency)
    return round_amount(pico, (known.minor_units if known else 2) + MORE_DECIMALS)
