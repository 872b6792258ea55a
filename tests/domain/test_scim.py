"""SCIM on JSON values: filters, changes by PATCH as directories send them, and chosen attributes."""

from typing import Any

import pytest

from tollway.domain import scim
from tollway.domain.faults import Fault
from tollway.domain.scim import (
    GROUP_ATTRIBUTES,
    PATCH_SCHEMA,
    USER_ATTRIBUTES,
    VALUES_EXAMINED_MAX,
    Equality,
    apply_patch,
    parse_filter,
    parse_selection,
    read_resource,
)

ADA: dict[str, Any] = {
    "id": "user_1",
    "userName": "Ada@Example.com",
    "externalId": "E-1",
    "name": {"givenName": "Ada", "familyName": "Lovelace"},
    "emails": [{"value": "ada@example.com", "type": "work", "primary": True}, {"value": "ada@home.example", "type": "home"}],
    "active": True,
    "meta": {"created": "2026-11-30T09:00:00Z"},
}


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ('userName eq "ada@example.com"', True),
        ('USERNAME Eq "ADA@EXAMPLE.COM"', True),
        ('urn:ietf:params:scim:schemas:core:2.0:User:userName sw "ada"', True),
        ('urn:ietf:params:scim:schemas:extension:enterprise:2.0:User:department eq "x"', False),
        ('externalId eq "e-1"', False),
        ('externalId eq "E-1" and active eq true', True),
        ('active eq "true"', False),
        ('active eq false or name.familyName co "love"', True),
        ("not (active eq true)", False),
        ('not (active eq true) or (id eq "user_1" and userName ew ".COM")', True),
        ('emails[type eq "home" and value co "home.example"]', True),
        ('emails[type eq "work" and value co "home.example"]', False),
        ('emails[type eq "work"].value eq "ADA@example.com"', True),
        ('emails co "home"', True),
        ("displayName pr", False),
        ("emails pr", True),
        ("displayName eq null", True),
        ('displayName ne "x"', True),
        ('meta.created ge "2026-11-30T10:00:00+01:00"', True),
        ('meta.created gt "2026-11-30T09:00:00Z"', False),
        ('userName eq "a \\"quoted\\" name"', False),
    ],
)
def test_filter_matches(text: str, matches: bool) -> None:
    assert parse_filter(text).matches(ADA) is matches


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "userName",
            "userName eq",
            "userName eq x",
            'eq "x"',
            'userName is "x"',
            '(userName eq "x"',
            'userName eq "x")',
            "not active",
        ),
        *('userName eq "x" and', 'emails[type eq "x"', 'userName eq {"a":1}', "userName eq [1]", '"x" eq userName', "a" * 2_000),
        *('meta.created gt "yesterday"', "(" * 40 + 'userName eq "x"' + ")" * 40, "'; DROP TABLE users; --"),
    ],
)
def test_filter_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(Fault) as refused:
        parse_filter(text).matches(ADA)
    assert refused.value.kind.code == "invalid_filter"


def test_single_comparison_is_looked_up() -> None:
    assert parse_filter('userName eq "x"').equality == Equality("username", "x")
    assert parse_filter('members[value eq "x"]').equality == Equality("members.value", "x")
    assert parse_filter('userName eq "x" and active eq true').equality is None
    assert parse_filter('not (userName eq "x")').equality is None
    assert parse_filter('userName ne "x"').equality is None
    for unheard in (r'userName eq "\ud800"', r'id eq "\u0000"'):
        found = parse_filter(unheard)
        assert found.equality is None and not found.matches(ADA)


def test_filter_knows_what_it_compares() -> None:
    assert parse_filter('not (Members[value eq "x"]) or displayName eq "y"').names >= {"members", "displayname"}
    assert parse_filter('meta.version eq "x"').names == {"meta.version"}


def patched(*operations: dict[str, Any], before: dict[str, Any] | None = None) -> dict[str, Any]:
    known = read_resource(ADA if before is None else before, USER_ATTRIBUTES)
    return apply_patch(known, {"schemas": [PATCH_SCHEMA], "Operations": list(operations)}, USER_ATTRIBUTES)


WORK = [{"value": "new@example.com", "type": "work", "primary": True}]


