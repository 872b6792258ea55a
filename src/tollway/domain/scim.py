"""SCIM 2.0 on JSON values: attributes (RFC 7643), filters (RFC 7644, section 3.4.2.2), changes by PATCH (3.5.2), chosen attributes (3.9).

A resource is a dict whose names are those of its attributes. What a client sends is read by `read_resource` first, which gives names their
case, checks types and bounds, and leaves out what is not kept: directories send more than anybody keeps (RFC 7644, section 3.3).
Names and most texts are compared without case (RFC 7643, section 2.1).
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from tollway.domain.faults import PARAMETER_INVALID, PARAMETER_MISSING, Blame, Fault, FaultKind

Resource = dict[str, Any]


def _kind(code: str, status: int, message: str) -> FaultKind:
    return FaultKind(code=code, status=status, blame=Blame.CLIENT, message=message)


FILTER_INVALID = _kind("invalid_filter", 400, "The filter cannot be understood.")
PATH_INVALID = _kind("invalid_path", 400, "The path of the change cannot be understood.")
TARGET_MISSING = _kind("no_target", 400, "The path of the change matches nothing.")
ATTRIBUTE_IMMUTABLE = _kind("immutable_attribute", 400, "The attribute cannot be changed.")
TOO_MANY = _kind("too_many", 400, "The answer would be too large.")
PATCH_INVALID = _kind("invalid_patch", 400, "The body is not a list of changes (PatchOp).")
VALUE_TAKEN = _kind("uniqueness", 409, "Another resource has this value.")
PRECONDITION_FAILED = _kind("precondition_failed", 412, "The resource was changed meanwhile.")

USER_SCHEMA = "urn:ietf:params:scim:schemas:core:2.0:User"
GROUP_SCHEMA = "urn:ietf:params:scim:schemas:core:2.0:Group"
PATCH_SCHEMA = "urn:ietf:params:scim:api:messages:2.0:PatchOp"

TEXT_CHARACTERS_MAX = 320
"""Longest text of an attribute: a mail address has 320 characters at most."""

EMAILS_MAX = 20
MEMBERS_MAX = 10_000
"""Members of one group, as many as an organization has people by default."""

FILTER_CHARACTERS_MAX = 1_024
FILTER_DEPTH_MAX = 16
OPERATIONS_MAX = 1_000
"""Bounds on one filter and one change. Directories send some hundred operations at most."""

VALUES_EXAMINED_MAX = 50_000
"""Values of one attribute that the operations of one change may compare: five times the members of the largest group, or those of a
group of 50 with each of OPERATIONS_MAX. An operation that names its values, as directories send them, looks through none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribute:
    """Definition of an attribute, as a schema shows it. `count_max`: bound on the values of one with many."""

    name: str
    description: str
    type: str = "string"
    count_max: int = 1
    required: bool = False
    case_exact: bool = False
    mutability: str = "readWrite"
    uniqueness: str = "none"
    reference_types: tuple[str, ...] = ()
    parts: "tuple[Attribute, ...]" = ()

    @property
    def is_multi_valued(self) -> bool:
        """Return whether its value is a list."""
        return self.count_max > 1

    def find_part(self, name: str) -> "Attribute | None":
        """Return the sub-attribute of that name, in any case."""
        return _find(self.parts, name)


EXTERNAL_ID = Attribute(name="externalId", description="The id of the resource in the directory.", case_exact=True)

USER_ATTRIBUTES = (
    Attribute(name="userName", description="Name with which the directory knows the person.", required=True, uniqueness="server"),
    Attribute(
        name="name",
        description="Parts of the person's name.",
        type="complex",
        parts=(
            Attribute(name="formatted", description="The whole name."),
            Attribute(name="familyName", description="The family name."),
            Attribute(name="givenName", description="The given name."),
        ),
    ),
    Attribute(name="displayName", description="The name that people are shown."),
    Attribute(
        name="emails",
        description="Mail addresses. The primary one, or else the first, is that of the person.",
        type="complex",
        count_max=EMAILS_MAX,
        parts=(
            Attribute(name="value", description="The address."),
            Attribute(name="type", description="Kind of address, such as work."),
            Attribute(name="primary", description="Whether it is the person's address.", type="boolean"),
        ),
    ),
    Attribute(name="active", description="Whether the person may act. False revokes their keys and sessions.", type="boolean"),
)

