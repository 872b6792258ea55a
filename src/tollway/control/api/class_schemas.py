"""API schemas whose fields are the billing classes: unit prices and quantities. Made from the one table, so a new class appears by itself.

A type checker cannot read a model that is made at run time, so it is given the base class; nothing here reads a field by name.
"""

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, create_model

from tollway.control.api.schemas import Amount, In, Out, PricePerMillion
from tollway.domain.billing_classes import (
    BILLING_CLASSES,
    OTHER_CLASSES,
    PER_MILLION,
    ROWS,
    BillingClass,
    Direction,
    PerClass,
    Quantities,
    Unit,
    UnitPrices,
    describe_unit_prices,
    parse_unit_price,
    with_default_prices,
)
from tollway.domain.usage import TOKENS_MAX

Count = Annotated[int, Field(ge=0, le=TOKENS_MAX)]

_PRICE_TYPES: dict[Unit, Any] = {unit: PricePerMillion if unit in PER_MILLION else Amount for unit in Unit}
_PRICE_TEXTS = {unit: f"Price of 1,000,000 {unit}s" if unit in PER_MILLION else f"Price of one {unit}" for unit in Unit}


def _price_field(*, is_answer: bool) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for row in BILLING_CLASSES:
        text = f"{_PRICE_TEXTS[row.unit]} as a decimal string, in the currency of the price. {row.description}"
        if is_answer:
            fields[row.billing_class] = (str, Field(description=text, examples=["0.27"]))
        elif row.required:
            fields[row.billing_class] = (_PRICE_TYPES[row.unit], Field(description=text, examples=["0.27"]))
        else:
            default = "nothing" if row.price_of is None else f"the price of {row.price_of}"
            text += f" Left out, it is {default}."
            fields[row.billing_class] = (_PRICE_TYPES[row.unit] | None, Field(default=None, description=text, examples=["0.27"]))
    return fields


def _quantity_fields() -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for row in BILLING_CLASSES:
        if row.unit is Unit.REQUEST:
            fields[row.billing_class] = (bool, Field(default=True, description="Whether the request itself is billed."))
        elif row.required:
            fields[row.billing_class] = (Count, Field(description=row.description, examples=[1200]))
        else:
            fields[row.billing_class] = (Count, Field(default=0, description=row.description, examples=[0]))
    return fields


if TYPE_CHECKING:

    class UnitPricesWrite(In):
        """Unit prices by class, as they are written."""

    class UnitPricesOut(Out):
        """Unit prices by class."""

    class QuantitiesWrite(In):
        """Quantities by class."""

else:
    UnitPricesWrite = create_model("UnitPricesWrite", __base__=In, __doc__="Unit prices by class.", **_price_field(is_answer=False))
    UnitPricesOut = create_model(
        "UnitPricesOut",
        __base__=Out,
        __doc__="Unit prices by class as decimal strings: a price list's may have more decimals than its book's, never a rounded one.",
        **_price_field(is_answer=True),
    )
    QuantitiesWrite = create_model(
        "QuantitiesWrite", __base__=In, __doc__="Quantities that are billed instead, by disjoint class.", **_quantity_fields()
    )


def unit_prices_of(written: UnitPricesWrite) -> UnitPrices:
    """Return the unit prices in pico-currency, with the default of every class that was left out."""
    texts = {row: getattr(written, row.billing_class) for row in BILLING_CLASSES}
    return with_default_prices({row.billing_class: parse_unit_price(row.unit, text) for row, text in texts.items() if text is not None})


def unit_prices_out(units: UnitPrices) -> dict[str, Any]:
    """Return unit prices as the fields of `UnitPricesOut`."""
    return {**describe_unit_prices(units)}


def quantities_of(written: QuantitiesWrite) -> Quantities:
    """Return the quantities as a vector; `request` is 1 if the request itself is billed."""
    return PerClass.from_values(int(getattr(written, billing_class)) for billing_class in BillingClass)


def quantities_out(quantities: Quantities) -> QuantitiesWrite:
    """Return quantities in the form in which they are written."""
    values: dict[str, Any] = dict(zip(BillingClass, quantities.values(), strict=True))
    return QuantitiesWrite(**values | {BillingClass.REQUEST: bool(quantities.request)})


def openai_tokens(used: Quantities) -> dict[str, Any]:
    """Return token counts under the names and in the nesting of OpenAI's usage API: parts are contained in their whole."""
    return {
        "input_tokens": used.sum_of(Direction.INPUT),
        "input_cached_tokens": used.cached_input,
        "output_tokens": used.sum_of(Direction.OUTPUT),
        "output_reasoning_tokens": used.reasoning,
    }


def other_quantities(used: Quantities) -> dict[str, int]:
    """Return the quantities of the classes that few requests use, by line item; those that are 0 are left out."""
    return {ROWS[billing_class].line_item: quantity for billing_class, quantity in used.items() if billing_class in OTHER_CLASSES}
