"""Commands have an option for each billing class of the table, and receive the values by class."""

import typer
from typer.testing import CliRunner

from tollway.cli.class_options import with_price_options, with_quantity_options
from tollway.domain.billing_classes import BILLING_CLASSES, BillingClass, Unit


def test_every_class_has_a_price_option_and_a_price_left_out_is_none() -> None:
    received: dict[BillingClass, str | None] = {}
    app = typer.Typer()

    @app.command()
    @with_price_options
    def command(name: str, prices: dict[BillingClass, str | None], output: str = "table") -> None:
        assert (name, output) == ("m", "json")
        received.update(prices)

    stated = {row.billing_class: str(at) for at, row in enumerate(BILLING_CLASSES) if row.required}
    arguments = [f"--{billing_class.replace('_', '-')}-price={text}" for billing_class, text in stated.items()]
    result = CliRunner().invoke(app, ["m", *arguments, "--output", "json"])
    assert result.exit_code == 0, result.output
    assert received == {row.billing_class: stated.get(row.billing_class) for row in BILLING_CLASSES}
    assert CliRunner().invoke(app, ["m", *arguments[1:]]).exit_code == 2, "a required price was left out"


def test_every_class_but_the_request_has_a_quantity_option_and_a_quantity_left_out_is_zero() -> None:
    received: dict[BillingClass, int] = {}
    app = typer.Typer()

    @app.command()
    @with_quantity_options
    def command(quantities: dict[BillingClass, int]) -> None:
        received.update(quantities)

    counted = [row for row in BILLING_CLASSES if row.unit is not Unit.REQUEST]
    arguments = [f"--{row.line_item.replace('_', '-')}={at}" for at, row in enumerate(counted) if row.required]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert received == {row.billing_class: at if row.required else 0 for at, row in enumerate(counted)}