GROUP_ATTRIBUTES = (
    Attribute(name="displayName", description="Name of the group.", required=True, uniqueness="server"),
    Attribute(
        name="members",
        description="People in the group.",
        type="complex",
        count_max=MEMBERS_MAX,
        parts=(
            Attribute(name="value", description="Id of the person.", case_exact=True, mutability="immutable"),
            Attribute(
                name="$ref",
                description="Address of the person.",
                type="reference",
                case_exact=True,
                mutability="immutable",
                reference_types=("User",),
            ),
        ),
    ),
)

_READ_ONLY = frozenset({"id", "meta", "schemas", "groups"})
_NOT_KEPT = frozenset(
    {
        *("nickname", "profileurl", "title", "usertype", "preferredlanguage", "locale", "timezone", "password", "phonenumbers", "ims"),
        *("photos", "addresses", "entitlements", "roles", "x509certificates"),
    }
)
"""Attributes of RFC 7643 that are not kept: changes of them are accepted and ignored, because a directory that is refused stops."""

_EXACT = frozenset({"id", "externalid", "members.value", "meta.location", "meta.version"})


def _find(attributes: Sequence[Attribute], name: str) -> Attribute | None:
    folded = name.lower()
    return next((each for each in attributes if each.name.lower() == folded), None)


# ---- Values -------------------------------------------------------------------------------------------------------------


def read_resource(values: Mapping[str, Any], attributes: Sequence[Attribute]) -> Resource:
    """Return what is kept of a resource that a client sent. Raises Fault PARAMETER_INVALID, PARAMETER_MISSING."""
    known = (EXTERNAL_ID, *attributes)
    read: Resource = {}
    for name, value in values.items():
        attribute = _find(known, name)
        if attribute is not None:
            _put(read, attribute, _read_value(attribute, value))
    missing = next((each.name for each in attributes if each.required and each.name not in read), None)
    if missing is not None:
        raise Fault(PARAMETER_MISSING, param=missing)
    return read


def _put(values: Resource, attribute: Attribute, value: Any) -> None:
    """Set an attribute, or remove it where there is no value: null, an empty list and no value are the same (RFC 7643, section 2.5)."""
    if value is None or value in ([], {}):
        values.pop(attribute.name, None)
    else:
        values[attribute.name] = value


def _read_value(attribute: Attribute, value: Any) -> Any:
    """Return the value of an attribute; None for no value. Raises Fault PARAMETER_INVALID."""
    if not attribute.is_multi_valued:
        return _read_single(attribute, value)
    if value is None:
        return []
    listed = value if isinstance(value, list) else [value]
    if len(listed) > attribute.count_max:
        raise _invalid(attribute, f"has more than {attribute.count_max} values")
    read = [each for each in (_read_single(attribute, each) for each in listed) if each]
    if sum(each.get("primary") is True for each in read) > 1:
        raise _invalid(attribute, "has more than one primary value")
    return read


def _read_single(attribute: Attribute, value: Any) -> Any:
    if value is None or value == "":
        return None
    if attribute.type == "complex":
        if not isinstance(value, dict):
            raise _invalid(attribute, "must be an object")
        read: Resource = {}
        for name, each in value.items():
            part = attribute.find_part(name)
            if part is not None:
                _put(read, part, _read_single(part, each))
        return read or None
    if attribute.type == "boolean":
        if isinstance(value, str) and value.lower() in ("true", "false"):  # as Entra ID writes it
            return value.lower() == "true"
        if not isinstance(value, bool):
            raise _invalid(attribute, "must be true or false")
        return value
    if not isinstance(value, str) or len(value) > TEXT_CHARACTERS_MAX or not value.isprintable():
        raise _invalid(attribute, f"must be a readable text of {TEXT_CHARACTERS_MAX} characters at most")
    return value


