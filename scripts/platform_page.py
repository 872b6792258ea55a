"""Renders docs/platform.schema.json, the JSON schema of the platform file, from its declarations: `python scripts/platform_page.py`."""

import json
from pathlib import Path
from typing import Any

import msgspec

from tollway.cli.catalog.platform_file import PlatformFile

PAGE = Path(__file__).parent.parent / "docs" / "platform.schema.json"


def render() -> str:
    """Return the schema. Editors that read it complete names and mark mistakes."""
    schema = msgspec.json.schema(PlatformFile)
    for name, described in schema["$defs"].items():
        if described.get("type") == "object":
            described["additionalProperties"] = False  # unknown names are refused
        _accept_numbers(described["properties"] if name in ("PriceFile", "UnitsFile") else {})
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Tollway platform file"}
    return json.dumps(head | schema, indent=1) + "\n"


def _accept_numbers(properties: dict[str, Any]) -> None:
    """Prices may be written as numbers: they are read as they are written, never as floats."""
    for price in properties.values():
        if price.get("type") == "string":
            price["type"] = ["string", "number"]


if __name__ == "__main__":
    PAGE.write_text(render(), "utf-8")