@pytest.mark.parametrize(
    ("operation", "changed"),
    [
        ({"op": "Replace", "path": "active", "value": "False"}, {"active": False}),  # Entra ID
        ({"op": "replace", "value": {"active": False}}, {"active": False}),  # Okta
        ({"op": "replace", "value": {"id": "other", "schemas": [], "active": True, "title": "x"}}, {}),
        ({"op": "Add", "value": {"name.givenName": "Augusta"}}, {"name": {"givenName": "Augusta", "familyName": "Lovelace"}}),
        ({"op": "Replace", "path": 'emails[type eq "work"].value', "value": "new@example.com"}, {"emails": [*WORK, ADA["emails"][1]]}),
        (
            {"op": "Add", "path": 'emails[type eq "other"].value', "value": "o@example.com"},
            {"emails": [*ADA["emails"], {"type": "other", "value": "o@example.com"}]},
        ),
        ({"op": "remove", "path": 'emails[type eq "home"]'}, {"emails": ADA["emails"][:1]}),
        ({"op": "remove", "path": 'emails[type eq "none"]'}, {}),
        ({"op": "remove", "path": "emails"}, {"emails": None}),
        ({"op": "replace", "path": "emails", "value": WORK}, {"emails": WORK}),
        (
            {"op": "add", "path": "emails", "value": [{"value": "p@example.com", "primary": True}]},
            {"emails": [{"value": "ada@example.com", "type": "work"}, ADA["emails"][1], {"value": "p@example.com", "primary": True}]},
        ),
        ({"op": "replace", "path": "name", "value": {"familyName": "King"}}, {"name": {"givenName": "Ada", "familyName": "King"}}),
        ({"op": "remove", "path": "name.givenName"}, {"name": {"familyName": "Lovelace"}}),
        ({"op": "add", "path": "urn:ietf:params:scim:schemas:core:2.0:User:displayName", "value": "Ada"}, {"displayName": "Ada"}),
        ({"op": "add", "path": "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User:department", "value": "x"}, {}),
        ({"op": "add", "path": 'phoneNumbers[type eq "work"].value', "value": "1"}, {}),
        ({"op": "replace", "path": "externalId", "value": ""}, {"externalId": None}),
    ],
)
def test_change_is_made_as_directories_send_it(operation: dict[str, Any], changed: dict[str, Any]) -> None:
    wanted = {**read_resource(ADA, USER_ATTRIBUTES), **changed}
    assert patched(operation) == {name: value for name, value in wanted.items() if value is not None}


@pytest.mark.parametrize(
    ("operation", "code"),
    [
        ({"op": "move", "path": "active", "value": True}, "invalid_patch"),
        ({"op": "remove"}, "no_target"),
        ({"op": "replace", "path": "id", "value": "x"}, "immutable_attribute"),
        ({"op": "remove", "path": "userName"}, "immutable_attribute"),
        ({"op": "replace", "path": "userName", "value": None}, "missing_required_parameter"),
        ({"op": "replace", "path": "unheardOf", "value": "x"}, "invalid_path"),
        ({"op": "replace", "path": "emails[type eq", "value": "x"}, "invalid_path"),
        ({"op": "replace", "path": 'emails[value co "zzz"].type', "value": "x"}, "no_target"),
        ({"op": "replace", "path": "active", "value": "maybe"}, "invalid_value"),
        ({"op": "replace", "path": "emails", "value": [{"value": "a", "primary": True}, {"value": "b", "primary": True}]}, "invalid_value"),
        ({"op": "replace", "path": "emails", "value": "a@example.com"}, "invalid_value"),
        ({"op": "replace", "path": "displayName", "value": "a\nb"}, "invalid_value"),
        ({"op": "replace", "path": "displayName", "value": "a" * 400}, "invalid_value"),
        ({"op": "add", "value": "x"}, "invalid_value"),
    ],
)
def test_change_that_cannot_be_is_refused(operation: dict[str, Any], code: str) -> None:
    with pytest.raises(Fault) as refused:
        patched(operation)
    assert refused.value.kind.code == code


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"schemas": [PATCH_SCHEMA]},
        {"schemas": ["x"], "Operations": [{}]},
        {"schemas": [PATCH_SCHEMA], "Operations": ["x"]},
        {"schemas": 5, "Operations": [{}]},
        {"schemas": PATCH_SCHEMA, "Operations": [{}]},
    ],
)
def test_body_that_is_no_change_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(Fault) as refused:
        apply_patch(ADA, body, USER_ATTRIBUTES)
    assert refused.value.kind.code == "invalid_patch"