def _invalid(attribute: Attribute, reason: str) -> Fault:
    return Fault(PARAMETER_INVALID, param=attribute.name, message=f"Invalid value for {attribute.name}: it {reason}.")


# ---- Filters ------------------------------------------------------------------------------------------------------------

Predicate = Callable[[Mapping[str, Any]], bool]


@dataclass(frozen=True, slots=True)
class Equality:
    """A comparison of one attribute (in lower case) with a text, by which rows can be looked up."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter. `equality`: all that it asks for, where that is a single comparison. `names`: of what it compares, in lower case;
    `comparisons`: how many it makes."""

    matches: Predicate
    equality: Equality | None = None
    names: frozenset[str] = frozenset()
    comparisons: int = 1


_TOKEN = re.compile(r'\s*([()\[\]]|"(?:[^"\\]|\\.)*"|[^\s()\[\]"]+)')
_NAME = re.compile(r"(?:urn:[A-Za-z0-9:._-]+:)?\$?[A-Za-z][A-Za-z0-9_-]*(\.\$?[A-Za-z][A-Za-z0-9_-]*)?")
_OPERATORS = ("eq", "ne", "co", "sw", "ew", "gt", "ge", "lt", "le")


def parse_filter(text: str) -> Filter:
    """Return the filter that `text` says. Raises Fault FILTER_INVALID."""
    if len(text) > FILTER_CHARACTERS_MAX:
        raise Fault(FILTER_INVALID, message=f"A filter has {FILTER_CHARACTERS_MAX} characters at most.")
    tokens, at = [], 0
    stripped = text.strip()
    while at < len(stripped):
        token = _TOKEN.match(stripped, at)
        if token is None:
            raise Fault(FILTER_INVALID)
        tokens.append(token.group(1))
        at = token.end()
    parser = _Parser(tokens)
    found = parser.parse_or(0)
    if parser.has_more():
        raise Fault(FILTER_INVALID)
    return replace(found, names=frozenset(parser.names), comparisons=parser.comparisons)


