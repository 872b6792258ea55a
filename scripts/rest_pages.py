"""Renders the reference of the REST API as Markdown, one page for each tag, from the published OpenAPI description: `render_pages()`.

`scripts/docs_site.py` puts the pages into the site. They are not kept in the repository: they say what `GET /openapi.json` of control
says, at several times its length.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import FastAPI

from tollway.control.api.app import PUBLIC_ROUTERS
from tollway.control.api.descriptions import describe

Schema = Mapping[str, Any]

BOUNDS = {
    "minimum": "at least", "maximum": "at most", "exclusiveMinimum": "above", "exclusiveMaximum": "below",
    "minLength": "characters at least", "maxLength": "characters at most", "minItems": "items at least", "maxItems": "items at most",
    "pattern": "pattern", "const": "always",
    "default": "default",
}  # fmt: skip
"""Keywords of JSON Schema that are shown beside a type, with their words."""

DEPTH_MAX = 6
"""Schemas inside schemas in an example; a schema that contains itself ends there."""

OPENING = """# REST API

Operators and tenants manage Tollway by this API of control. These pages are made from its OpenAPI 3.1 description, which control serves at
`GET /openapi.json`, and as one page at `GET /reference`. [Access](../access.md) has the roles that may call each operation,
[identity](../identity.md) explains keys, and [errors](../errors.md) lists the codes.

- A request carries its key as `Authorization: Bearer KEY`: an *admin key* of an organization, or an *operator key* of the platform.
- Bodies are JSON in UTF-8. A field that an operation does not know is refused.
- Errors have the shape of OpenAI's API: `{"error": {"message": ..., "type": ..., "param": ..., "code": ...}}`.

| Subject | Operations |
|---|---|
"""

KEYS = {"adminKey": "admin key", "platformKey": "operator key", "nodeKey": "key of a node", "apiKey": "API key"}


def read_description() -> dict[str, Any]:
    """Return the OpenAPI description of the operations that operators and tenants call."""
    app = FastAPI(title="Tollway")
    for router in PUBLIC_ROUTERS:
        app.router.routes.extend(router.routes)
    return describe(app)


def render_pages(document: Mapping[str, Any]) -> dict[str, str]:
    """Return the Markdown of each page by its file name; `index.md` names the others."""
    by_tag: dict[str, list[tuple[str, str, Schema]]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            by_tag.setdefault(operation["tags"][0], []).append((method, path, operation))
    schemas = document["components"]["schemas"]
    pages = {}
    index = [OPENING]
    for tag, operations in sorted(by_tag.items()):
        name = tag.replace(" ", "-")
        index.append(f"| [{tag.capitalize()}]({name}.md) | {len(operations)} |\n")
        pages[f"{name}.md"] = "".join(_render_page(tag, operations, schemas))
    names = "\n".join(sorted(name.removesuffix(".md") for name in pages))
    index.append(f"\n```{{toctree}}\n:hidden:\n\n{names}\n```\n")
    return pages | {"index.md": "".join(index)}


def _render_page(tag: str, operations: list[tuple[str, str, Schema]], schemas: Schema) -> Iterator[str]:
    yield f"# {tag.capitalize()}\n"
    for method, path, operation in operations:
        yield f"\n## {method.upper()} {_text(path)}\n\n{_text(operation.get('description', ''))}\n\n"
        yield f"Key: {_key(operation)}.\n"
        parameters = [
            (each["name"], each["in"], _type(each["schema"], schemas), each.get("required", False), each)
            for each in operation.get("parameters", ())
        ]
        if parameters:
            yield "\n| Parameter | In | Type | Meaning | Example |\n|---|---|---|---|---|\n"
            for name, place, kind, is_required, shape in parameters:
                text = _text(shape.get("description", "")) + (" Required." if is_required else "")
                yield f"| `{name}` | {place} | {kind} | {text} | {_code(shape.get('example'))} |\n"
        body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
        if body:
            yield "\n**Body**\n"
            yield from _render_fields(body, schemas)
        yield from _render_example(method, path, operation, body, schemas)
        for status, response in sorted(operation["responses"].items()):
            schema = response.get("content", {}).get("application/json", {}).get("schema")
            if status.startswith("2") and schema:
                yield f"\n**Answer {status}**\n"
                yield from _render_fields(schema, schemas)
                yield f"\n```json\n{json.dumps(make_example(schema, schemas), indent=2, ensure_ascii=False)}\n```\n"
        errors = [(status, each) for status, each in sorted(operation["responses"].items()) if not status.startswith("2")]
        yield "\n**Errors**\n\n" + "".join(f"- {status}: {_text(each['description'])}\n" for status, each in errors)


def _key(operation: Schema) -> str:
    """Return which key an operation takes, with the permission that the key needs."""
    needed = [
        KEYS.get(scheme, scheme) + "".join(f", permission `{each}`" for each in permissions)
        for requirement in operation["security"]
        for scheme, permissions in requirement.items()
    ]
    return " or ".join(needed) or "none"


def _render_fields(schema: Schema, schemas: Schema) -> Iterator[str]:
    """Yield a table of the fields of a schema. Fields of an object inside stand below it, as `outer.inner`."""
    rows = list(_list_fields(schema, schemas, "", ()))
    if not rows:
        yield f"\n{_type(schema, schemas)}: {_text(schema.get('description', 'no fields of its own'))}\n"
        return
    yield "\n| Field | Type | Meaning | Example |\n|---|---|---|---|\n"
    for name, kind, text, example in rows:
        yield f"| `{name}` | {kind} | {text} | {example} |\n"


def _list_fields(schema: Schema, schemas: Schema, prefix: str, inside: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield a row for every field. `inside`: names of the schemas around this one, each of which is expanded once."""
    schema, inside = _expand(schema, schemas, inside)
    required = schema.get("required", ())
    for field, shape in schema.get("properties", {}).items():
        name = prefix + field
        kind = _type(shape, schemas) + ("" if field in required else ", optional")
        example = shape.get("example", next(iter(shape.get("examples", ())), None))
        yield name, kind, _text(shape.get("description", "")), _code(example)
        for inner, suffix in _list_objects(shape):
            target = inner.get("$ref", "").rpartition("/")[2]
            if target not in inside and len(inside) < DEPTH_MAX:
                yield from _list_fields(inner, schemas, f"{name}{suffix}.", inside)


