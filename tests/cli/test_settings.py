"""Settings: one name everywhere, the nearer source wins, and a name that nobody knows is an error that helps."""

from pathlib import Path

import pytest

from tollway.settings import OperatorError, Settings, load, read_yaml, to_environment


def write(directory: Path, text: str) -> Path:
    path = directory / "tollway.yaml"
    path.write_text(text)
    return path


def test_command_line_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    config = write(tmp_path, "gateway: {listen: '1.1.1.1:1', internal: '1.1.1.1:2', drain_seconds: 5}")
    environ = {"TOLLWAY__GATEWAY__LISTEN": "2.2.2.2:1", "TOLLWAY__GATEWAY__INTERNAL": "2.2.2.2:2"}
    settings = load({"gateway.listen": "3.3.3.3:1", "gateway.internal": None}, environ, config)
    assert settings.gateway.listen == "3.3.3.3:1"
    assert settings.gateway.internal == "2.2.2.2:2"
    assert settings.gateway.drain_seconds == 5
    assert settings.control == Settings().control


def test_short_variables_stand_for_their_settings_and_the_long_name_wins() -> None:
    short = {"TOLLWAY_DATABASE_URL": "postgresql+psycopg://short/db"}
    assert load({}, short, None).control.database_url == "postgresql+psycopg://short/db"
    both = short | {"TOLLWAY__CONTROL__DATABASE_URL": "postgresql+psycopg://long/db"}
    assert load({}, both, None).control.database_url == "postgresql+psycopg://long/db"


def test_what_a_child_reads_from_its_environment_is_what_its_parent_was_told(tmp_path: Path) -> None:
    config = write(tmp_path, "data_dir: /var/lib/tollway\ngateway: {drain_seconds: 1.5}\ncontrol: {listen: '[::1]:1'}")
    settings = load({"gateway.listen": "0.0.0.0:80"}, {}, config)
    assert load({}, to_environment(settings), None) == settings


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("gateway: {lisen: '1.1.1.1:1'}", "did you mean gateway.listen?"),
        ("gatewai: {listen: '1.1.1.1:1'}", "did you mean gateway.listen?"),
        ("data_dirr: x", "did you mean data_dir?"),
        ("zzz: 1", "known here"),
    ],
)
def test_an_unknown_key_in_the_file_is_refused_with_the_nearest_one(tmp_path: Path, text: str, hint: str) -> None:
    with pytest.raises(OperatorError, match="unknown setting") as caught:
        load({}, {}, write(tmp_path, text))
    assert hint in caught.value.hint
    assert caught.value.exit_code == 2


def test_an_unknown_variable_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(OperatorError, match="TOLLWAY__GATEWAY__LISTNE") as caught:
        load({}, {"TOLLWAY__GATEWAY__LISTNE": "1.1.1.1:1"}, None)
    assert caught.value.hint == "did you mean TOLLWAY__GATEWAY__LISTEN?"


def test_a_value_of_the_wrong_type_names_its_setting_and_its_source() -> None:
    with pytest.raises(OperatorError, match=r"gateway\.drain_seconds in TOLLWAY__GATEWAY__DRAIN_SECONDS"):
        load({}, {"TOLLWAY__GATEWAY__DRAIN_SECONDS": "soon"}, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "line 3.*twice"),
        ("1: x", "must be text"),
        ("a: [", "not valid YAML"),
        ("a: !!python/object/apply:os.system [true]", "not valid YAML"),
    ],
)
def test_yaml_that_could_be_misread_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(OperatorError, match=message):
        read_yaml(write(tmp_path, text))


def test_yaml_dates_stay_text(tmp_path: Path) -> None:
    assert read_yaml(write(tmp_path, "at: 2026-12-01T00:00:00Z")) == {"at": "2026-12-01T00:00:00Z"}