class _Parser:
    """Parser of the tokens of a filter, by recursive descent."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self._tokens = tokens
        self._at = 0
        self.names = set[str]()
        self.comparisons = 0

    def has_more(self) -> bool:
        """Return whether tokens are left."""
        return self._at < len(self._tokens)

    def parse_or(self, depth: int) -> Filter:
        """Return the filter of terms that are joined by `or`."""
        if depth > FILTER_DEPTH_MAX:
            raise Fault(FILTER_INVALID, message="The filter is nested too deeply.")
        terms = [self._parse_and(depth)]
        while self._take_word("or"):
            terms.append(self._parse_and(depth))
        return terms[0] if len(terms) == 1 else Filter(lambda resource: any(term.matches(resource) for term in terms))

    def _parse_and(self, depth: int) -> Filter:
        terms = [self._parse_term(depth)]
        while self._take_word("and"):
            terms.append(self._parse_term(depth))
        return terms[0] if len(terms) == 1 else Filter(lambda resource: all(term.matches(resource) for term in terms))

    def _parse_term(self, depth: int) -> Filter:
        is_negated = self._take_word("not")
        if self._take("("):
            inner = self.parse_or(depth + 1)
            self._expect(")")
            return Filter(lambda resource: not inner.matches(resource)) if is_negated else inner
        if is_negated:
            raise Fault(FILTER_INVALID)
        name = self._next()
        if _NAME.fullmatch(name) is None:
            raise Fault(FILTER_INVALID)
        path = _split_name(name)
        self.names.add(".".join(path))
        if self._take("["):
            inner = self.parse_or(depth + 1)
            self._expect("]")
            if not (self.has_more() and self._tokens[self._at].startswith(".")):
                within = None if inner.equality is None else Equality(f"{'.'.join(path)}.{inner.equality.name}", inner.equality.value)
                return Filter(lambda resource: any(inner.matches(each) for each in _list_objects(resource, path)), within)
            part = self._next()[1:].lower()
            compare = self._parse_comparison(part, is_exact=False)
            return Filter(
                lambda resource: compare(
                    [each for item in _list_objects(resource, path) if inner.matches(item) for each in _get(item, part)]
                )
            )
        joined = ".".join(path)
        before = self._at
        compare = self._parse_comparison(joined, is_exact=joined in _EXACT)
        words = self._tokens[before : self._at]
        wanted = json.loads(words[1]) if len(words) == 2 and words[0].lower() == "eq" else None
        equality = None  # what no database can hold, such as NUL or half a surrogate pair, is not looked up
        if isinstance(wanted, str) and wanted.isprintable():
            equality = Equality(joined, wanted)
        return Filter(lambda resource: compare(list(_walk(resource, path))), equality)

    def _parse_comparison(self, name: str, *, is_exact: bool) -> Callable[[list[Any]], bool]:
        """Return the comparison of the values of an attribute that the next tokens say."""
        operator = self._next().lower()
        self.comparisons += 1
        if operator == "pr":
            return lambda values: any(value not in (None, "", [], {}) for value in values)
        if operator not in _OPERATORS:
            raise Fault(FILTER_INVALID)
        try:
            wanted = json.loads(self._next())
        except ValueError:
            raise Fault(
                FILTER_INVALID, message="A filter compares with a text in quotation marks, a number, true, false or null."
            ) from None
        if isinstance(wanted, dict | list):
            raise Fault(FILTER_INVALID)
        is_instant = name in ("meta.created", "meta.lastmodified")
        wanted = _comparable(wanted, is_exact=is_exact, is_instant=is_instant)
        if operator == "ne":
            return lambda values: all(_comparable(each, is_exact=is_exact, is_instant=is_instant) != wanted for each in values)
        if operator == "eq" and wanted is None:
            return lambda values: not values
        return lambda values: any(_is(operator, _comparable(each, is_exact=is_exact, is_instant=is_instant), wanted) for each in values)

    def _next(self) -> str:
        if not self.has_more():
            raise Fault(FILTER_INVALID)
        self._at += 1
        return self._tokens[self._at - 1]

    def _take(self, token: str) -> bool:
        if self.has_more() and self._tokens[self._at] == token:
            self._at += 1
            return True
        return False

    def _take_word(self, word: str) -> bool:
        if self.has_more() and self._tokens[self._at].lower() == word:
            self._at += 1
            return True
        return False

    def _expect(self, token: str) -> None:
        if not self._take(token):
            raise Fault(FILTER_INVALID)


def _comparable(value: Any, *, is_exact: bool, is_instant: bool) -> Any:
    if isinstance(value, str) and is_instant:
        try:
            return datetime.fromisoformat(value).timestamp()
        except ValueError:
            raise Fault(FILTER_INVALID, message="An instant looks like 2026-11-30T09:00:00Z.") from None
    return value.lower() if isinstance(value, str) and not is_exact else value


def _is(operator: str, value: Any, wanted: Any) -> bool:
    if operator == "eq":
        return type(value) is type(wanted) and bool(value == wanted)
    if isinstance(value, bool) or type(value) is not type(wanted):
        return False
    if operator in ("co", "sw", "ew"):
        if not isinstance(value, str):
            return False
        return bool(wanted in value if operator == "co" else value.startswith(wanted) if operator == "sw" else value.endswith(wanted))
    return bool({"gt": value > wanted, "ge": value >= wanted, "lt": value < wanted, "le": value <= wanted}[operator])


def _split_name(name: str) -> tuple[str, ...]:
    """Return the parts of the name of an attribute in lower case, without the core schema in front; nothing for another schema's."""
    folded = name.lower()
    for schema in (USER_SCHEMA, GROUP_SCHEMA):
        if folded.startswith(schema.lower() + ":"):
            folded = folded[len(schema) + 1 :]
    return () if folded.startswith("urn:") else tuple(folded.split("."))


def _get(item: Mapping[str, Any], folded: str) -> Iterator[Any]:
    yield from (value for name, value in item.items() if name.lower() == folded)


