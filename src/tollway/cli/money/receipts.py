"""`tollway receipt`: what one request was billed."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from tollway.cli.client import ControlUrl, DataDir, Key, Organization, check_id, connect_tenant
from tollway.cli.output import Output, OutputOption, print_fields, print_rows
from tollway.cli.times import Zone, with_times
from tollway.domain import ids
from tollway.domain.money import format_amount

PRICE_INSTANTS = ("valid_from", "holds_by", "followed_at", "charged_until")
LINE_COLUMNS = ["billing_class", "quantity", "price_per_million", "amount"]


def receipt(
    request: Annotated[str, typer.Argument(metavar="REQUEST", help="Id of the request (header x-request-id).")],
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Print the receipt of a request: what was counted, at which price, with every correction."""
    check_id(ids.REQUEST, request, "request", "every answer has it in x-request-id")
    with connect_tenant(control_url, key, data_dir, organization) as control:
        found = control.get(f"/organization/requests/{request}")
        if output is Output.TABLE:
            shown = control.get_zone(zone)
            (found,) = with_times([found], shown, admitted_at="admitted_at", ended_at="ended_at")
            (found["price"],) = with_times([found["price"]], shown, **{name: name for name in PRICE_INSTANTS})
    if output is Output.JSON:
        print_fields(output, found)
        return
    for name in ("cost", "net_cost"):
        found[name] = _show_amount(found[name])
    found["billing_period"] = found["billing_period"]["id"]
    lines, adjustments, price = found.pop("lines"), found.pop("adjustments"), found.pop("price")
    for name in PRICE_INSTANTS:
        found[f"price_{name}"] = price[name]
    print_fields(output, found)
    print()
    print_rows(
        output, LINE_COLUMNS, [{**line, "amount": format_amount(int(line["amount_pico"]))} for line in lines], none="nothing is billed"
    )
    if adjustments:
        print()
        rows = [{**each, "amount": _show_amount(each["amount"])} for each in adjustments]
        print_rows(output, ["id", "kind", "amount", "reason"], rows)


def _show_amount(amount: Mapping[str, Any]) -> str:
    return f"{amount['value_decimal']} {amount['currency'].upper()}"
