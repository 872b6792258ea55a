"""Renders docs/event-types.md and docs/events.schema.json: every type of event, from their catalogue: `python scripts/events_page.py`."""

import json
from pathlib import Path

from tollway.domain.events import CATALOG, CATALOG_VERSION, EventType, make_schema

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "event-types.md"
SCHEMA = DOCS / "events.schema.json"

_BEGIN = f"""# Types of events

Events that webhooks receive ([events.md](events.md)). Version {CATALOG_VERSION} of the catalogue, rendered by `make docs` from
`src/tollway/domain/events.py`: a new type or a new field keeps the version. Each event has `id`, `object`, `type`, `created_at`,
`organization_id`, `sequence` and `data`, which has the fields below.
"""


def render() -> str:
    """The page."""
    return _BEGIN + "".join(_section(each) for each in CATALOG)


def render_schema() -> str:
    """The JSON Schemas of all types, by type."""
    schema = {"version": CATALOG_VERSION, "types": {str(each): make_schema(each) for each in CATALOG}}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _section(type: EventType) -> str:
    kind = CATALOG[type]
    audience = " Operators alone receive it." if kind.is_of_platform else ""
    head = f"\n## `{type}`\n\n{kind.summary}{audience}\n\n| Field | Type | Meaning | Example |\n| --- | --- | --- | --- |\n"
    lines = [
        f"| `{name}` | {field.kind}{' or null' if field.is_nullable else ''} | {field.text} | `{json.dumps(field.example)}` |\n"
        for name, field in kind.fields.items()
    ]
    return head + "".join(lines)


if __name__ == "__main__":
    PAGE.write_text(render(), "utf-8")
    SCHEMA.write_text(render_schema(), "utf-8")
