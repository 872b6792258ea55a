"""`tollway prices`: books, drafts and terms, for operators. What one model costs is also `tollway models price`; all of a platform's
prices can stand in the file that `tollway apply` reads."""

import time
from datetime import tzinfo
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from tollway.cli.catalog.platform_file import read_prices
from tollway.cli.catalog.price_preview import preview
from tollway.cli.client import Control, ControlUrl, DataDir, Key, complete_organizations, connect, segment
from tollway.cli.output import Output, OutputOption, print_json, print_rows, report_effect
from tollway.cli.times import ValidFrom, Zone, find_zone, read_instant, show_day, show_instant, with_times
from tollway.domain.billing_classes import BILLING_CLASSES, OTHER_CLASSES, BillingClass, BillingClassRow
from tollway.domain.price_books import format_discount, parse_discount
from tollway.settings import OperatorError

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.command()(preview)

CLASSES = [str(billing_class) for billing_class in BillingClass]

BookName = Annotated[str, typer.Argument(metavar="BOOK", help="Its name or id.")]
DraftId = Annotated[str, typer.Argument(metavar="DRAFT_ID", help="See `tollway prices drafts`.")]
OfOrganization = Annotated[str | None, typer.Option("--organization", metavar="NAME|ID", help="The organization.")]


@app.command("list")
def list_prices(
    model: Annotated[str | None, typer.Option("--model", metavar="MODEL", help="Only those of this model.")] = None,
    book: Annotated[str | None, typer.Option(metavar="NAME|ID", help="Only this book, as it stands and as it will be.")] = None,
    organization: OfOrganization = None,
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List prices per 1,000,000 tokens, and per request: of all lists and times, of one book, or what one organization pays now."""
    with connect(control_url, key, data_dir) as control:
        if organization is not None:
            if book is not None:
                raise OperatorError("--book and --organization ask for two different things", exit_code=2)
            control.act_for(organization)
            rows = [{**row, "tier": row["service_tier"]} for row in control.get("/organization/prices")["data"]]
            rows = [row for row in rows if model in (None, row["model"])]
        else:
            price_list = None if book is None else _find_book(control, book)["id"]
            rows = list(control.list_all("/platform/prices", model=model, list=price_list))
        rows.sort(key=lambda row: (row["model"], row["tier"], row.get("list", ""), row["valid_from"]))
        if output is Output.TABLE:
            rows = with_times(rows, control.get_zone(zone), valid_from="valid_from")
            if organization is None and book is None:
                names = {each["id"]: each["name"] for each in control.list_all("/platform/price_books")}
                rows = [{**row, "book": names.get(row["list"])} for row in rows]
    lists = [] if organization is not None or book is not None else ["list", "book"]
    print_rows(output, ["model", "tier", *lists, "currency", *_list_columns(rows), "valid_from"], rows, none="no prices yet")


@app.command()
def books(output: OutputOption = Output.TABLE, control_url: ControlUrl = None, key: Key = None, data_dir: DataDir = None) -> None:
    """List the price books. An organization without other terms pays by the default book of its currency."""
    with connect(control_url, key, data_dir) as control:
        rows = list(control.list_all("/platform/price_books"))
        if output is Output.TABLE and any(row["organization_id"] for row in rows):
            names = {each["id"]: each["name"] for each in control.list_all("/platform/organizations", include_archived=True)}
            rows = [{**row, "organization": names.get(row["organization_id"])} for row in rows]
    columns = ["id", "name", "currency", "default", "organization"]
    print_rows(output, columns, rows, none="no price books yet: the first price of a currency makes its default book")


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name of its own.")],
    currency: Annotated[str, typer.Option("--currency", metavar="CODE", help="Currency code of ISO 4217.")],
    organization: Annotated[str | None, typer.Option(metavar="NAME|ID", help="Whose own it is; general if left out.")] = None,
    default: Annotated[bool, typer.Option("--default", help="Who is billed in the currency pays by it, unless others are set.")] = False,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Add an empty price book."""
    body: dict[str, Any] = {"name": name, "currency": currency, "default": default}
    with connect(control_url, key, data_dir) as control:
        if organization is not None:
            body["organization_id"] = control.get_organization(organization)["id"]
        made = control.post("/platform/price_books", body)
    print_json(made) if output is Output.JSON else print(made["id"])


# ---- Drafts -----------------------------------------------------------------------------------------------------------


@app.command()
def draft(
    book: BookName,
    file: Annotated[Path | None, typer.Option("-f", "--file", metavar="FILE", help="YAML: prices by model, as in `apply`'s file.")] = None,
    from_book: Annotated[str | None, typer.Option("--from-book", metavar="NAME|ID", help="Begin with the prices of this book.")] = None,
    valid_from: ValidFrom = None,
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Write prices down without binding anybody. Next: `tollway prices check`, `preview`, `publish`."""
    lines = []
    for model, price in ({} if file is None else read_prices(file)).items():
        for tier, units in price.by_tier().items():
            given = msgspec.to_builtins(units)
            lines.append({"model": model, "tier": str(tier), **{name: given[name] for name in CLASSES if name in given}})
    with connect(control_url, key, data_dir) as control:
        body: dict[str, Any] = {
            "book_id": _find_book(control, book)["id"],
            "lines": lines,
            "valid_from": _valid_from(control, valid_from, zone),
        }
        if from_book is not None:
            body["from_book_id"] = _find_book(control, from_book)["id"]
        made = control.post("/platform/price_drafts", body)
    print_json(made) if output is Output.JSON else print(made["id"])


@app.command()
def drafts(
    closed: Annotated[bool, typer.Option("--closed", help="Show published and discarded drafts too.")] = False,
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List the drafts that are open."""
    with connect(control_url, key, data_dir) as control:
        rows = list(control.list_all("/platform/price_drafts", include_closed=closed))
        if output is Output.TABLE:
            names = {each["id"]: each["name"] for each in control.list_all("/platform/price_books")}
            rows = [{**row, "book": names[row["book_id"]], "lines": len(row["lines"])} for row in rows]
            rows = with_times(rows, control.get_zone(zone), valid_from="valid_from", created="created_at")
    print_rows(output, ["id", "book", "state", "lines", "valid_from", "created"], rows, none="no drafts: see `tollway prices draft`")


@app.command()
def check(
    draft_id: DraftId,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Check a draft for what would keep it from being published. Exit code 1 if it cannot be published."""
    with connect(control_url, key, data_dir) as control:
        found = control.post(f"/platform/price_drafts/{segment(draft_id)}/check")
    if output is Output.JSON:
        print_json(found)
    else:
        print_rows(output, ["severity", "model", "tier", "message"], found["findings"], none="nothing is wrong with it")
    raise typer.Exit(0 if found["publishable"] else 1)


@app.command()
def publish(
    draft_id: DraftId,
    accept_warnings: Annotated[bool, typer.Option("--accept-warnings", help="What the check warns of is meant.")] = False,
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Make a draft's lines the prices of its book, all at once. They stay; newer ones may follow."""
    with connect(control_url, key, data_dir) as control:
        made = control.post(f"/platform/price_drafts/{segment(draft_id)}/publish", {"accept_warnings": accept_warnings})
        shown = control.get_zone(zone)
    print_json(made) if output is Output.JSON else print(
        f"{len(made['lines'])} prices, valid from {show_instant(made['valid_from'], shown)}"
    )
    report_effect(made, shown)


@app.command()
def discard(
    draft_id: DraftId, output: OutputOption = Output.TABLE, control_url: ControlUrl = None, key: Key = None, data_dir: DataDir = None
) -> None:
    """Close a draft without publishing it."""
    with connect(control_url, key, data_dir) as control:
        discarded = control.post(f"/platform/price_drafts/{segment(draft_id)}/discard")
    print_json(discarded) if output is Output.JSON else print(f"discarded {draft_id}")


# ---- Terms ------------------------------------------------------------------------------------------------------------


@app.command()
def terms(
    organization: Annotated[str, typer.Argument(metavar="ORGANIZATION", help="Its name or id.", autocompletion=complete_organizations)],
    book: Annotated[str | None, typer.Option(metavar="NAME|ID", help="To pay by; the default one of its currency if left out.")] = None,
    discount: Annotated[str | None, typer.Option(metavar="PERCENT", help="Off every price of the book, for example 15%.")] = None,
    valid_from: ValidFrom = None,
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Show by which book an organization pays, at which discount, from when. Sets new terms if --book or --discount is given."""
    with connect(control_url, key, data_dir) as control:
        billed = control.get_organization(organization)
        shown = find_zone(zone or billed["time_zone"])
        path = f"/platform/organizations/{billed['id']}/price_terms"
        if book is not None or discount is not None:
            body: dict[str, Any] = {
                "discount_bp": _discount(discount),
                "valid_from": None if valid_from is None else _read_valid_from(valid_from, shown),
            }
            if book is not None:
                body["book_id"] = _find_book(control, book)["id"]
            report_effect(control.post(path, body), shown)
        elif valid_from is not None:
            raise OperatorError("--valid-from needs --book or --discount", exit_code=2)
        rows = control.get(path)["data"]
        names = {each["id"]: each["name"] for each in control.list_all("/platform/price_books")}
    if output is Output.TABLE:
        rows = [
            {
                "valid_from": show_day(row["valid_from"], shown) if row["valid_from"] else "the beginning",
                "book": names[row["book_id"]],
                "discount": format_discount(row["discount_bp"]),
            }
            for row in rows
        ]
    print_rows(output, ["valid_from", "book", "discount"], rows, none="no terms: its currency has no price book yet")


def _list_columns(rows: list[dict[str, Any]]) -> list[str]:
    """Return the classes to show: those of text, and of the others those that have another price than their default somewhere."""

    def is_priced(row: dict[str, Any], billing_class: BillingClassRow) -> bool:
        base = billing_class.price_of
        return bool(row[billing_class.billing_class] != ("0" if base is None else row[base]))

    return [
        str(each.billing_class)
        for each in BILLING_CLASSES
        if each.billing_class not in OTHER_CLASSES or any(is_priced(row, each) for row in rows)
    ]


# ---- Names and numbers ------------------------------------------------------------------------------------------------


def _find_book(control: Control, name_or_id: str) -> dict[str, Any]:
    books = list(control.list_all("/platform/price_books"))
    found = [each for each in books if name_or_id in (each["id"], each["name"])]
    if not found:
        names = ", ".join(each["name"] for each in books) or "none: see `tollway prices create`"
        raise OperatorError("no price book is called that", hint=f"there are: {names}", exit_code=2)
    return found[0]


def _discount(text: str | None) -> int:
    try:
        return 0 if text is None else parse_discount(text if text.endswith("%") else f"{text}%")
    except ValueError as error:
        raise OperatorError(f"--discount {text}: {error}", exit_code=2) from None


def _valid_from(control: Control, text: str | None, zone: str | None) -> int | None:
    return None if text is None else _read_valid_from(text, control.get_zone(zone))


def _read_valid_from(text: str, zone: tzinfo) -> int:
    return read_instant(text, zone, time.time(), option="--valid-from")
