"""Command-line options that exist once for each billing class, so that a new class needs no edit of a command."""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from tollway.domain.billing_classes import BILLING_CLASSES, PER_MILLION, BillingClass, BillingClassRow, Unit

Command = Callable[..., None]


def with_price_options(command: Command) -> Command:
    """Replace the parameter `prices` of a command by an option for the price of each class. The command receives the texts by class, None
    where one was left out."""
    names = {row.billing_class: f"{row.billing_class}_price" for row in BILLING_CLASSES}
    options = [_option(names[row.billing_class], str | None, None, _describe_price(row), row) for row in BILLING_CLASSES]
    return _replace_parameter(command, "prices", names, options)


def with_unit_cost_options(command: Command) -> Command:
    """Replace the parameter `costs` of a command by an option for what a unit of each class costs whoever serves it. The command receives
    the texts by class, None where one was left out."""
    names = {row.billing_class: f"{row.billing_class}_cost" for row in BILLING_CLASSES}
    options = []
    for row in BILLING_CLASSES:
        help = _describe_price(row).replace("Price", "Cost", 1)
        help = help.replace("a decimal.", "a decimal; 0 if left out.") if row.required else help
        annotation = Annotated[str | None, typer.Option(f"--{row.billing_class.replace('_', '-')}-cost", help=help)]
        options.append(inspect.Parameter(names[row.billing_class], inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation))
    return _replace_parameter(command, "costs", names, options)


def with_quantity_options(command: Command) -> Command:
    """Replace the parameter `quantities` of a command by an option for the quantity of each class but the request. The command receives
    the numbers by class, 0 where one was left out."""
    rows = [row for row in BILLING_CLASSES if row.unit is not Unit.REQUEST]
    names = {row.billing_class: row.line_item for row in rows}
    return _replace_parameter(command, "quantities", names, [_option(row.line_item, int, 0, row.description, row) for row in rows])


def _describe_price(row: BillingClassRow) -> str:
    words = row.billing_class.replace("_", " ")
    if row.unit is not Unit.TOKEN:
        return f"Price per {f'1,000,000 {row.unit}s' if row.unit in PER_MILLION else row.unit}, a decimal; 0 if left out."
    absent = f"; as {row.price_of} if left out" if row.price_of else ""
    return f"Price per 1,000,000 {words} tokens, a decimal{absent}."


def _option(name: str, type: Any, absent: object, help: str, row: BillingClassRow) -> inspect.Parameter:
    default = inspect.Parameter.empty if row.required else absent
    annotation = Annotated[type, typer.Option(f"--{name.replace('_', '-')}", help=help)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _replace_parameter(command: Command, replaced: str, names: dict[BillingClass, str], options: list[inspect.Parameter]) -> Command:
    """Return `command` with the signature that Typer reads, in which `options` stand for one parameter."""

    @functools.wraps(command)
    def run(**given: Any) -> None:
        by_class = {billing_class: given.pop(name) for billing_class, name in names.items()}
        command(**given, **{replaced: by_class})

    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        if parameter.name == replaced:
            parameters += options
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run
