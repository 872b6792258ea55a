"""Edge policy, which says who may connect and as whom: every rule is off by default, and does exactly what it says when it is on."""

from typing import Any

import msgspec
import pytest

from tests.fakes import Upstream
from tests.gateway.harness import (
    KEY,
    Memory,
    Served,
    chat,
    completion,
    connect,
    gateway,
    healthy,
    message,
    plane,
    post,
    split_answers,
    streamed,
    whole,
)
from tollway.gateway.edge.cors import parse_origins
from tollway.gateway.edge.edge import EdgeBounds
from tollway.gateway.edge.edge_policy import EdgePolicy, find_client, parse_hosts, parse_networks

PAGE = "https://app.example.com"
TRUSTED = parse_networks(["10.0.0.0/8", "2001:db8::/32"])
BEHIND = EdgePolicy(trusted=TRUSTED, forwarded_for=True, peers_logged=True)


def ask(method: str, path: str, **headers: str) -> bytes:
    fields = {"host": "gateway", **{name.replace("_", "-"): value for name, value in headers.items()}}
    return f"{method} {path} HTTP/1.1\r\n".encode() + "".join(f"{name}: {value}\r\n" for name, value in fields.items()).encode() + b"\r\n"


async def answer(data: bytes, rules: EdgePolicy | None = None, method: str = "") -> Any:
    with plane() as (made, _, _):
        connection = await Memory(made, rules=rules).exchange(data)
        (answered,) = split_answers(connection.written, [method])
        return answered


# Addresses


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("192.0.2.1", b"198.51.100.1", "192.0.2.1"),  # not trusted: whatever it says
        ("10.0.0.1", None, "10.0.0.1"),
        ("10.0.0.1", b"198.51.100.1", "198.51.100.1"),
        ("::ffff:10.0.0.1", b"198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", b"203.0.113.9, 198.51.100.1", "198.51.100.1"),  # the left one was written by the client
        ("10.0.0.1", b"198.51.100.1, 10.9.9.9", "198.51.100.1"),
        ("10.0.0.1", b"198.51.100.1:4711,2001:db8::5", "198.51.100.1"),
        ("10.0.0.1", b"[2a00::1]:4711", "2a00::1"),
        ("10.0.0.1", b"10.1.1.1, 10.2.2.2", "10.1.1.1"),
        ("10.0.0.1", b"198.51.100.1, unknown, 10.2.2.2", "10.2.2.2"),
        ("10.0.0.1", b"198.51.100.1, ", "10.0.0.1"),
        ("10.0.0.1", b"\xff\xfe", "10.0.0.1"),
        ("", b"198.51.100.1", ""),
    ],
)
def test_the_client_is_the_right_most_address_that_no_trusted_proxy_has(peer: str, forwarded: bytes | None, client: str) -> None:
    assert find_client(BEHIND, peer, forwarded) == client
    assert find_client(EdgePolicy(trusted=TRUSTED), peer, forwarded) == peer


async def logged_peer(rules: EdgePolicy | None, peer: str, key: str = KEY) -> str | None:
    with plane() as (made, _, log):
        memory = Memory(made, rules=rules)
        connection = memory.connect(peer)
        connection.feed(message(chat(), key=key, x_forwarded_for="198.51.100.1, 10.3.3.3"))
        await memory.settle()
        log.close()
        (line,) = log.text.splitlines()
        return dict(msgspec.json.decode(line)).get("peer")


async def test_the_log_names_the_client_only_where_that_is_wanted() -> None:
    assert await logged_peer(None, "192.0.2.1") is None
    assert await logged_peer(EdgePolicy(trusted=TRUSTED, forwarded_for=True), "10.0.0.1") is None
    assert await logged_peer(EdgePolicy(peers_logged=True), "10.0.0.1") == "10.0.0.1"
    assert await logged_peer(BEHIND, "192.0.2.1") == "192.0.2.1"
    assert await logged_peer(BEHIND, "10.0.0.1") == "198.51.100.1"
    assert await logged_peer(BEHIND, "10.0.0.1", key="nonsense") == "198.51.100.1"


async def test_a_trusted_proxys_connections_are_not_bounded_as_if_it_were_one_client() -> None:
    with plane() as (made, _, _):
        memory = Memory(made, EdgeBounds(connections_per_peer_max=1), rules=BEHIND)
        assert not any(memory.connect("10.0.0.1").is_over for _ in range(3))
        assert [memory.connect("192.0.2.1").is_over for _ in range(2)] == [False, True]


# Hosts


@pytest.mark.parametrize(
    ("host", "path", "status"),
    [
        ("api.example.com", "/v1/models", 401),
        ("API.example.com:8443", "/v1/models", 401),
        ("inner:8080", "/v1/models", 401),
        ("inner:8081", "/v1/models", 421),
        ("inner", "/v1/models", 421),
        ("evil.example.com", "/v1/models", 421),
        ("api.example.com.evil.com", "/nothing", 421),
        ("10.0.0.1:8080", "/livez", 200),
    ],
)
async def test_09_only_listed_hosts_are_served(host: str, path: str, status: int) -> None:
    rules = EdgePolicy(hosts=parse_hosts(["api.example.com", "Inner:8080"]))
    assert (await answer(ask("GET", path, host=host), rules)).status == status
    assert (await answer(ask("GET", path, host=host))).status in (401, 404, 200)