def _walk(resource: Any, path: Sequence[str]) -> Iterator[Any]:
    """Yield the values at a path: of each value of an attribute with many, and `value` of a complex one that is named alone."""
    if isinstance(resource, list):
        for each in resource:
            yield from _walk(each, path)
    elif isinstance(resource, dict):
        for value in _get(resource, path[0] if path else "value"):
            yield from _walk(value, path[1:]) if path else iter((value,))
    elif not path:
        yield resource


def _list_objects(resource: Mapping[str, Any], path: Sequence[str]) -> list[Mapping[str, Any]]:
    """Return the values of a complex attribute with many."""
    found = [value for name in path[:1] for value in _get(resource, name)]
    return [each for value in found if isinstance(value, list) for each in value if isinstance(each, dict)]


# ---- Changes ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Target:
    """The place of a change: an attribute, those of its values that a filter matches, and a sub-attribute of them."""

    attribute: Attribute
    filter: Filter | None = None
    part: Attribute | None = None


_PATH = re.compile(r"(?P<name>[^\[\]\s]+?)(?:\[(?P<filter>.+)\])?(?:\.(?P<part>\$?[A-Za-z]+))?")


def apply_patch(resource: Mapping[str, Any], body: Mapping[str, Any], attributes: Sequence[Attribute]) -> Resource:
    """Return a resource after the changes of a PatchOp, as `read_resource` returns one. Raises Fault PATCH_INVALID, PATH_INVALID,
    TARGET_MISSING, ATTRIBUTE_IMMUTABLE, PARAMETER_INVALID, PARAMETER_MISSING."""
    members = {name.lower(): value for name, value in body.items()}
    operations = members.get("operations")
    schemas = members.get("schemas")
    if not isinstance(schemas, list) or PATCH_SCHEMA not in schemas or not isinstance(operations, list):
        raise Fault(PATCH_INVALID)
    if not 1 <= len(operations) <= OPERATIONS_MAX:
        raise Fault(PATCH_INVALID, message=f"A change has 1 to {OPERATIONS_MAX} operations.")
    changed: Resource = {name: _Values(value) if isinstance(value, list) else value for name, value in resource.items()}
    for operation in operations:
        if not isinstance(operation, dict):
            raise Fault(PATCH_INVALID)
        _apply(changed, {name.lower(): value for name, value in operation.items()}, (EXTERNAL_ID, *attributes))
    return read_resource({name: value.get_all() if isinstance(value, _Values) else value for name, value in changed.items()}, attributes)


def _apply(resource: Resource, operation: Mapping[str, Any], attributes: Sequence[Attribute]) -> None:
    verb, path, value = operation.get("op"), operation.get("path"), operation.get("value")
    verb = verb.lower() if isinstance(verb, str) else verb
    if verb not in ("add", "replace", "remove") or not isinstance(path, str | None):
        raise Fault(PATCH_INVALID, message="An operation is add, replace or remove, with a path.")
    if path is not None:
        target = _find_target(path, attributes)
        if target is not None:
            _change(resource, verb, target, value)
        return
    if verb == "remove":
        raise Fault(TARGET_MISSING, message="What is removed must be named by a path.")
    if not isinstance(value, dict):
        raise Fault(PARAMETER_INVALID, param="value", message="Invalid value for value: it must be an object where there is no path.")
    for name, each in value.items():
        known = name.lower() not in _READ_ONLY and _find(attributes, name.partition(".")[0]) is not None
        target = _find_target(name, attributes) if known else None
        if target is not None:
            _change(resource, verb, target, each)


