"""Settings: one name everywhere, the nearer source wins, and a name that nobody knows is an error that helps."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from reliability.processes import tollway
from tollway.gateway.edge.edge import EdgeBounds
from tollway.gateway.edge.server import DrainBounds
from tollway.gateway.media.bounds import MediaBounds
from tollway.gateway.relay import RelayBounds
from tollway.gateway.shedding import SheddingBounds
from tollway.gateway.waiting import QueueBounds
from tollway.link.spool import SpoolOptions
from tollway.serve import data_directory
from tollway.serve.parent import PARENT_ENV
from tollway.settings import (
    SHORT_NAMES,
    EdgeSection,
    GatewaySection,
    HttpSection,
    MediaSection,
    OperatorError,
    QueueSection,
    RelaySection,
    Settings,
    SheddingSection,
    SpoolSection,
    check_variables,
    load,
    read_yaml,
    to_environment,
)
from tollway.variables import OTHER_VARIABLES
from tollway.wire.http import HttpBounds


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


def test_sections_within_sections_are_read_from_files_and_variables(tmp_path: Path) -> None:
    config = write(tmp_path, "gateway: {edge: {head_seconds: 1.5, connections_max: 7}, spool: {slots_max: 3}}")
    settings = load({}, {"TOLLWAY__GATEWAY__EDGE__CONNECTIONS_MAX": "9"}, config)
    assert (settings.gateway.edge.head_seconds, settings.gateway.edge.connections_max) == (1.5, 9)
    assert settings.gateway.spool.slots_max == 3
    assert load({}, to_environment(settings), None) == settings


@pytest.mark.parametrize(
    ("section", "bounds"),
    [
        (HttpSection, HttpBounds),
        (EdgeSection, EdgeBounds),
        (RelaySection, RelayBounds),
        (MediaSection, MediaBounds),
        (QueueSection, QueueBounds),
        (SheddingSection, SheddingBounds),
        (SpoolSection, SpoolOptions),
    ],
)
def test_every_bound_of_the_data_plane_is_a_setting_with_the_same_default(section: type[msgspec.Struct], bounds: type[Any]) -> None:
    named = bounds.__struct_fields__ if issubclass(bounds, msgspec.Struct) else tuple(bounds.__dataclass_fields__)
    assert section.__struct_fields__ == named
    assert msgspec.convert(section(), bounds, from_attributes=True) == bounds()


def test_the_drain_is_a_setting_with_the_same_default() -> None:
    told = GatewaySection()
    assert DrainBounds(linger_seconds=told.linger_seconds, grace_seconds=told.drain_seconds) == DrainBounds()


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon", "86401"])
def test_a_bound_out_of_its_range_is_refused(value: str) -> None:
    with pytest.raises(OperatorError, match=r"gateway\.edge\.head_seconds in TOLLWAY__GATEWAY__EDGE__HEAD_SECONDS is not valid"):
        load({}, {"TOLLWAY__GATEWAY__EDGE__HEAD_SECONDS": value}, None)


def test_lists_are_lists_in_files_and_separated_by_commas_in_variables(tmp_path: Path) -> None:
    config = write(tmp_path, "gateway: {proxies: {trusted: [10.0.0.0/8, '::1'], forwarded_for: true}, allowed_hosts: [a.example]}")
    settings = load({}, {"TOLLWAY__GATEWAY__ALLOWED_HOSTS": "b.example, c.example:80"}, config)
    assert settings.gateway.proxies.trusted == ("10.0.0.0/8", "::1")
    assert settings.gateway.proxies.forwarded_for is True
    assert settings.gateway.allowed_hosts == ("b.example", "c.example:80")
    assert load({}, to_environment(settings), None) == settings
    assert load({}, {"TOLLWAY__GATEWAY__ALLOWED_HOSTS": ""}, config).gateway.allowed_hosts == ()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("SPOOL__SEGMENT_BYTES", "65536", "gateway.spool is not valid"),
        ("PROXIES__PROXY_PROTOCOL", "true", "gateway.proxies.trusted is empty"),
        ("PROXIES__FORWARDED_FOR", "true", "gateway.proxies.trusted is empty"),
        ("PROXIES__TRUSTED", "10.0.0.1/8", "10.0.0.1/8"),
        ("CORS__ORIGINS", "app.example.com", "is no origin"),
        ("ALLOWED_HOSTS", "a/b", "is no host"),
        ("TLS__KEY_FILE", "key.pem", "gateway.tls needs both"),
    ],
)
def test_settings_that_make_no_sense_together_end_the_start(tmp_path: Path, name: str, value: str, message: str) -> None:
    data = tmp_path / "data"
    data_directory.prepare(data)
    data_directory.make_secrets(data)
    environ = {f"TOLLWAY__GATEWAY__{name}": value}
    ended = tollway("gateway", "--data-dir", str(data), "--listen", "127.0.0.1:0", "--internal", "127.0.0.1:0", env=environ)
    assert ended.returncode == 2
    assert message in ended.stderr


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("gateway: {lisen: '1.1.1.1:1'}", "did you mean gateway.listen?"),
        ("gatewai: {listen: '1.1.1.1:1'}", "did you mean gateway.listen?"),
        ("data_dirr: x", "did you mean data_dir?"),
        ("gateway: {edge: {head_second: 1}}", "did you mean gateway.edge.head_seconds?"),
        ("gateway: {edge: 1}", "did you mean gateway"),
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


@pytest.mark.parametrize(
    ("variable", "nearest"),
    [
        ("TOLLWAY_DATABSE_URL", "TOLLWAY_DATABASE_URL"),
        ("TOLLWAY_CONTROL_LNK_URL", "TOLLWAY_CONTROL_LINK_URL"),
        ("TOLLWAY_PEPER", "TOLLWAY_PEPPER"),
        ("TOLLWAY_VAULTKEY", "TOLLWAY_VAULT_KEY"),
        ("TOLLWAY_GATEWAY__LISTEN", "TOLLWAY__GATEWAY__LISTEN"),
        ("TOLLWAY__gateway__listen", "TOLLWAY__GATEWAY__LISTEN"),
    ],
)
def test_short_variable_misspelt_is_refused_with_the_nearest_one(variable: str, nearest: str) -> None:
    for read in (check_variables, lambda environ: load({}, environ, None)):
        with pytest.raises(OperatorError, match=f"variable {variable} in the environment") as caught:
            read({variable: "x"})
        assert caught.value.exit_code == 2
        if variable != "TOLLWAY__gateway__listen":
            assert caught.value.hint == f"did you mean {nearest}?"


def test_variables_that_are_read_elsewhere_are_not_refused() -> None:
    """Those of the other programs of the repository, of upstream credentials, and of Kubernetes for a Service called tollway."""
    found = [
        *SHORT_NAMES,
        *OTHER_VARIABLES,
        *data_directory.SECRETS_ENV,
        *data_directory.NODE_ENV,
        "TOLLWAY_JOIN_TOKEN",
        PARENT_ENV,
        "TOLLWAY_TEST_POSTGRES",
        "TOLLWAY_CREDENTIAL_LLAMA_70B",
        "TOLLWAY_CLIENT_SECRET_COMPANY",
    ]
    for service in ("TOLLWAY", "TOLLWAY_CONTROL"):
        found += [f"{service}_SERVICE_HOST", f"{service}_SERVICE_PORT", f"{service}_SERVICE_PORT_HTTP", f"{service}_PORT"]
        found += [f"{service}_PORT_8081_TCP", *(f"{service}_PORT_8081_TCP_{part}" for part in ("PROTO", "PORT", "ADDR"))]
    check_variables(dict.fromkeys(found, "x"))


def test_every_command_refuses_an_unknown_variable() -> None:
    ran = tollway("keys", "list", env={"TOLLWAY_CONTRL_URL": "http://127.0.0.1:9"})
    assert ran.returncode == 2
    assert ran.stderr == "tollway: unknown variable TOLLWAY_CONTRL_URL in the environment\nhint: did you mean TOLLWAY_CONTROL_URL?\n"
    assert tollway("keys", "list", "--help", env={"TOLLWAY_CONTRL_URL": "x"}).returncode == 0


def test_a_value_of_the_wrong_type_names_its_setting_and_its_source() -> None:
    with pytest.raises(OperatorError, match=r"gateway\.drain_seconds in TOLLWAY__GATEWAY__DRAIN_SECONDS"):
        load({}, {"TOLLWAY__GATEWAY__DRAIN_SECONDS": "soon"}, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "line 3.*twice"),
        ("1: x", "must be text"),
        ("a: [", "not valid YAML"),
        ("a: {<<: text}", "takes a mapping or a list of mappings"),
        ("a: {<<: [{b: 1}, 2]}", "takes a mapping or a list of mappings"),
        ("a: &a {b: 1}\nc: {<<: *a, <<: *a}", "line 2.*stands twice"),
        ("a: {<<: {b: 1}, c: 1, c: 2}", "stands twice"),
        ("a: {<<: {b: 010}}", "leading zero"),
        ("a: &a {<<: *a}", "not valid YAML"),
        ("input: 010", "line 1.*leading zero"),
        ("input: -07", "leading zero"),
        ("a: 08", "leading zero"),
        ("a: !!int 010", "leading zero"),
        ("a: !!int 0x1F", "plain decimal"),
        ("a: !!bool yes", "write true or false"),
        ("a: 123456789012345678901234567890", "too large"),
        ("true: x", "must be text"),
        ("null: x", "must be text"),
        ("a: !!python/object/apply:os.system [true]", "not valid YAML"),
    ],
)
def test_yaml_that_could_be_misread_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(OperatorError, match=message):
        read_yaml(write(tmp_path, text))


@pytest.mark.parametrize(
    "word", ["1:30", "190:20:30", "0x1F", "0b11", "0o17", "1_000", "on", "off", "yes", "no", "y", "0.27", "1e3", ".5", "1."]
)
def test_yaml_words_that_versions_read_differently_stay_text(tmp_path: Path, word: str) -> None:
    assert read_yaml(write(tmp_path, f"a: {word}")) == {"a": word}


def test_yaml_reads_plain_numbers_booleans_and_null(tmp_path: Path) -> None:
    text = "a: 10\nb: -3\nc: true\nd: False\ne: null\nf: ~\ng:\nh: '010'\ni: &one {j: 0}\nk: *one"
    expected = {"a": 10, "b": -3, "c": True, "d": False, "e": None, "f": None, "g": None, "h": "010", "i": {"j": 0}, "k": {"j": 0}}
    assert read_yaml(write(tmp_path, text)) == expected


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{<<: *base, output: '2'}", {"input": "1", "output": "2"}),
        ("{output: '2', <<: *base}", {"input": "1", "output": "2"}),
        ("{<<: *base, input: '3'}", {"input": "3"}),
        ("{<<: [*base, *other]}", {"input": "1", "seconds": "4"}),
        ("{<<: [*other, *base]}", {"input": "9", "seconds": "4"}),
        ("{<<: {<<: *other, input: '5'}}", {"input": "5", "seconds": "4"}),
        ("{<<: {}}", {}),
        ("{'<<': 1}", {"<<": 1}),
    ],
)
def test_yaml_merge_key_adds_the_keys_that_are_not_written_out(tmp_path: Path, text: str, value: object) -> None:
    anchors = "base: &base {input: '1'}\nother: &other {input: '9', seconds: '4'}\n"
    assert read_yaml(write(tmp_path, f"{anchors}model: {text}"))["model"] == value


def test_yaml_merge_keys_that_repeat_each_other_take_no_more_than_their_keys(tmp_path: Path) -> None:
    levels = [f"l{n}: &l{n} {{<<: [{', '.join([f'*l{n - 1}'] * 9)}]}}" for n in range(1, 30)]
    assert read_yaml(write(tmp_path, "\n".join(["l0: &l0 {a: 1}", *levels])))["l29"] == {"a": 1}


def test_setting_written_in_yaml_1_1_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match=r"gateway\.drain_seconds in .* is not valid"):
        load({}, {}, write(tmp_path, "gateway: {drain_seconds: 1:30}"))
    with pytest.raises(OperatorError, match=r"gateway\.proxies\.forwarded_for in .* is not valid"):
        load({}, {}, write(tmp_path, "gateway: {proxies: {forwarded_for: yes}}"))


def test_yaml_dates_stay_text(tmp_path: Path) -> None:
    assert read_yaml(write(tmp_path, "at: 2026-12-01T00:00:00Z")) == {"at": "2026-12-01T00:00:00Z"}
