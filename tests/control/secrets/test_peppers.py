"""Rotation of the pepper on both databases: no key fails meanwhile, and the old pepper is not retired while a live key needs it."""

import json
import os
import secrets
from pathlib import Path

import pytest

from tests.link.samples import ORGANIZATION
from tollway.cli.app import run
from tollway.control.identity import access, invites, keys
from tollway.control.identity.keys import Ingredients, Pepper, WantedKey
from tollway.control.secrets import peppers
from tollway.domain import ids
from tollway.domain.faults import Fault
from tollway.domain.keys import RANDOM_BYTES, KeyOrigin, KeyType, Operator, new_key
from tollway.domain.quotas import DEFAULT_SIZES
from tollway.domain.roles import OPERATOR, OWNER, Grant
from tollway.serve import data_directory
from tollway.settings import OperatorError
from tollway.storage.database import Database

OLD, NEW = secrets.token_bytes(32), secrets.token_bytes(32)
BOTH = {1: OLD, 2: NEW}
NOW = 1_790_000_000_000_000
HOUR = 3_600_000_000


def ingredients(version: int) -> Ingredients:
    return Ingredients(os.urandom(RANDOM_BYTES), Pepper(version, BOTH[version]))


def make_admin_key(database: Database, version: int) -> str:
    with database.tenant(ORGANIZATION) as tx:
        id = ids.new_id(ids.KEY, NOW, secrets.randbits(74))
        wanted = WantedKey(type=KeyType.ADMIN, name="admin", grant=Grant(OWNER))
        return keys.create_admin_key(tx, wanted, id=id, ingredients=ingredients(version), sizes=DEFAULT_SIZES, now=NOW).secret


def list_needs(database: Database, now: int = NOW) -> dict[int, int]:
    with database.platform(write=False) as tx:
        return {state.version: state.keys for state in peppers.list_uses(tx, BOTH, 2, now)}


def test_secret_that_control_is_shown_moves_to_the_current_pepper_at_its_next_use(database: Database) -> None:
    before = list_needs(database)
    secret = make_admin_key(database, 1).encode()
    assert list_needs(database)[1] == before[1] + 1
    key = access.identify(database, BOTH, 2, secret, NOW)
    assert list_needs(database) == {1: before[1], 2: before[2] + 1}
    assert access.identify(database, {2: NEW}, 2, secret, NOW).id == key.id, "the old pepper is not needed any more"
    with pytest.raises(Fault):
        access.identify(database, {1: OLD}, 1, secret, NOW)


def test_operator_key_moves_and_keeps_its_origin(database: Database) -> None:
    with database.platform() as tx:
        maker = Operator("key_maker", KeyOrigin.SECOND)
        id = ids.new_id(ids.KEY, NOW, 1)
        secret = keys.create_operator_key(tx, name="p", role=OPERATOR, maker=maker, id=id, ingredients=ingredients(1), now=NOW).secret
    access.identify(database, BOTH, 2, secret.encode(), NOW)
    assert access.identify(database, {2: NEW}, 2, secret.encode(), NOW).origin is KeyOrigin.SECOND


def test_key_of_the_settings_keeps_its_id_and_a_replaced_one_stays_revoked(database: Database) -> None:
    def seed(secret: str, version: int, number: int) -> None:
        with database.platform() as tx:
            peppers.move_secret(tx, secret.encode(), BOTH, version)
            id = ids.new_id(ids.KEY, NOW, number)
            keys.seed_platform_key(tx, KeyOrigin.FIRST, secret, id=id, pepper=Pepper(version, BOTH[version]), now=NOW)

    replaced, current = (new_key(KeyType.PLATFORM, os.urandom(RANDOM_BYTES)).secret for _ in range(2))
    seed(replaced, 1, 1)
    seed(current, 1, 2)
    id = access.identify(database, BOTH, 1, current.encode(), NOW).id
    seed(current, 2, 3)
    assert access.identify(database, {2: NEW}, 2, current.encode(), NOW).id == id
    with pytest.raises(ValueError, match="replaced by another"):
        seed(replaced, 2, 4)