def test_failed_change_leaves_the_resource_as_it_was() -> None:
    before = read_resource(ADA, USER_ATTRIBUTES)
    operations = [{"op": "remove", "path": "emails"}, {"op": "replace", "path": "name.givenName", "value": "x"}, {"op": "remove"}]
    with pytest.raises(Fault):
        apply_patch(before, {"schemas": [PATCH_SCHEMA], "Operations": operations}, USER_ATTRIBUTES)
    assert before == read_resource(ADA, USER_ATTRIBUTES)


@pytest.mark.parametrize(
    ("operation", "members"),
    [
        ({"op": "Add", "path": "members", "value": [{"value": "c"}]}, ["a", "b", "c"]),
        ({"op": "add", "path": "members", "value": [{"value": "b"}]}, ["a", "b"]),
        ({"op": "Remove", "path": "members", "value": [{"$ref": None, "value": "a"}]}, ["b"]),
        ({"op": "remove", "path": 'members[value eq "b"]'}, ["a"]),
        ({"op": "remove", "path": "members"}, []),
        ({"op": "replace", "path": "members", "value": [{"value": "z", "display": "Z"}]}, ["z"]),
        ({"op": "replace", "path": "members", "value": []}, []),
    ],
)
def test_members_change_as_directories_send_it(operation: dict[str, Any], members: list[str]) -> None:
    before = {"displayName": "g", "members": [{"value": "a"}, {"value": "b"}]}
    after = apply_patch(before, {"schemas": [PATCH_SCHEMA], "operations": [operation]}, GROUP_ATTRIBUTES)
    assert [each["value"] for each in after.get("members", [])] == members


MEMBERS = [f"user_{number:04}" for number in range(5_000)]


def change_members(*operations: dict[str, Any]) -> list[str]:
    before = {"displayName": "g", "members": [{"value": each} for each in MEMBERS]}
    after = apply_patch(before, {"schemas": [PATCH_SCHEMA], "Operations": list(operations)}, GROUP_ATTRIBUTES)
    return [each["value"] for each in after.get("members", [])]


def test_operations_that_name_their_members_look_through_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scim, "VALUES_EXAMINED_MAX", 0)
    named = [{"op": "remove", "path": f'members[value eq "{each}"]'} for each in MEMBERS[:400]]
    added = [{"op": "add", "path": "members", "value": [{"value": f"new_{number}"}]} for number in range(300)]
    listed = [{"op": "remove", "path": "members", "value": [{"value": each}]} for each in MEMBERS[400:700]]
    assert change_members(*named, *added, *listed) == [*MEMBERS[700:], *(f"new_{number}" for number in range(300))]


def test_operations_look_through_a_bounded_number_of_values() -> None:
    operation = {"op": "remove", "path": 'members[value sw "nobody"]'}
    assert change_members(*[operation] * (VALUES_EXAMINED_MAX // len(MEMBERS))) == MEMBERS
    with pytest.raises(Fault) as refused:
        change_members(*[operation] * (VALUES_EXAMINED_MAX // len(MEMBERS) + 1))
    assert refused.value.kind.code == "invalid_patch"
    several = " or ".join(['value sw "nobody"'] * (VALUES_EXAMINED_MAX // len(MEMBERS) + 1))
    with pytest.raises(Fault, match="invalid_patch"):
        change_members({"op": "remove", "path": f"members[{several}]"})


def test_chosen_attributes() -> None:
    assert parse_selection("userName,name.GIVENNAME", None).choose(ADA) == {
        "id": "user_1",
        "userName": "Ada@Example.com",
        "name": {"givenName": "Ada"},
    }
    without = parse_selection(None, "emails, name.familyName,id").choose(ADA)
    assert "emails" not in without and without["name"] == {"givenName": "Ada"} and without["id"] == "user_1"
    assert parse_selection(None, "members").needs("members") is False and parse_selection(None, None).needs("members") is True
    assert (
        parse_selection("displayName", None).needs("members") is False and parse_selection("members.value", None).needs("members") is True
    )
