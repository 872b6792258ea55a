"""Approvals: of two operators, whoever could be one person may not approve what the other one asked for."""

from tollway.control import approvals
from tollway.domain import keys as domain
from tollway.domain.keys import Grant, Key, KeyOrigin, KeyType, Operator
from tollway.domain.roles import OPERATOR
from tollway.storage import keys as stored
from tollway.storage.database import Database
from tollway.storage.keys import Digest
from tollway.storage.operators import KEY_ISSUER, SignedInOperator, put_operator

FIRST, SECOND = KeyOrigin.FIRST, KeyOrigin.SECOND
ADA, BEN = f"oper_{'a' * 32}", f"oper_{'b' * 32}"
"""Operators who signed in."""

MADE = {
    "key_adas_first": (ADA, FIRST),
    "key_of_adas_first": ("key_adas_first", FIRST),
    "key_adas_second": (ADA, SECOND),
    "key_bens_second": (BEN, SECOND),
    "key_settings_first": (None, FIRST),
    "key_of_settings_first": ("key_settings_first", FIRST),
    "key_settings_second": (None, SECOND),
    "key_of_session_with_key": (f"oper_{'c' * 32}", FIRST),
}
"""Keys with their makers and origins. The groups of Ada made her an approver of the second origin after she had made keys of the first."""

SIGNED_IN_WITH_ADAS_FIRST = f"oper_{'c' * 32}"
"""Whoever signed in with the key "key_adas_first"."""


CASES = [
    ((ADA, SECOND), ("key_adas_first", FIRST), False),
    ((ADA, SECOND), ("key_of_adas_first", FIRST), False),
    (("key_adas_first", FIRST), (ADA, SECOND), False),
    (("key_of_adas_first", FIRST), ("key_adas_second", SECOND), False),
    ((ADA, FIRST), (ADA, SECOND), False),
    (("key_of_settings_first", FIRST), ("key_settings_first", FIRST), False),
    (("key_adas_first", FIRST), (BEN, SECOND), True),
    (("key_of_adas_first", FIRST), ("key_bens_second", SECOND), True),
    (("key_of_settings_first", FIRST), ("key_settings_second", SECOND), True),
    ((ADA, SECOND), ("key_of_settings_first", FIRST), True),
    ((SIGNED_IN_WITH_ADAS_FIRST, FIRST), (ADA, SECOND), False),
    ((ADA, SECOND), ("key_of_session_with_key", FIRST), False),
    ((SIGNED_IN_WITH_ADAS_FIRST, FIRST), (BEN, SECOND), True),
]
"""Operators who asked and who approve, and whether that is allowed."""


def test_approver_who_may_have_held_the_key_of_who_asked_is_refused(database: Database) -> None:
    with database.platform() as tx:
        for number, (id, (maker, origin)) in enumerate(MADE.items()):
            key = Key(
                id=id,
                type=KeyType.PLATFORM,
                project_id=None,
                name=id,
                redacted=domain.redact("tw_platform_x" + "0" * 40),
                created_at=1,
                created_by=maker,
                origin=origin,
                grant=Grant(OPERATOR),
            )
            stored.put_platform_key(tx, key, Digest(1, number.to_bytes(32)))
        session = SignedInOperator(
            id=SIGNED_IN_WITH_ADAS_FIRST,
            issuer=KEY_ISSUER,
            subject="key_adas_first",
            email="",
            name="",
            role=OPERATOR,
            origin=FIRST,
            signed_in_at=1,
        )
        put_operator(tx, session)
        found = [(asked, approver, approvals.may_approve(tx, Operator(*asked), Operator(*approver))) for asked, approver, _ in CASES]
    assert found == CASES
