"""Attempts, links and sessions of people at rest, on each database."""

import secrets
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import sqlalchemy as sa

from tests.link.samples import ORGANIZATION
from tests.storage.databases import fill
from tollway.domain.people import User
from tollway.domain.roles import Grant
from tollway.domain.sessions import Session, SessionKind, SignInMethod
from tollway.storage import people, sessions, sign_in
from tollway.storage.database import Database, PlatformTx
from tollway.storage.schema_sign_in import sign_in_attempts
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


@pytest.mark.postgres
@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_attempt_that_waits_for_another_one_keeps_no_window_that_the_other_one_needs(database: Database) -> None:
    """Otherwise the two deadlock: the first attempt waits for its own window, which the second transaction has locked."""
    awaited, other = secrets.token_bytes(32), secrets.token_bytes(32)
    later = NOW + 15 * MINUTE
    for digest in (awaited, other):
        try_once(database, digest, NOW)
    with ThreadPoolExecutor(1) as threads:
        with database.platform() as second:
            lock(second, awaited)
            first = threads.submit(try_once, database, awaited, later)
            while not is_waiting(database) and not first.done():
                time.sleep(0.01)
            assert sign_in.count_attempt(second, other, 5, now=later, window_us=15 * MINUTE)
        assert first.result()


@pytest.mark.postgres
@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_windows_of_attempts_under_way_are_not_removed(database: Database) -> None:
    own, other = secrets.token_bytes(32), secrets.token_bytes(32)
    try_once(database, other, NOW)
    with database.platform() as second:
        lock(second, other)
        assert try_once(database, own, NOW + 15 * MINUTE)  # and does not wait


def lock(tx: PlatformTx, digest: bytes) -> None:
    """Lock a window, as an attempt does that counts in it."""
    assert tx.connection.execute(sa.select(sign_in_attempts).where(sign_in_attempts.c.digest == digest).with_for_update()).one()


def is_waiting(database: Database) -> bool:
    """Return whether a transaction waits for a lock."""
    with database.platform(write=False) as tx:
        return bool(tx.connection.execute(sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted")).scalar_one())


def test_attempt_that_is_taken_back_leaves_those_before_it_counted(database: Database) -> None:
    digest = secrets.token_bytes(32)
    for _ in range(4):
        assert try_once(database, digest, NOW)
    for _ in range(3):
        assert try_once(database, digest, NOW)
        with database.platform() as tx:
            sign_in.take_back_attempt(tx, digest)
    assert [try_once(database, digest, NOW) for _ in range(2)] == [True, False]


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


def make_session(id: str, used_at: int, expires_at: int, kind: SessionKind = SessionKind.BROWSER) -> Session:
    return Session(
        id=id,
        user_id=ADA.id,
        kind=kind,
        method=SignInMethod.LINK,
        address="192.0.2.1",
        agent="x",
        created_at=used_at,
        last_used_at=used_at,
        expires_at=expires_at,
    )


def test_session_that_ends_while_its_refresh_token_is_looked_up_is_no_error(filled: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    family, digest = secrets.token_hex(4), secrets.token_bytes(32)
    with filled.tenant(ORGANIZATION) as tx:
        session = make_session("sess_cli", NOW, NOW + MINUTE, SessionKind.COMMAND_LINE)
        sessions.insert_session(tx, session, SessionTokens(secrets.token_bytes(32), NOW + MINUTE, family, digest))

    def end_meanwhile(tx: PlatformTx, organization_id: str, user_id: str) -> list[Grant]:
        assert sessions.remove_ended_sessions(tx, NOW + MINUTE) == 1
        return []

    monkeypatch.setattr(sessions, "list_user_grants", end_meanwhile)
    with filled.platform() as platform:
        found = sessions.find_session_by_refresh_id(platform, family, NOW)
        assert found is not None and (found[0].session, found[1]) == (session, digest)
        assert sessions.find_session_by_refresh_id(platform, family, NOW) is None


def test_ended_sessions_are_removed(filled: Database) -> None:
    with filled.tenant(ORGANIZATION) as tx:
        for number, (used_at, expires_at) in enumerate(((NOW, NOW + 100 * MINUTE), (NOW - 90 * MINUTE, NOW + MINUTE), (NOW, NOW))):
            session = make_session(f"sess_{number}", used_at, expires_at)
            sessions.insert_session(tx, session, SessionTokens(secrets.token_bytes(32)))
        assert [each.id for each in sessions.list_user_sessions(tx, ADA.id, NOW)] == ["sess_0"]
    with filled.platform() as platform:
        assert sessions.remove_ended_sessions(platform, NOW) == 2