def _list_objects(shape: Schema) -> Iterator[tuple[Schema, str]]:
    """Yield the objects that a field may hold, each with what stands behind the field's name: [] for a list."""
    if "$ref" in shape or "properties" in shape:
        yield shape, ""
    for each in shape.get("anyOf", ()):
        yield from _list_objects(each)
    if "items" in shape:
        for inner, suffix in _list_objects(shape["items"]):
            yield inner, "[]" + suffix


def _expand(schema: Schema, schemas: Schema, inside: tuple[str, ...]) -> tuple[Schema, tuple[str, ...]]:
    if reference := schema.get("$ref"):
        name = reference.rpartition("/")[2]
        return schemas[name], (*inside, name)
    return schema, inside


def make_example(schema: Schema, schemas: Schema, depth: int = 0) -> Any:
    """Return an example of a value, composed from the examples of its fields."""
    if depth > DEPTH_MAX:
        return None
    schema, _ = _expand(schema, schemas, ())
    for value in (schema.get("example"), *schema.get("examples", ())):
        if value is not None:
            return value
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    if "default" in schema and schema["default"] is not None:
        return schema["default"]
    if "anyOf" in schema:
        return make_example(schema["anyOf"][0], schemas, depth + 1)
    if "properties" in schema:
        return {name: make_example(shape, schemas, depth + 1) for name, shape in schema["properties"].items()}
    if schema.get("type") == "array":
        return [make_example(schema.get("items", {}), schemas, depth + 1)]
    return {"string": "...", "integer": 0, "number": 0, "boolean": False, "object": {}}.get(schema.get("type", ""))


def _render_example(method: str, path: str, operation: Schema, body: Schema | None, schemas: Schema) -> Iterator[str]:
    """Yield the request as a line of curl. Of the body it has the fields that are required, or the first one where none is."""
    for each in operation.get("parameters", ()):
        if each["in"] == "path":
            path = path.replace(f"{{{each['name']}}}", str(each.get("example", each["name"].upper())))
    query = [
        f"{each['name']}={each.get('example')}"
        for each in operation.get("parameters", ())
        if each["in"] == "query" and each.get("required")
    ]
    url = f'"$TOLLWAY_CONTROL_URL{path}{"?" + "&".join(query) if query else ""}"'
    lines = [f"curl -X {method.upper()} {url}" if method != "get" else f"curl {url}"]
    if operation["security"]:
        lines.append('-H "Authorization: Bearer $TOLLWAY_KEY"')
    if body is not None:
        whole = make_example(body, schemas)
        required = _expand(body, schemas, ())[0].get("required", ())
        if isinstance(whole, dict):
            whole = {name: value for name, value in whole.items() if name in required} or dict(list(whole.items())[:1])
        text = json.dumps(whole, ensure_ascii=False).replace("'", "'\\''")
        lines.append("-H 'Content-Type: application/json'")
        lines.append(f"-d '{text}'")
    yield "\n```sh\n" + " \\\n  ".join(lines) + "\n```\n"


def _type(schema: Schema, schemas: Schema) -> str:
    """Return the type of a value with its bounds, as Markdown in the cell of a table."""
    if reference := schema.get("$ref"):
        target = schemas[reference.rpartition("/")[2]]
        return "object" if "properties" in target else _type(target, schemas)
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type(each, schemas) for each in schema["anyOf"]))
    if schema.get("type") == "array":
        kind = f"list of {_type(schema.get('items', {}), schemas)}"
    elif "enum" in schema:
        kind = " \\| ".join(_code(each) for each in schema["enum"])
    else:
        type_ = schema.get("type", "any")
        kind = " or ".join(type_) if isinstance(type_, list) else str(type_)
    shown = [name for name in BOUNDS if schema.get(name) is not None and not (name == "default" and "const" in schema)]
    return ", ".join([kind, *(f"{BOUNDS[name]} {_code(schema[name])}" for name in shown)])


def _code(value: object) -> str:
    """Return a value as code in the cell of a table; nothing for None."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = text.replace("|", "\\|").replace("\n", " ")
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def _text(text: str) -> str:
    """Return prose of the description for a cell of a table or a paragraph: what is code there stays code, the rest has no markup."""
    joined = " ".join(text.split())
    pieces = joined.split("`")
    for index in range(0, len(pieces), 2):
        for sign in "\\*_[]<>{}|#$":
            pieces[index] = pieces[index].replace(sign, "\\" + sign)
    for index in range(1, len(pieces), 2):
        pieces[index] = pieces[index].replace("|", "\\|")
    return "`".join(pieces)
