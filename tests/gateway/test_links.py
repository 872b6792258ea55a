"""Links in messages lead out, never in: whatever spelling an engine's URL library would take for a private address is refused here."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.gateway.harness import Memory, chat, message, plane, split_answers
from tollway.domain.addresses import is_metadata
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
    "32-cluster-namespace": "http://kubernetes.default/api",
    "32-cluster-other-namespace": "http://redis.production:6379/",
    "32-corporate-name": "http://wiki.corp/",
    "32-home-name": "http://nas.home/",
    "32-private-name": "http://db.private/",
    "32-intranet-name": "http://portal.intra/",
    "32-router": "http://fritz.box/",
    "32-user-assigned-country": "http://db.zz/",
    "32-metadata-of-a-cloud": "http://metadata.tencentyun.com/latest/meta-data/",
    "32-metadata-alias": "http://metadata.goog/computeMetadata/v1/",
    "32-name-of-an-address": "http://169-254-169-254.nip.io/",
    "32-no-host": "http:///etc/passwd",
    "32-relative": "//10.0.0.1/",
    "32-port-of-nothing": "http://example.com:/",
    "33-file": "file:///etc/passwd",
    "33-gopher": "gopher://127.0.0.1:6379/_x",
    "33-nat64": "http://[64:ff9b::a9fe:a9fe]/",
    "33-nat64-of-a-public-address": "http://[64:ff9b::808:808]/",
    "33-6to4": "http://[2002:7f00:1::]/",
    "33-compatible": "http://[::127.0.0.1]/",
    "33-unique-local": "http://[fd00:ec2::254]/",
    "33-link-local": "http://[fe80::1%25eth0]/",
    "33-zone": "http://[2606:4700::1%25eth0]/",
    "33-multicast": "http://[ff02::1]/",
    "33-multicast-of-ipv4": "http://224.0.0.1/",
    "144-metadata-of-oracle": "http://192.0.0.192/latest/",
    "144-host-of-azure": "http://168.63.129.16/machine?comp=goalstate",
    "144-host-of-azure-nat64": "http://[64:ff9b::a83f:8110]/",
    "144-assignments-of-the-ietf": "http://192.0.0.8/",
    "144-relay-of-6to4": "http://192.88.99.1/",
    "144-site-local": "http://[fec0::1]/",
    "144-documentation": "http://[3fff::1]/",
    "144-segment-routing": "http://[5f00::1]/",
    "144-dummy": "http://[100:0:0:1::1]/",
    "144-unassigned": "http://[4000::1]/",
    "144-local-nat64": "http://[64:ff9b:1::a00:1]/",
}
PUBLIC = [
    "https://example.com/cat.png?size=1&x=%20#top",
    "HTTPS://Example.COM:8443/cat.png",
    "http://8.8.8.8/cat.png",
    "https://[2606:4700:4700::1111]:443/x",
    "https://xn--bcher-kva.example.org./",
    "https://my-bucket.s3.eu-central-1.amazonaws.com/a_b(1).png",
    "https://example.photography/a.png",
    "https://example.co.uk/a.png",
    "https://example.xn--p1ai/a.png",
]


def parts(link: str) -> list[Any]:
    """Every place where a link may stand."""
    return [
        {"type": "image_url", "image_url": {"url": link}},
        {"type": "image_url", "image_url": link},
        {"type": "video_url", "video_url": {"url": link}},
        {"type": "image", "source": {"type": "url", "url": link}},
        {"type": "tool_result", "content": [{"type": "image", "source": {"type": "url", "url": link}}]},
        {"type": "web_fetch_tool_result", "content": {"type": "web_fetch_result", "content": {"source": {"type": "url", "url": link}}}},
        {"image_url": {"url": link}},
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
        system = chat(max_tokens=1, system=[parts(PRIVATE[row])[3]])
        (answer,) = split_answers((await memory.exchange(message(system, "/v1/messages"))).written)
        assert (answer.status, b"may be fetched" in answer.body) == (400, True)
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
    assert not is_public(link) or (address.is_global and not is_metadata(address))


LINK = "http://169.254.169.254/"
OTHER_SHAPES: dict[str, Any] = {
    "32-content-as-an-object": {"type": "image_url", "image_url": {"url": LINK}},
    "32-nested-lists": [[{"type": "image_url", "image_url": {"url": LINK}}]],
    "32-other-type": [{"type": "video", "video": LINK}],
    "32-other-member": [{"type": "image_url", "image_url": {"url": "https://example.com/"}, "fallback_url_list": [LINK]}],
    "32-other-member-of-the-link": [{"type": "image_url", "image_url": {"url": "https://example.com/", "thumbnail": LINK}}],
    "32-link-as-a-list": [{"type": "image_url", "image_url": [{"url": LINK}]}],
    "32-type-that-is-not-text": [{"type": ["image_url"], "image_url": {"url": "https://example.com/"}}],
    "32-number": [5],
    "56-cache-key-of-vllm": [{"type": "image_url", "image_url": {"url": "https://example.com/"}, "uuid": "their-picture"}],
    "56-cache-key-alone": [{"type": "image_url", "image_url": None, "uuid": "their-picture"}],
    "56-cache-key-of-sglang": [{"type": "image_url", "image_url": {"url": "https://example.com/", "content_hash": "00"}}],
    "56-cache-key-beside-text": [{"type": "text", "text": "a", "uuid": "their-picture"}],
    "145-sound-as-a-text": [{"input_audio": LINK}],
    "145-sound-of-a-type-as-a-text": [{"type": "input_audio", "input_audio": LINK}],
    "145-file-as-a-text": [{"type": "file", "file": LINK}],
    "145-sound-as-a-text-beside-text": [{"type": "text", "text": "a", "input_audio": LINK}],
    "34-frames-beyond-the-bounds": [{"type": "video_url", "video_url": {"url": "https://example.com/", "fps": 1000}}],
}


@pytest.mark.parametrize("row", OTHER_SHAPES)
async def test_content_of_a_shape_that_no_api_defines_is_refused(row: str) -> None:
    with plane() as (made, sink, _):
        memory = Memory(made)
        for path in ("/v1/chat/completions", "/v1/messages"):
            body = chat(max_tokens=1) | {"messages": [{"role": "user", "content": OTHER_SHAPES[row]}]}
            (answer,) = split_answers((await memory.exchange(message(body, path))).written)
            assert answer.status == 400 and b"shape" in answer.body
        assert not sink.admits


@pytest.mark.parametrize(
    "tool",
    [{"type": "mcp", "server_url": LINK}, {"type": "web_search"}, {"type": ["function"]}, {"type": None}, "function"],
)
async def test_145_tools_that_an_engine_would_run_are_refused(tool: Any) -> None:
    with plane() as (made, sink, _):
        (answer,) = split_answers((await Memory(made).exchange(message(chat(tools=[tool])))).written)
        assert (answer.status, b"run by the client" in answer.body) == (400, True)
        assert not sink.admits


@pytest.mark.parametrize("system", [{"type": "text", "text": "a"}, 5, [["a"]]])
async def test_system_prompt_of_a_shape_that_no_api_defines_is_refused(system: Any) -> None:
    with plane() as (made, sink, _):
        (answer,) = split_answers((await Memory(made).exchange(message(chat(max_tokens=1, system=system), "/v1/messages"))).written)
        assert answer.status == 400 and not sink.admits


KNOWN_SHAPES: list[Any] = [
    "text",
    ["text"],
    [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}],
    [{"type": "image_url", "image_url": {"url": "https://example.com/", "detail": "low"}}],
    [{"type": "input_image", "image_url": "https://example.com/"}],
    [
        {
            "type": "document",
            "source": {"type": "text", "media_type": "text/plain", "data": "a"},
            "title": "t",
            "citations": {"enabled": True},
        }
    ],
    [{"type": "search_result", "source": "https://example.com/", "title": "t", "content": [{"type": "text", "text": "a"}]}],
    [{"type": "tool_result", "tool_use_id": "t", "content": "a", "is_error": False}],
    [{"type": "web_search_tool_result", "content": [{"type": "web_search_result", "url": "https://example.com/", "title": "t"}]}],
    [{"type": "thinking", "thinking": "a", "signature": "s"}],
]


@pytest.mark.parametrize("content", KNOWN_SHAPES)
async def test_content_of_a_shape_that_an_api_defines_is_accepted(content: Any) -> None:
    with plane() as (made, _, _):
        body = chat() | {"messages": [{"role": "user", "content": content}]}
        (answer,) = split_answers((await Memory(made).exchange(message(body))).written)
        assert answer.status == 502, "it went on to an upstream that is not there"
