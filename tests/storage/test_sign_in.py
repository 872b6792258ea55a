"""Attempts, links and sessions of people at rest, on each database."""

import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from tests.link.samples import ORGANIZATION
from tests.storage.databases import fill
from tollway.domain.people import User
from tollway.domain.sessions import Session, SessionKind, SignInMethod
from tollway.storage import people, sessions, sign_in
from tollway.storage.database import Database
from tollway.storage.sessions import SessionTokens
from tollway.storage.sign_in import Credentials

NOW = 1_790_000_000_000_000
MINUTE = 60_000_000
ADA = User(id="user_ada", email="ada@example.com", name="Ada", added_at=NOW)


@pytest.fixture
def filled(database: Database) -> Iterator[Database]:
    fill(database)
    with database.tenant(ORGANIZATION) as tx:
        people.insert_user(tx, ADA)
    yield database


def try_once(database: Database, digest: bytes, now: int) -> bool:
    with database.platform() as tx:
        return sign_in.count_attempt(tx, digest, 5, now=now, window_us=15 * MINUTE)


def test_attempts_at_the_same_time_are_as_many_as_the_window_allows(database: Database) -> None:
    digest = secrets.token_bytes(32)
    with ThreadPoolExecutor(4) as threads:
        allowed = sum(threads.map(lambda _: try_once(database, digest, NOW), range(12)))
    assert allowed == 5
    assert not try_once(database, digest, NOW + 15 * MINUTE - 1)
    assert try_once(database, digest, NOW + 15 * MINUTE)
    with database.platform() as tx:
        sign_in.forget_attempts(tx, digest)
    assert sum(try_once(database, digest, NOW + 15 * MINUTE) for _ in range(9)) == 5


def test_credentials_are_read_as_they_were_stored(filled: Database) -> None:
    stored = Credentials("$argon2id$", NOW, b"sealed", 7, ("aa", "bb"))
    with filled.tenant(ORGANIZATION) as tx:
        assert sign_in.find_credentials(tx, ADA.id) == Credentials()
        for each in (stored, replace(stored, recovery_digests=())):
            sign_in.put_credentials(tx, ADA.id, each)
            assert sign_in.lock_credentials(tx, ADA.id) == each
        sign_in.delete_credentials(tx, ADA.id)
        assert sign_in.find_credentials(tx, ADA.id) == Credentials()


def test_link_is_used_once_and_replaces_the_one_before(filled: Database) -> None:
    first, second = secrets.token_bytes(32), secrets.token_bytes(32)
    with filled.tenant(ORGANIZATION) as tx:
        sign_in.insert_link(tx, first, ADA.id, "key_x", NOW + MINUTE)
        sign_in.insert_link(tx, second, ADA.id, "key_x", NOW + MINUTE)
    with filled.platform() as platform:
        assert sign_in.find_link(platform, first, NOW) is None
        assert sign_in.find_link(platform, second, NOW + MINUTE) is None
        found = sign_in.find_link(platform, second, NOW)
        assert found is not None and (found.organization_id, found.user) == (ORGANIZATION, ADA)
    with filled.tenant(ORGANIZATION) as tx:
        assert sign_in.use_link(tx, second, NOW) and not sign_in.use_link(tx, second, NOW)


def test_ended_sessions_are_removed(filled: Database) -> None:
    with filled.tenant(ORGANIZATION) as tx:
        for number, (used_at, expires_at) in enumerate(((NOW, NOW + 100 * MINUTE), (NOW - 90 * MINUTE, NOW + MINUTE), (NOW, NOW))):
            session = Session(
                id=f"sess_{number}",
                user_id=ADA.id,
                kind=SessionKind.BROWSER,
                method=SignInMethod.LINK,
                address="192.0.2.1",
                agent="x",
                created_at=used_at,
                last_used_at=used_at,
                expires_at=expires_at,
            )
            sessions.insert_session(tx, session, SessionTokens(secrets.token_bytes(32)))
        assert [each.id for each in sessions.list_user_sessions(tx, ADA.id, NOW)] == ["sess_0"]
    with filled.platform() as platform:
        assert sessions.remove_ended_sessions(platform, NOW) == 2