def test_expired_or_revoked_key_needs_no_pepper(database: Database) -> None:
    before = list_needs(database)[1]
    with database.tenant(ORGANIZATION) as tx:
        made = []
        for number, expires_at in enumerate((NOW + HOUR, None)):
            wanted = WantedKey(type=KeyType.ADMIN, name="admin", grant=Grant(OWNER), expires_at=expires_at)
            id = ids.new_id(ids.KEY, NOW, number)
            made.append(keys.create_admin_key(tx, wanted, id=id, ingredients=ingredients(1), sizes=DEFAULT_SIZES, now=NOW).key.id)
    assert list_needs(database)[1] == before + 2
    assert list_needs(database, NOW + HOUR)[1] == before + 1
    with database.tenant(ORGANIZATION) as tx:
        keys.revoke_admin_key(tx, made[1], own=[Grant(OWNER)], now=NOW)
    assert list_needs(database, NOW + HOUR)[1] == before


def test_pending_invitation_needs_its_pepper(database: Database) -> None:
    def count(now: int = NOW) -> int:
        with database.platform(write=False) as tx:
            return {state.version: state.invites for state in peppers.list_uses(tx, {2: NEW}, 2, now)}.get(1, 0)

    before = count()
    with database.tenant(ORGANIZATION) as tx:
        sent = invites.create_invite(
            tx,
            id=ids.new_id(ids.INVITE, NOW, secrets.randbits(74)),
            email="ada@example.com",
            role_id="viewer",
            project_roles={},
            own=[Grant(OWNER)],
            invited_by="key_maker",
            ingredients=ingredients(1),
            page_url=None,
            sizes=DEFAULT_SIZES,
            now=NOW,
        )
    assert count() == before + 1
    assert count(sent.invite.expires_at) == before
    with database.tenant(ORGANIZATION) as tx:
        invites.delete_invite(tx, sent.invite.id, NOW)
    assert count() == before


class TestSecretsFile:
    @pytest.fixture
    def directory(self, tmp_path: Path) -> Path:
        data_directory.prepare(tmp_path / "data")
        data_directory.make_secrets(tmp_path / "data")
        return tmp_path / "data"

    def read(self, directory: Path) -> tuple[int, set[int]]:
        found = data_directory.read_secrets(directory, {})
        return found.pepper_version, set(found.peppers)

    def test_pepper_is_added_used_and_removed_in_steps(self, directory: Path) -> None:
        assert data_directory.add_pepper(directory) == 2
        assert self.read(directory) == (1, {1, 2}), "a process that knows it only does not use it"
        with pytest.raises(OperatorError, match="2 peppers already"):
            data_directory.add_pepper(directory)
        data_directory.use_pepper(directory, 2)
        with pytest.raises(OperatorError, match="the one of new keys"):
            data_directory.remove_pepper(directory, 2)
        data_directory.remove_pepper(directory, 1)
        assert self.read(directory) == (2, {2})
        assert (directory / "secrets.json").stat().st_mode & 0o777 == 0o600
        assert [path.name for path in directory.iterdir() if "secrets" in path.name] == ["secrets.json"]

    def test_variable_holds_two_peppers_of_which_the_first_is_current(self, directory: Path) -> None:
        found = data_directory.read_secrets(directory, {"TOLLWAY_PEPPER": f"2:{NEW.hex()},1:{OLD.hex()}"})
        assert (found.pepper_version, found.peppers) == (2, {2: NEW, 1: OLD})

    @pytest.mark.parametrize("text", ["2:", "x:{0}", "1:{0},1:{0}", "0:{0}", "1:{0},2:{0},3:{0}"])
    def test_malformed_variable_is_refused_and_not_shown(self, directory: Path, text: str) -> None:
        with pytest.raises(OperatorError) as caught:
            data_directory.read_secrets(directory, {"TOLLWAY_PEPPER": text.format(NEW.hex())})
        assert NEW.hex() not in caught.value.message

    def test_command_adds_a_pepper_and_shows_none(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["peppers", "add", "--data-dir", str(directory)]) == 0
        shown = capsys.readouterr().out
        assert "added pepper 2" in shown
        assert not any(text in shown for text in json.loads((directory / "secrets.json").read_text())["peppers"].values())
