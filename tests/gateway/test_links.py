"""Links in messages lead out, never in: whatever spelling an engine's URL library would take for a private address is refused here."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.gateway.harness import Memory, chat, message, plane, split_answers
from tollway.gateway.media.links import is_public

PRIVATE = {
    "32-metadata": "http://169.254.169.254/latest/meta-data/",
    "32-localhost": "http://localhost:8000/",
    "32-loopback": "http://127.0.0.1/",
    "32-rfc-1918": "https://10.1.2.3/x.png",
    "32-carrier-grade": "http://100.64.0.1/",
    "32-any": "http://0.0.0.0/",
    "32-mapped": "http://[::ffff:7f00:1]/",
    "32-mapped-dotted": "http://[::ffff:169.254.169.254]/",
    "32-one-number": "http://2130706433/",
    "32-octal": "http://0177.0.0.1/",
    "32-hexadecimal": "http://0x7f.0.0.1/",
    "32-short": "http://127.1/",
    "32-wide-digits": "http://127。0。0。1/",
    "32-user": "http://example.com@10.0.0.1/",
    "32-user-that-looks-like-a-host": "http://10.0.0.1@example.com/",
    "32-backslash": "http://example.com\\@10.0.0.1/",
    "32-backslash-in-the-path": "http://example.com/\\@10.0.0.1/",
    "32-tab": "http://exa\tmple.com/",
    "32-space": " http://example.com/",
    "32-scheme-case": "HtTp://LOCALHOST/",
    "32-trailing-dot": "http://localhost./",
    "32-internal-name": "http://metadata.google.internal/",
    "32-service": "http://redis.default.svc/",
    "32-service-in-full": "http://redis.default.svc.cluster.local./",
    "32-one-label": "http://redis:6379/",
    "32-no-host": "http:///etc/passwd",
    "32-relative": "//10.0.0.1/",
    "32-port-of-nothing": "http://example.com:/",
    "33-file": "file:///etc/passwd",
    "33-gopher": "gopher://127.0.0.1:6379/_x",
    "33-nat64": "http://[64:ff9b::a9fe:a9fe]/",
    "33-6to4": "http://[2002:7f00:1::]/",
    "33-compatible": "http://[::127.0.0.1]/",
    "33-unique-local": "http://[fd00:ec2::254]/",
    "33-link-local": "http://[fe80::1%25eth0]/",
    "33-zone": "http://[2606:4700::1%25eth0]/",
    "33-multicast": "http://[ff02::1]/",
    "33-multicast-of-ipv4": "http://224.0.0.1/",
}
PUBLIC = [
    "https://example.com/cat.png?size=1&x=%20#top",
    "HTTPS://Example.COM:8443/cat.png",
    "http://8.8.8.8/cat.png",
    "https://[2606:4700:4700::1111]:443/x",
    "https://xn--bcher-kva.example.org./",
    "https://my-bucket.s3.eu-central-1.amazonaws.com/a_b(1).png",
]


def parts(link: str) -> list[Any]:
    """Every place where a link may stand."""
    return [
        {"type": "image_url", "image_url": {"url": link}},
        {"type": "image_url", "image_url": link},
        {"type": "video_url", "video_url": {"url": link}},
        {"type": "image", "source": {"type": "url", "url": link}},
        {"type": "tool_result", "content": [{"type": "image", "source": {"type": "url", "url": link}}]},
    ]


@pytest.mark.parametrize("row", PRIVATE)
async def test_a_link_into_a_private_network_is_refused_before_an_engine_hears_of_it(row: str) -> None:
    with plane() as (made, sink, _):
        memory = Memory(made)
        bodies = [
            chat() | {"messages": [{"role": "user", "content": [{"type": "text", "text": "?"}, part]}]} for part in parts(PRIVATE[row])
        ]
        for body in [message(body) for body in bodies] + [message(body | {"max_tokens": 1}, "/v1/messages") for body in bodies]:
            (answer,) = split_answers((await memory.exchange(body)).written)
            assert answer.status == 400
            assert b"invalid_image_url" in answer.body or b"may be fetched" in answer.body
            assert PRIVATE[row].encode() not in answer.body
        assert not sink.admits


@pytest.mark.parametrize("link", PUBLIC)
def test_a_link_that_leads_out_is_taken(link: str) -> None:
    assert is_public(link)


@pytest.mark.parametrize("link", PRIVATE.values())
async def test_a_text_may_say_anything(link: str) -> None:
    with plane() as (made, _, _):
        called = {"type": "tool_use", "id": "t", "name": "fetch", "input": {"url": link, "source": {"url": link}}}
        for content in (link, [{"type": "text", "text": link}], [called]):
            body = chat() | {"messages": [{"role": "user", "content": content}]}
            (answer,) = split_answers((await Memory(made).exchange(message(body))).written)
            assert answer.status == 502, "it went on to an upstream that is not there"


@given(st.ip_addresses())
def test_addresses_are_public_only_if_python_and_we_agree(address: Any) -> None:
    link = f"http://[{address}]/" if address.version == 6 else f"http://{address}/"
    assert not is_public(link) or address.is_global