async def test_a_body_for_another_host_is_not_waited_for() -> None:
    rules = EdgePolicy(hosts=parse_hosts(["api.example.com"]))
    head = message(b"", content_length="1000000")
    refused = await answer(head, rules)
    assert (refused.status, refused.error["code"]) == (421, "misdirected_request")
    assert refused.headers["connection"] == "close"


# Origins


@pytest.mark.parametrize(
    ("path", "methods"),
    [("/v1/chat/completions", "POST"), ("/v1/messages", "POST"), ("/v1/models/a/b", "GET, HEAD"), ("/livez", "GET, HEAD")],
)
async def test_options_is_refused_unless_scripts_are_welcome(path: str, methods: str) -> None:
    preflight = ask("OPTIONS", path, origin=PAGE, access_control_request_method="POST", access_control_request_headers="authorization")
    refused = await answer(preflight)
    assert (refused.status, refused.headers["allow"]) == (405, methods)
    assert not [name for name in refused.headers if name.startswith("access-control") or name == "vary"]
    told = await answer(preflight, EdgePolicy(origins=parse_origins([PAGE])))
    assert (told.status, told.body) == (200, b"")
    assert told.headers["access-control-allow-origin"] == PAGE
    assert told.headers["access-control-allow-methods"] == methods
    assert told.headers["access-control-allow-headers"] == "authorization, *"
    assert told.headers["access-control-max-age"] == "600"
    assert told.headers["vary"] == "origin"
    assert "access-control-allow-credentials" not in told.headers


@pytest.mark.parametrize("origin", ["https://evil.example.com", "https://app.example.com.evil.com", "null", "http://app.example.com", None])
async def test_a_script_from_elsewhere_is_told_nothing(origin: str | None) -> None:
    headers = {} if origin is None else {"origin": origin}
    told = await answer(ask("GET", "/v1/models", **headers), EdgePolicy(origins=parse_origins([PAGE])))
    assert told.status == 401
    assert not [name for name in told.headers if name.startswith("access-control")]
    assert told.headers["vary"] == "origin"


async def test_all_origins_are_welcome_with_a_star_and_none_is_echoed() -> None:
    told = await answer(ask("GET", "/livez", origin="https://anybody.example"), EdgePolicy(origins=parse_origins(["*"])))
    assert told.headers["access-control-allow-origin"] == "*"
    assert "vary" not in told.headers


@pytest.mark.parametrize("path", ["/v1/nothing", "/v1/../models", "*"])
async def test_a_preflight_for_nothing_finds_nothing(path: str) -> None:
    told = await answer(ask("OPTIONS", path, origin=PAGE), EdgePolicy(origins=parse_origins([PAGE])))
    assert told.status in (400, 404)


async def test_answers_streams_and_refusals_may_be_read_by_welcome_scripts() -> None:
    upstream = Upstream([whole(completion())], healthy())
    rules = EdgePolicy(origins=parse_origins([PAGE]))
    async with upstream.listening(), gateway({"m": Served([upstream.url])}, rules=rules) as running:
        answers = [await post(running.port, body, origin=PAGE) for body in (chat(), streamed())]
        answers.append(await post(running.port, chat("no-such-model"), origin=PAGE))
        answers.append(await post(running.port, b"{", origin=PAGE))
        async with connect(running.port) as client:
            client.send(message(b"", origin=PAGE, key="unknown", content_length="1000000"))
            answers.append(await client.answer())
    assert [each.status for each in answers] == [200, 200, 404, 400, 401]
    assert answers[1].events()[-1] == "[DONE]"
    for each in answers:
        assert each.headers["access-control-allow-origin"] == PAGE
        assert each.headers["access-control-expose-headers"] == "*"


@pytest.mark.parametrize("path", ["/v1/models", "/livez", "/readyz", "/health"])
async def test_head_is_get_without_a_body(path: str) -> None:
    whole_answer = await answer(ask("GET", path, authorization=f"Bearer {KEY}"))
    head = await answer(ask("HEAD", path, authorization=f"Bearer {KEY}"), method="HEAD")
    assert (head.status, head.headers["content-length"]) == (whole_answer.status, str(len(whole_answer.body)))


# What operators write


@pytest.mark.parametrize("text", ["app.example.com", "https://app.example.com/", "https://App.example.com", "null", "https://*.e.com", ""])
def test_what_no_browser_sends_is_no_origin(text: str) -> None:
    with pytest.raises(ValueError):
        parse_origins([text])
    with pytest.raises(ValueError):
        parse_origins(["*", PAGE])


@pytest.mark.parametrize("text", ["10.0.0.1/8", "10.0.0", "proxy.example.com", "10.0.0.0/33", ""])
def test_what_is_no_network_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_networks([text])
