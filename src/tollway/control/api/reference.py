"""The API reference as one HTML page, rendered from the OpenAPI description: no script, no style sheet, nothing from another host."""

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

CONTENT_SECURITY_POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
"""The page loads and runs nothing."""

BOUNDS = ("minimum", "maximum", "minLength", "maxLength", "pattern", "const", "enum")
"""Keywords of JSON Schema that are shown beside a type."""


def render(document: Mapping[str, Any]) -> str:
    """Render an OpenAPI document. Every text is escaped."""
    return "\n".join(_render(document))


def _render(document: Mapping[str, Any]) -> Iterator[str]:
    title = escape(f"{document['info']['title']} API")
    yield f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title></head><body><h1>{title}</h1>'
    yield '<p>Errors have one shape: <a href="#Error">Error</a>.</p><h2>Operations</h2>'
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield from _render_operation(path, method, operation)
    yield "<h2>Schemas</h2>"
    for name, schema in document["components"]["schemas"].items():
        yield f'<h3 id="{escape(name)}">{escape(name)}</h3><p>{escape(schema.get("description", ""))}</p>'
        required = schema.get("required", ())
        rows = [
            (field, _type(shape) + ("" if field in required else ", optional"), shape)
            for field, shape in schema.get("properties", {}).items()
        ]
        yield from _render_rows(rows)
    yield "</body></html>"


def _render_operation(path: str, method: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"<h3>{escape(method.upper())} {escape(path)}</h3><p>{escape(operation.get('description', ''))}</p>"
    schemes = [name for requirement in operation["security"] for name in requirement]
    yield f"<p>Key: {escape(', '.join(schemes) or 'none')}.</p>"
    yield from _render_rows([(each["name"], f"{each['in']}, {_type(each['schema'])}", each) for each in operation.get("parameters", ())])
    for status, response in operation["responses"].items():
        content = response.get("content", {}).get("application/json", {}).get("schema", {})
        yield f"<p>{escape(status)}: {escape(response['description'])} {_type(content) if content else ''}</p>"


def _render_rows(rows: list[tuple[str, str, Mapping[str, Any]]]) -> Iterator[str]:
    if not rows:
        return
    yield "<table><tr><th>Name</th><th>Type</th><th>Meaning</th><th>Example</th></tr>"
    for name, type, shape in rows:
        example = shape.get("example", next(iter(shape.get("examples", ())), ""))
        cells = (escape(name), type, escape(shape.get("description", "")), escape(str(example)))
        yield f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    yield "</table>"


def _type(schema: Mapping[str, Any]) -> str:
    """Return the type of a schema with its bounds, as HTML."""
    if reference := schema.get("$ref"):
        name = escape(reference.rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_type(each) for each in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    bounds = [f"{name} {schema[name]}" for name in BOUNDS if name in schema]
    return escape(" ".join([str(schema.get("type", "any")), *bounds]))
