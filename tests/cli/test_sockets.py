"""Listening sockets: an address that cannot be had is named, with the option that changes it."""

import socket

import pytest

from tollway.serve.sockets import open_listener, parse_address, url_of
from tollway.settings import OperatorError


def test_port_0_takes_a_free_one_and_the_url_tells_which() -> None:
    with open_listener("127.0.0.1:0", option="--listen") as listener:
        url = url_of(listener)
        assert url.startswith("http://127.0.0.1:") and not url.endswith(":0")
        with socket.create_connection(listener.getsockname()):
            pass


def test_a_port_in_use_names_the_port_and_the_option() -> None:
    with open_listener("127.0.0.1:0", option="--listen") as listener:
        port = listener.getsockname()[1]
        with pytest.raises(OperatorError, match=f"port {port} on 127.0.0.1 is in use") as caught:
            open_listener(f"127.0.0.1:{port}", option="--control-listen")
        assert "--control-listen" in caught.value.hint


def test_a_wildcard_is_reached_on_this_machine() -> None:
    with open_listener("0.0.0.0:0", option="--listen") as listener:
        assert url_of(listener).startswith("http://127.0.0.1:")


def test_an_address_of_no_interface_is_refused() -> None:
    with pytest.raises(OperatorError, match=r"cannot listen on 192\.0\.2\.1:0"):
        open_listener("192.0.2.1:0", option="--listen")


@pytest.mark.parametrize(
    ("text", "parsed"), [("localhost:80", ("localhost", 80)), ("[::1]:0", ("::1", 0)), ("0.0.0.0:65535", ("0.0.0.0", 65535))]
)
def test_addresses_are_host_and_port(text: str, parsed: tuple[str, int]) -> None:
    assert parse_address(text, option="--listen") == parsed


@pytest.mark.parametrize("text", ["", "8080", ":8080", "host:", "host:port", "host:65536", "host:-1", "host:٣"])
def test_what_is_no_address_is_a_wrong_use(text: str) -> None:
    with pytest.raises(OperatorError, match="is not host:port") as caught:
        parse_address(text, option="--listen")
    assert caught.value.exit_code == 2
