"""The data directory: made once, never misread, used by one at a time, and its secrets stay secret."""

import json
import os
import stat
from pathlib import Path

import pytest

from tollway.domain import keys
from tollway.domain.keys import KeyType
from tollway.serve.data_directory import find_node, keep_registered, locked, make_gateway_node, make_secrets, prepare, read_secrets
from tollway.settings import OperatorError


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A prepared data directory with secrets."""
    directory = tmp_path / "data"
    prepare(directory)
    make_secrets(directory)
    return directory


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_secrets_are_made_once_and_only_their_owner_reads_them(directory: Path) -> None:
    path = directory / "secrets.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    first = read_secrets(directory, {})
    make_secrets(directory)
    prepare(directory)
    assert read_secrets(directory, {}) == first
    assert len(first.peppers[1]) == 32 and len(first.vault_key) == 32
    node = find_node(directory, {})
    assert node is not None and keys.find_type(node.key) is KeyType.NODE
    assert first.platform_key is not None and keys.find_type(first.platform_key) is KeyType.PLATFORM
    assert sorted(entry.name for entry in directory.iterdir()) == ["secrets.json", "tollway.json"]  # no scraps


def test_secrets_never_show_in_a_repr(directory: Path) -> None:
    shown = repr(read_secrets(directory, {})) + repr(find_node(directory, {}))
    body = json.loads((directory / "secrets.json").read_text())
    for secret in (body["peppers"]["1"], body["vault_key"], body["node_key"], body["platform_key"]):
        assert secret not in shown
        assert secret[-8:] not in shown


def test_variables_replace_the_file(directory: Path) -> None:
    pepper = "0123456789abcdef" * 4
    secrets = read_secrets(directory, {"TOLLWAY_PEPPER": pepper})
    assert secrets.peppers == {1: bytes.fromhex(pepper)}
    assert secrets.vault_key == read_secrets(directory, {}).vault_key


def test_a_gateway_of_a_cluster_needs_no_file(directory: Path, tmp_path: Path) -> None:
    body = json.loads((directory / "secrets.json").read_text())
    environ = {
        "TOLLWAY_PEPPER": body["peppers"]["1"],
        "TOLLWAY_VAULT_KEY": body["vault_key"],
        "TOLLWAY_NODE_ID": body["node_id"],
        "TOLLWAY_NODE_KEY": body["node_key"],
    }
    assert read_secrets(tmp_path / "elsewhere", environ).platform_key is None
    assert find_node(tmp_path / "elsewhere", environ) == find_node(directory, {})


@pytest.mark.parametrize("missing", ["TOLLWAY_PEPPER", "TOLLWAY_VAULT_KEY", "TOLLWAY_NODE_ID", "TOLLWAY_NODE_KEY"])
def test_a_missing_secret_is_named(directory: Path, tmp_path: Path, missing: str) -> None:
    body = json.loads((directory / "secrets.json").read_text())
    environ = {
        "TOLLWAY_PEPPER": body["peppers"]["1"],
        "TOLLWAY_VAULT_KEY": body["vault_key"],
        "TOLLWAY_NODE_ID": body["node_id"],
        "TOLLWAY_NODE_KEY": body["node_key"],
    }
    del environ[missing]
    with pytest.raises(OperatorError, match=missing):
        find_node(tmp_path, environ)
        read_secrets(tmp_path, environ)


def test_gateway_without_a_node_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="no node key") as caught:
        make_gateway_node(tmp_path, {})
    assert "TOLLWAY_JOIN_TOKEN" in caught.value.hint


def test_gateway_with_a_join_token_makes_one_node_and_keeps_it_private(tmp_path: Path) -> None:
    token = keys.new_join_token(os.urandom(keys.RANDOM_BYTES)).secret
    made = make_gateway_node(tmp_path, {"TOLLWAY_JOIN_TOKEN": token})
    assert made.join_token == token
    assert keys.find_type(made.key) is KeyType.NODE
    path = tmp_path / "gateway" / "node_key.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert token not in path.read_text()
    assert make_gateway_node(tmp_path, {"TOLLWAY_JOIN_TOKEN": token}) == made
    keep_registered(tmp_path, made)
    kept = make_gateway_node(tmp_path, {"TOLLWAY_JOIN_TOKEN": token})
    assert (kept.node_id, kept.key, kept.join_token) == (made.node_id, made.key, None)
    assert make_gateway_node(tmp_path, {}) == kept


def test_malformed_join_token_is_refused_and_not_shown(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="TOLLWAY_JOIN_TOKEN") as caught:
        make_gateway_node(tmp_path, {"TOLLWAY_JOIN_TOKEN": "tw_join_secret"})
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("pepper", ["", "00", "0" * 64, "not hexadecimal at all", 7])
def test_an_empty_short_or_constant_pepper_is_refused_and_not_shown(directory: Path, pepper: object) -> None:
    edit(directory / "secrets.json", peppers={"1": pepper})
    with pytest.raises(OperatorError, match="must be 64 random") as caught:
        read_secrets(directory, {})
    assert not isinstance(pepper, str) or len(pepper) < 3 or pepper not in caught.value.message


def test_a_key_of_the_wrong_type_is_refused_and_not_shown(directory: Path) -> None:
    node_key = json.loads((directory / "secrets.json").read_text())["node_key"]
    edit(directory / "secrets.json", platform_key=node_key)
    with pytest.raises(OperatorError, match="platform key") as caught:
        read_secrets(directory, {})
    assert node_key not in caught.value.message


def test_everything_in_a_data_directory_is_made_private_at_the_start(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inner, outside = directory / "logs", directory.parent / "outside"
    outside.write_text("not ours")
    outside.chmod(0o644)
    inner.mkdir()
    (inner / "gateway.log").write_text("a line")
    (inner / "link").symlink_to(outside)
    for path, mode in ((inner, 0o755), (inner / "gateway.log", 0o664), (directory, 0o750)):
        path.chmod(mode)
    prepare(directory)
    modes = {
        path.relative_to(directory).as_posix(): stat.S_IMODE(path.lstat().st_mode) for path in (inner, inner / "gateway.log", directory)
    }
    assert modes == {"logs": 0o700, "logs/gateway.log": 0o600, ".": 0o700}
    assert stat.S_IMODE(outside.stat().st_mode) == 0o644, "links are not followed"
    assert "3 files" in capsys.readouterr().err
    prepare(directory)
    assert capsys.readouterr().err == ""


def test_files_are_created_for_their_owner_only_whatever_the_umask(directory: Path) -> None:
    before = os.umask(0)
    try:
        prepare(directory)
        (directory / "new").write_text("")
        assert stat.S_IMODE((directory / "new").stat().st_mode) == 0o600
    finally:
        os.umask(before)


def test_start_is_refused_if_everyone_could_read_the_secrets(directory: Path) -> None:
    (directory / "secrets.json").chmod(0o604)
    with pytest.raises(OperatorError, match="can be read by everyone"):
        prepare(directory)
    assert stat.S_IMODE((directory / "secrets.json").stat().st_mode) == 0o604


def test_secrets_that_everyone_may_read_are_refused(directory: Path) -> None:
    (directory / "secrets.json").chmod(0o644)
    with pytest.raises(OperatorError, match="can be read by everyone") as caught:
        read_secrets(directory, {})
    assert "chmod 600" in caught.value.hint


def test_damaged_secrets_are_refused_not_replaced(directory: Path) -> None:
    (directory / "secrets.json").write_text("{")
    make_secrets(directory)
    with pytest.raises(OperatorError, match="damaged"):
        read_secrets(directory, {})


def test_a_newer_directory_is_refused_and_left_alone(directory: Path) -> None:
    (directory / "tollway.json").write_text('{"format": 2}')
    with pytest.raises(OperatorError, match="newer Tollway"):
        prepare(directory)
    assert (directory / "tollway.json").read_text() == '{"format": 2}'


def test_a_directory_that_cannot_be_made_is_an_error_for_a_person(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OperatorError, match="data directory"):
        prepare(tmp_path / "file" / "data")


def test_a_lock_keeps_a_second_tollway_out_until_it_is_given_back(directory: Path) -> None:
    with locked(directory, "serve"):
        with pytest.raises(OperatorError, match="another Tollway"), locked(directory, "serve"):
            pass
        with locked(directory, "control"):
            pass
    with locked(directory, "serve"):
        pass