def _find_target(path: str, attributes: Sequence[Attribute]) -> _Target | None:
    """Return the place that a path names; None for an attribute that is not kept. Raises Fault PATH_INVALID, ATTRIBUTE_IMMUTABLE."""
    if len(path) > FILTER_CHARACTERS_MAX:
        raise Fault(PATH_INVALID)
    for schema in (USER_SCHEMA, GROUP_SCHEMA):
        if path.lower().startswith(schema.lower() + ":"):
            path = path[len(schema) + 1 :]
    if path.lower().startswith("urn:"):
        return None
    found = _PATH.fullmatch(path.strip())
    if found is None:
        raise Fault(PATH_INVALID)
    name, part_name = found["name"], found["part"]
    if name.lower() in _READ_ONLY:
        raise Fault(ATTRIBUTE_IMMUTABLE)
    if name.lower() in _NOT_KEPT:
        return None
    attribute = _find(attributes, name)
    part = None if attribute is None or part_name is None else attribute.find_part(part_name)
    if attribute is None or (found["filter"] is not None and not attribute.is_multi_valued):
        raise Fault(PATH_INVALID)
    if part_name is not None and part is None:
        if attribute.parts:
            return None
        raise Fault(PATH_INVALID)
    try:
        wanted = None if found["filter"] is None else parse_filter(found["filter"])
    except Fault as fault:
        raise Fault(PATH_INVALID, message=fault.message) from None
    return _Target(attribute, wanted, part)


def _change(resource: Resource, verb: str, target: _Target, value: Any) -> None:
    attribute, part = target.attribute, target.part
    if attribute.is_multi_valued:
        _change_values(resource.setdefault(attribute.name, _Values([])), verb, target, value)
    elif part is not None:
        of_whole = dict(resource.get(attribute.name, {}))
        _put(of_whole, part, None if verb == "remove" else _read_single(part, value))
        _put(resource, attribute, of_whole)
    elif verb == "remove":
        if attribute.required:
            raise Fault(ATTRIBUTE_IMMUTABLE, message=f"{attribute.name} is required.")
        resource.pop(attribute.name, None)
    else:
        read = _read_value(attribute, value)
        _put(resource, attribute, {**resource.get(attribute.name, {}), **read} if isinstance(read, dict) else read)


class _Values:
    """The values of an attribute with many while they are changed. They are kept by their `value`, so that an operation which names some
    looks through no others."""

    def __init__(self, values: Sequence[Mapping[str, Any]]) -> None:
        self._by_value: dict[Any, list[Resource]] = {}
        self._examined = 0
        self.add([dict(each) for each in values])

    def get_all(self) -> list[Resource]:
        """Return all values."""
        return [each for same in self._by_value.values() for each in same]

    def examine(self, times: int = 1) -> list[Resource]:
        """Return all values, to look through them so many times. Raises Fault PATCH_INVALID where the operations do that too often."""
        found = self.get_all()
        self._examined += len(found) * times
        if self._examined > VALUES_EXAMINED_MAX:
            raise Fault(PATCH_INVALID, message="The filters of this change look at too many values. Send fewer operations at once.")
        return found

    def choose(self, attribute: Attribute, wanted: Filter | None) -> list[Resource]:
        """Return the values that a filter matches. Raises Fault PATCH_INVALID as `examine` does."""
        key = attribute.find_part("value")
        if wanted is not None and wanted.equality is not None and wanted.equality.name == "value" and key is not None and key.case_exact:
            return list(self._by_value.get(wanted.equality.value, ()))
        found = self.examine(1 if wanted is None else wanted.comparisons)
        return [each for each in found if wanted is None or wanted.matches(each)]

    def add(self, values: Sequence[Resource]) -> None:
        """Add values behind those that there are."""
        for each in values:
            self._by_value.setdefault(each.get("value"), []).append(each)

    def drop(self, values: Sequence[Mapping[str, Any]]) -> None:
        """Drop the values that have the same `value` as one of `values`."""
        for each in values:
            self._by_value.pop(each.get("value"), None)

    def remove(self, chosen: Sequence[Resource]) -> None:
        """Remove the chosen values, and no others that are like them."""
        gone = {id(each) for each in chosen}
        for key in {each.get("value") for each in chosen}:
            self._by_value[key] = [each for each in self._by_value[key] if id(each) not in gone]

    def set(self, values: Sequence[Resource]) -> None:
        """Put other values in place of those that there are."""
        self._by_value = {}
        self.add(values)


