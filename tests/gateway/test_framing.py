"""Attacks on framing: what a client sends in place of HTTP. Each test carries the row of the attack table that it stands for.

In memory, at once and byte by byte: a rejected message gets one error in OpenAI's shape, the connection ends, and nothing that
follows on it is interpreted.
"""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.fakes import UsageSink
from tests.gateway.harness import KEY, Answer, Memory, plane, split_answers

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\n"
BODY = b'{"model":"m","messages":[1]}'
JSON = b"content-type: application/json\r\nauthorization: Bearer " + KEY.encode() + b"\r\n"
CHUNKED = HEAD + JSON + b"transfer-encoding: chunked\r\n\r\n"
SMUGGLED = b"GET /livez HTTP/1.1\r\nhost: gateway\r\n\r\n"
LENGTH = b"content-length: 28\r\n"


def headed(*lines: bytes) -> bytes:
    return HEAD + JSON + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + BODY


def chunked(chunks: bytes) -> bytes:
    return CHUNKED + chunks


REJECTED = {
    "01-length-then-coding": (headed(LENGTH[:-2], b"transfer-encoding: chunked"), 400, "malformed_http"),
    "01-coding-then-length": (headed(b"transfer-encoding: chunked", LENGTH[:-2]), 400, "malformed_http"),
    "01-coding-then-length-0": (headed(b"transfer-encoding: chunked", b"content-length: 0"), 400, "malformed_http"),
    "02-equal-lengths": (headed(LENGTH[:-2], LENGTH[:-2]), 400, "malformed_http"),
    "02-unequal-lengths": (headed(LENGTH[:-2], b"content-length: 3"), 400, "malformed_http"),
    "02-list": (headed(b"content-length: 28, 28"), 400, "malformed_http"),
    "02-plus": (headed(b"content-length: +28"), 400, "malformed_http"),
    "02-minus": (headed(b"content-length: -1"), 400, "malformed_http"),
    "02-underscore": (headed(b"content-length: 2_8"), 400, "malformed_http"),
    "02-empty": (headed(b"content-length:"), 400, "malformed_http"),
    "02-hexadecimal": (headed(b"content-length: 0x1c"), 400, "malformed_http"),
    "02-beyond-64-bits": (headed(b"content-length: 18446744073709551617"), 400, "malformed_http"),
    "04-xchunked": (headed(b"transfer-encoding: xchunked"), 400, "malformed_http"),
    "04-chunked-identity": (headed(b"transfer-encoding: chunked, identity"), 400, "malformed_http"),
    "04-gzip-chunked": (headed(b"transfer-encoding: gzip, chunked"), 400, "malformed_http"),
    "04-comma-chunked": (headed(b"transfer-encoding: ,chunked"), 400, "malformed_http"),
    "04-vertical-tab": (headed(b"transfer-encoding: \x0bchunked"), 400, "malformed_http"),
    "04-identity": (headed(b"transfer-encoding: identity"), 400, "malformed_http"),
    "04-twice": (headed(b"transfer-encoding: chunked", b"transfer-encoding: chunked"), 400, "malformed_http"),
    "04-on-http-1.0": (CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0") + b"0\r\n\r\n", 400, "malformed_http"),
    "05-obsolete-fold": (headed(b"x: a\r\n b", LENGTH[:-2]), 400, "malformed_http"),
    "05-fold-on-host": (HEAD + b" b\r\n\r\n", 400, "malformed_http"),
    "05-bare-lf": (headed(b"x: a\ny: b", LENGTH[:-2]), 400, "malformed_http"),
    "05-bare-lf-at-the-end": (HEAD[:-2] + b"\n\n", 400, "malformed_http"),
    "05-bare-cr": (headed(b"x: a\rb", LENGTH[:-2]), 400, "malformed_http"),
    "05-nul": (headed(b"x: a\0b", LENGTH[:-2]), 400, "malformed_http"),
    "05-space-before-colon": (headed(b"content-length : 28"), 400, "malformed_http"),
    "05-empty-name": (headed(b": x", LENGTH[:-2]), 400, "malformed_http"),
    "05-no-colon": (headed(b"x", LENGTH[:-2]), 400, "malformed_http"),
    "05-space-before-the-first": (b"GET /livez HTTP/1.1\r\n host: gateway\r\n\r\n", 400, "malformed_http"),
    "06-0x3": (chunked(b"0x3\r\nabc\r\n0\r\n\r\n"), 400, "malformed_http"),
    "06-plus": (chunked(b"+3\r\nabc\r\n0\r\n\r\n"), 400, "malformed_http"),
    "06-underscore": (chunked(b"0_3\r\nabc\r\n0\r\n\r\n"), 400, "malformed_http"),
    "06-minus": (chunked(b"-1\r\nabc\r\n0\r\n\r\n"), 400, "malformed_http"),
    "06-17-digits": (chunked(b"fffffffffffffffff\r\nabc\r\n0\r\n\r\n"), 400, "malformed_http"),
    "06-line-ended-by-lf": (chunked(b"3\nabc\r\n0\r\n\r\n"), 400, "malformed_http"),
    "06-data-without-crlf": (chunked(b"3\r\nabcX0\r\n\r\n"), 400, "malformed_http"),
    "06-data-ended-by-lf": (chunked(b"3\r\nabc\n0\r\n\r\n"), 400, "malformed_http"),
    "06-cr-in-extension": (chunked(b"3;a\rb\r\nabc\r\n0\r\n\r\n"), 400, "malformed_http"),
    "06-lf-in-extension": (chunked(b"3;a\nb\r\nabc\r\n0\r\n\r\n"), 400, "malformed_http"),
    "06-quoted-crlf-in-extension": (chunked(b'3;a="b\r\n"\r\nabc\r\n0\r\n\r\n'), 400, "malformed_http"),
    "06-space-after-size": (chunked(b"3 \r\nabc\r\n0\r\n\r\n"), 400, "malformed_http"),
    "08-length-in-trailer": (chunked(b"0\r\ncontent-length: 5\r\n\r\n"), 400, "malformed_http"),
    "09-no-host": (b"GET /livez HTTP/1.1\r\n\r\n", 400, "malformed_http"),
    "09-two-hosts": (b"GET /livez HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n", 400, "malformed_http"),
    "09-empty-host": (b"GET /livez HTTP/1.1\r\nhost:\r\n\r\n", 400, "malformed_http"),
    "09-host-with-path": (b"GET /livez HTTP/1.1\r\nhost: a/v1/public?x=\r\n\r\n", 400, "malformed_http"),
    "09-host-with-fragment": (b"GET /livez HTTP/1.1\r\nhost: a#\r\n\r\n", 400, "malformed_http"),
    "09-host-with-user": (b"GET /livez HTTP/1.1\r\nhost: a@b\r\n\r\n", 400, "malformed_http"),
    "09-host-with-list": (b"GET /livez HTTP/1.1\r\nhost: a, b\r\n\r\n", 400, "malformed_http"),
    "10-absolute-form-of-another-host": (b"GET http://evil/livez HTTP/1.1\r\nhost: gateway\r\n\r\n", 400, "invalid_target"),
    "10-absolute-form-with-user": (b"GET http://a@gateway/livez HTTP/1.1\r\nhost: gateway\r\n\r\n", 400, "invalid_target"),
    "10-upgrade": (b"GET /livez HTTP/1.1\r\nhost: gateway\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n", 400, "malformed_http"),
    "10-connect": (b"CONNECT a:1 HTTP/1.1\r\nhost: gateway\r\n\r\n", 405, "method_not_allowed"),
    "10-lower-case-method": (b"get /livez HTTP/1.1\r\nhost: gateway\r\n\r\n", 400, "malformed_http"),
    "10-unknown-method": (b"FOO /livez HTTP/1.1\r\nhost: gateway\r\n\r\n", 400, "malformed_http"),
    "10-http-1.9": (b"GET /livez HTTP/1.9\r\nhost: gateway\r\n\r\n", 400, "malformed_http"),
    "10-http-2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "malformed_http"),
    "10-http-0.9": (b"GET /livez\r\n\r\n", 400, "malformed_http"),
    "16-underscore-twin": (headed(b"x_tenant_id: 1", LENGTH[:-2]), 400, "malformed_http"),
    "16-underscore-twin-of-length": (headed(b"content_length: 28", LENGTH[:-2]), 400, "malformed_http"),
    "17-crlf-in-request-id": (headed(b"x-client-request-id: a\r\n b", LENGTH[:-2]), 400, "malformed_http"),
    "25-nul-in-target": (b"GET /v1/\0 HTTP/1.1\r\nhost: gateway\r\n\r\n", 400, "malformed_http"),
    "25-raw-ff-in-target": (b"GET /v1/\xff HTTP/1.1\r\nhost: gateway\r\n\r\n", 400, "malformed_http"),
    "36-key-of-100-kilobytes": (HEAD + b"authorization: Bearer " + b"k" * 102_400 + b"\r\n\r\n", 431, "headers_too_large"),
    "36-two-thousand-headers": (HEAD + b"x: y\r\n" * 2000 + b"\r\n", 431, "headers_too_large"),
    "36-target-of-9-kilobytes": (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nhost: gateway\r\n\r\n", 414, "uri_too_long"),
    "36-two-authorizations": (headed(b"authorization: Bearer x", LENGTH[:-2]), 400, "ambiguous_credentials"),
    "36-two-x-api-keys": (HEAD + b"x-api-key: a\r\nx-api-key: a\r\ncontent-length: 0\r\n\r\n", 400, "ambiguous_credentials"),
    "36-endless-empty-lines": (b"\r\n" * 40_000, 431, "headers_too_large"),
    "20-length-past-the-cap": (headed(b"content-length: 33554433"), 413, "body_too_large"),
    "20-expectation-unknown": (headed(b"expect: 200-ok", LENGTH[:-2]), 417, "expectation_failed"),
}  # fmt: skip


@pytest.fixture
async def memory() -> AsyncIterator[Memory]:
    with plane() as (made, _, log):
        yield Memory(made)
        log.close()
        assert b"internal_error" not in log.text


def sink_of(memory: Memory) -> UsageSink:
    sink = memory.edge.plane.usage_sink
    assert isinstance(sink, UsageSink)
    return sink


def check_refusal(answer: Answer, status: int, code: str) -> None:
    assert (answer.status, answer.error["code"]) == (status, code)
    assert answer.error["type"] == "invalid_request_error"
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize("step", [0, 1], ids=["at-once", "bytewise"])
@pytest.mark.parametrize("row", REJECTED)
async def test_row(row: str, step: int, memory: Memory) -> None:
    attack, status, code = REJECTED[row]
    connection = await memory.exchange(attack + SMUGGLED, step)
    (answer,) = split_answers(connection.written)
    check_refusal(answer, status, code)
    assert answer.headers["connection"] == "close"
    assert connection.is_over
    assert not sink_of(memory).admits


@pytest.mark.parametrize("row", REJECTED)
async def test_requests_before_a_rejected_one_are_answered_and_those_after_it_are_not(row: str, memory: Memory) -> None:
    attack, status, _ = REJECTED[row]
    connection = await memory.exchange(SMUGGLED + SMUGGLED + attack + SMUGGLED)
    assert [answer.status for answer in split_answers(connection.written)] == [200, 200, status]
    assert connection.is_over


async def test_08_trailers_say_nothing(memory: Memory) -> None:
    trailers = b"authorization: Bearer x\r\nx-api-key: y\r\nx-tenant-id: z\r\nhost: evil\r\n"
    anonymous = HEAD + b"content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    body = b"1c\r\n" + BODY + b"\r\n0\r\nauthorization: Bearer " + KEY.encode() + b"\r\n\r\n"
    known = await memory.exchange(chunked(b"1c\r\n" + BODY + b"\r\n0\r\n" + trailers + b"\r\n"))
    unknown = await memory.exchange(anonymous + body)
    assert split_answers(known.written)[0].status == 400  # it was authenticated, and its messages were read
    assert split_answers(unknown.written)[0].status == 401


async def test_10_trace_is_not_a_method_of_this_server(memory: Memory) -> None:
    connection = await memory.exchange(b"TRACE / HTTP/1.1\r\nhost: gateway\r\n\r\n" + SMUGGLED)
    refusal, after = split_answers(connection.written)
    check_refusal(refusal, 405, "method_not_allowed")
    assert after.status == 200


async def test_10_absolute_form_of_this_host_is_served(memory: Memory) -> None:
    connection = await memory.exchange(b"GET http://Gateway/livez HTTP/1.1\r\nhost: gateway\r\n\r\n")
    assert split_answers(connection.written)[0].status == 200


async def test_16_forwarding_headers_are_ignored(memory: Memory) -> None:
    forged = b"x-forwarded-for: 10.0.0.1\r\nx-forwarded-for: 10.0.0.2\r\nforwarded: for=1\r\nx-real-ip: 1\r\nx-tenant-id: org_1\r\n"
    connection = await memory.exchange(b"GET /livez HTTP/1.1\r\nhost: gateway\r\n" + forged + b"\r\n")
    assert split_answers(connection.written)[0].status == 200


@pytest.mark.parametrize("step", [0, 1000])
async def test_20_chunked_body_past_the_cap_is_refused_while_it_is_read(step: int) -> None:
    from tollway.wire.http import HttpBounds

    with plane() as (made, sink, _):
        memory = Memory(made, http=HttpBounds(body_bytes_max=100_000))
        connection = await memory.exchange(CHUNKED + b"2710\r\n" + b"x" * 10_000 + b"\r\n", step)
        assert connection.written == b""
        for _ in range(10):
            await asyncio.sleep(0)  # the turn of the next part of a large body
            connection.feed(b"2710\r\n" + b"x" * 10_000 + b"\r\n")
        (answer,) = split_answers(connection.written)
        check_refusal(answer, 413, "body_too_large")
        assert connection.is_over and not sink.admits


async def test_20_a_large_body_without_a_key_is_refused_by_its_head(memory: Memory) -> None:
    anonymous = HEAD + b"content-type: application/json\r\ncontent-length: 1000000\r\n\r\n"
    connection = await memory.exchange(anonymous)
    (answer,) = split_answers(connection.written)
    assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
    assert connection.is_over


TARGETS = {
    "/v1/../admin": (400, "invalid_target"),
    "/v1/./models": (400, "invalid_target"),
    "/v1/%2e%2e/admin": (400, "invalid_target"),
    "/v1/%2E./admin": (400, "invalid_target"),
    "/v1/models/../../admin": (400, "invalid_target"),
    "/v1/models/%2e%2e%2fadmin": (400, "invalid_target"),
    "/v1/chat%2fcompletions": (400, "invalid_target"),
    "/v1/chat%2Fcompletions": (400, "invalid_target"),
    "/v1\\chat": (400, "invalid_target"),
    "/v1/%5cchat": (400, "invalid_target"),
    "/v1/chat%00": (400, "invalid_target"),
    "/v1/chat%ff": (400, "invalid_target"),
    "/v1/%c0%af": (400, "invalid_target"),
    "*": (400, "invalid_target"),
    "//admin": (404, "not_found"),
    "/v1/chat/completions;x": (404, "not_found"),
    "/v1/chat/completions/": (404, "not_found"),
    "/V1/chat/completions": (404, "not_found"),
    "/v1/chat/completions%20": (404, "not_found"),
    "/v1/chat/complet%69ons": (404, "not_found"),
    "/v1/%252e%252e/admin": (404, "not_found"),
    "/metrics": (404, "not_found"),
    "/": (404, "not_found"),
}


@pytest.mark.parametrize("target", TARGETS)
async def test_25_targets_that_two_parsers_read_differently(target: str, memory: Memory) -> None:
    connection = await memory.exchange(f"GET {target} HTTP/1.1\r\nhost: gateway\r\n\r\n".encode())
    (answer,) = split_answers(connection.written)
    check_refusal(answer, *TARGETS[target])
    assert connection.is_over is (answer.status == 400)


async def test_405_names_what_is_allowed(memory: Memory) -> None:
    for target, allowed in (("/v1/chat/completions", "POST"), ("/v1/models", "GET, HEAD"), ("/livez", "GET, HEAD")):
        connection = await memory.exchange(f"DELETE {target} HTTP/1.1\r\nhost: gateway\r\n\r\n".encode() + SMUGGLED)
        refusal, after = split_answers(connection.written)
        check_refusal(refusal, 405, "method_not_allowed")
        assert refusal.headers["allow"] == allowed
        assert after.status == 200


@pytest.mark.parametrize("target", ["/livez", "/readyz", "/v1/models", "/nothing", "/v1/chat/completions", "/v1/../x"])
async def test_the_answer_to_head_has_no_body(target: str, memory: Memory) -> None:
    connection = await memory.exchange(f"HEAD {target} HTTP/1.1\r\nhost: gateway\r\n\r\n".encode() + SMUGGLED)
    first, *rest = split_answers(connection.written, ["HEAD"])
    assert int(first.headers["content-length"]) > 0
    assert [answer.body for answer in rest] == ([] if connection.is_over else [b'{"status":"alive"}'])


async def test_bytes_after_a_last_request_are_not_answered(memory: Memory) -> None:
    last = b"GET /livez HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n\r\n"
    connection = await memory.exchange(last + SMUGGLED)
    (answer,) = split_answers(connection.written)
    assert answer.headers["connection"] == "close"
    assert connection.is_over


async def test_http_1_0_is_answered_and_closed(memory: Memory) -> None:
    connection = await memory.exchange(b"GET /livez HTTP/1.0\r\n\r\n")
    (answer,) = split_answers(connection.written)
    assert answer.status == 200 and connection.is_over