def _change_values(values: _Values, verb: str, target: _Target, value: Any) -> None:
    """Change the values of an attribute with many."""
    attribute, part = target.attribute, target.part
    if target.filter is None and part is None:
        given = _read_value(attribute, value)
        if verb == "replace" or (verb == "remove" and value is None):
            values.set(given)
            return
        if verb == "add" and any(each.get("primary") for each in given):
            _withdraw_primary(values)
        values.drop(given)  # with `remove` it names values as Entra ID does
        if verb == "add":
            values.add(given)
        return
    chosen = values.choose(attribute, target.filter)
    if verb == "remove" and part is None:
        values.remove(chosen)
        return
    _change_chosen(values, chosen, verb, target, value)


def _change_chosen(values: _Values, chosen: Sequence[Resource], verb: str, target: _Target, value: Any) -> None:
    """Change parts of the chosen values of an attribute with many, or add one where none is chosen."""
    attribute, part = target.attribute, target.part
    if verb == "remove":
        assert part is not None
        for each in chosen:
            each.pop(part.name, None)
        values.set([each for each in values.examine() if each])
        return
    if not chosen:
        chosen = [_make_value(attribute, target.filter)]
        values.add(chosen)
    given = _read_single(attribute, value) if part is None else {part.name: _read_single(part, value)}
    if (given or {}).get("primary"):
        _withdraw_primary(values)
    for each in chosen:
        for name, new in (given or {}).items():
            each.pop(name, None) if new is None else each.update({name: new})
    if "value" in (given or {}):
        values.set(values.examine())


def _withdraw_primary(values: _Values) -> None:
    """Let no value be the primary one."""
    for each in values.examine():
        each.pop("primary", None)


def _make_value(attribute: Attribute, wanted: Filter | None) -> Resource:
    """Return the value that a change adds where its filter matches none: directories set `emails[type eq "work"].value` so. Raises Fault
    TARGET_MISSING where the filter does not say what it would be."""
    if wanted is None:
        return {}
    part = None if wanted.equality is None else attribute.find_part(wanted.equality.name)
    if wanted.equality is None or part is None or part.name == "value":
        raise Fault(TARGET_MISSING)
    return {part.name: _read_single(part, wanted.equality.value)}


# ---- Chosen attributes --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Selection:
    """The attributes of an answer: those of `wanted`, or all but those of `excluded`. Each is a path in lower case."""

    wanted: frozenset[tuple[str, ...]] = field(default_factory=frozenset)
    excluded: frozenset[tuple[str, ...]] = field(default_factory=frozenset)

    def needs(self, name: str) -> bool:
        """Return whether an attribute, or a part of it, belongs to the answer."""
        folded = name.lower()
        return any(path[0] == folded for path in self.wanted) if self.wanted else (folded,) not in self.excluded

    def choose(self, resource: Mapping[str, Any]) -> Resource:
        """Return what belongs to the answer. Schemas and id always do."""
        chosen: Resource = {}
        for name, value in resource.items():
            folded = name.lower()
            if folded in ("schemas", "id"):
                chosen[name] = value
            elif self.wanted:
                parts = {path[1:] for path in self.wanted if path[0] == folded}
                if parts:
                    chosen[name] = value if () in parts else _map(value, lambda part, parts=parts: (part,) in parts)  # type: ignore[misc]
            elif (folded,) not in self.excluded:
                parts = {path[1:] for path in self.excluded if path[0] == folded}
                chosen[name] = _map(value, lambda part, parts=parts: (part,) not in parts) if parts else value  # type: ignore[misc]
        return chosen


def parse_selection(attributes: str | None, excluded: str | None) -> Selection:
    """Return the selection that the query parameters `attributes` and `excludedAttributes` make."""
    return Selection(_parse_names(attributes), _parse_names(excluded))


def _parse_names(text: str | None) -> frozenset[tuple[str, ...]]:
    paths = (_split_name(name.strip()) for name in (text or "").split(","))
    return frozenset(path for path in paths if path and path != ("",))


def _map(value: Any, keeps: Callable[[str], bool]) -> Any:
    if isinstance(value, list):
        return [_map(each, keeps) for each in value]
    return {name: each for name, each in value.items() if keeps(name.lower())} if isinstance(value, dict) else value
