"""Media in messages are bounded before an engine hears of them: how much, of what, and what it would become once it is decoded."""

import base64
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.gateway.harness import CHAT, Answer, Memory, chat, message, plane, split_answers
from tollway.gateway.media.bounds import MediaBounds
from tollway.gateway.media.pictures import Encoded, PictureInvalid, find_size

MESSAGES = "/v1/messages"


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *before: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(before) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def jpeg(width: int, height: int, *before: bytes, marker: int = 0xC0) -> bytes:
    frame = struct.pack(">BBHBHHB", 0xFF, marker, 17, 8, height, width, 3) + bytes(9)
    return b"\xff\xd8" + b"".join(before) + frame + b"\xff\xda\x00\x08" + bytes(6) + b"\xff\xd9"


def segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, 2 + len(data)) + data


def gif(width: int, height: int, *before: bytes, screen: tuple[int, int] = (1, 1), colors: bool = True) -> bytes:
    head = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x82 if colors else 0, 0, 0) + bytes(24 if colors else 0)
    return head + b"".join(before) + b"\x2c" + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x00\x3b"


def webp(kind: bytes, body: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", 12 + len(body)) + b"WEBP" + kind + struct.pack("<I", len(body)) + body


def lossy(width: int, height: int) -> bytes:
    return webp(b"VP8 ", b"\x10\x00\x00\x9d\x01\x2a" + struct.pack("<HH", width, height))


def lossless(width: int, height: int) -> bytes:
    return webp(b"VP8L", b"\x2f" + struct.pack("<I", width - 1 | height - 1 << 14))


def extended(width: int, height: int) -> bytes:
    return webp(b"VP8X", bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little"))


COMMENT = b"\x21\xfe" + b"\x03abc" * 40 + b"\x00"

PICTURES = {
    "png": (png(640, 480), ("png", 640, 480)),
    "png-with-a-profile": (png(3, 2, chunk(b"iCCP", bytes(5000)), chunk(b"tEXt", b"a\0b")), ("png", 3, 2)),
    "jpeg": (jpeg(640, 480), ("jpeg", 640, 480)),
    "jpeg-progressive": (jpeg(640, 480, marker=0xC2), ("jpeg", 640, 480)),
    "jpeg-with-a-preview": (jpeg(8, 9, segment(0xE1, b"Exif\0\0" + jpeg(1, 1) * 1500), b"\xff", segment(0xC4, b"x")), ("jpeg", 8, 9)),
    "gif": (gif(5, 4, screen=(7, 3)), ("gif", 7, 4)),
    "gif-with-comments": (gif(5, 4, COMMENT, b"\x21\xf9\x04\0\0\0\0\0", colors=False), ("gif", 5, 4)),
    "webp-lossy": (lossy(640, 480), ("webp", 640, 480)),
    "webp-lossless": (lossless(16384, 1), ("webp", 16384, 1)),
    "webp-extended": (extended(1 << 24, 1 << 24), ("webp", 1 << 24, 1 << 24)),
    "sound": (b"RIFF\x04\0\0\0WAVEfmt ", None),
    "tiff": (b"II*\0" + bytes(20), None),
    "nothing": (b"", None),
}

BROKEN = {
    "png-cut": png(640, 480)[:20],
    "png-without-data": png(640, 480)[:33] + chunk(b"IEND", b""),
    "png-with-another-size": png(1, 1, chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0))),
    "png-with-its-size-later": b"\x89PNG\r\n\x1a\n" + chunk(b"tEXt", b"a\0b") + png(1, 1)[8:],
    "png-of-nothing": png(0, 480),
    "png-of-chunks": png(1, 1, *[chunk(b"tEXt", b"")] * 2000),
    "jpeg-cut": jpeg(640, 480)[:8],
    "jpeg-without-a-frame": b"\xff\xd8\xff\xda\x00\x08",
    "jpeg-with-another-size": jpeg(1, 1, jpeg(50_000, 50_000)[2:21]),
    "jpeg-with-bytes-between": jpeg(1, 1, b"\xff\xfe\x00\x02", b"garbage"),
    "jpeg-of-no-height": jpeg(640, 0),
    "jpeg-of-fill": b"\xff\xd8" + b"\xff" * 5000 + jpeg(1, 1)[2:],
    "gif-cut": gif(5, 4)[:12],
    "gif-without-a-picture": gif(5, 4)[:37] + b"\x3b",
    "gif-of-comments": gif(5, 4, b"\x21\xfe" + b"\x01a" * 50_000 + b"\x00"),
    "webp-cut": lossy(640, 480)[:25],
    "webp-extended-cut": extended(1, 1)[:27],
    "webp-of-another-kind": webp(b"VP9 ", bytes(10)),
    "webp-lossless-of-another-kind": webp(b"VP8L", bytes(10)),
}


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("skipped", [0, 3, 23])
def test_the_size_of_a_picture_is_read_without_decoding_it(name: str, skipped: int) -> None:
    data, size = PICTURES[name]
    assert find_size(Encoded("x" * skipped + base64.b64encode(data).decode(), skipped)) == size


@pytest.mark.parametrize("name", BROKEN)
def test_34_a_picture_that_decoders_could_read_in_two_ways_is_none(name: str) -> None:
    with pytest.raises(PictureInvalid):
        find_size(Encoded(base64.b64encode(BROKEN[name]).decode()))


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def url(data: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{encoded(data)}"


def image(data: bytes, media_type: str = "image/png") -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url(data, media_type)}}


def film(frames: list[bytes], media_type: str = "video/jpeg") -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": f"data:{media_type};base64,{','.join(map(encoded, frames))}"}}


def answered(part: dict[str, Any]) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": "t", "content": [part]}


def sound(data: str, format: Any = "wav") -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": data, "format": format}}


def source(data: bytes, media_type: Any = "image/png", type: str = "image") -> dict[str, Any]:
    return {"type": type, "source": {"type": "base64", "media_type": media_type, "data": encoded(data)}}


async def ask(parts: list[dict[str, Any]], bounds: MediaBounds | None = None, path: str = CHAT) -> Answer:
    """Return the answer to a message of these parts: 502 if it went on, to an upstream that is not there."""
    with plane() as (made, sink, _):
        made.media_bounds = bounds or MediaBounds()
        body = chat() | {"max_tokens": 1, "messages": [{"role": "user", "content": "?"}, {"role": "user", "content": parts}]}
        (answer,) = split_answers((await Memory(made).exchange(message(body, path))).written)
        assert (answer.status == 502) == bool(sink.admits)
        return answer


SMALL = png(2, 2)

TAKEN: dict[str, list[dict[str, Any]]] = {
    "picture": [{"type": "text", "text": "data:nonsense"}, image(SMALL)],
    "picture-called-another-kind": [image(jpeg(2, 2)), image(SMALL, "image/jpg")],
    "picture-as-text": [{"image_url": url(SMALL)}],
    "capitals": [{"image_url": {"url": "DATA:Image/PNG;Base64," + encoded(SMALL)}}],
    "film": [film([jpeg(9, 9)] * 32)],
    "film-in-one-piece": [{"type": "video_url", "video_url": {"url": url(b"\0\0\0\x20ftypisom", "video/mp4")}}],
    "sound": [sound(encoded(b"RIFF\x04\0\0\0WAVEfmt "))],
    "document": [{"type": "file", "file": {"filename": "a.pdf", "file_data": url(b"%PDF-1.7", "application/pdf")}}],
    "uploaded": [{"type": "file", "file": {"file_id": "file-1"}}],
    "source": [source(SMALL), source(b"%PDF-1.7", "application/pdf", "document")],
    "source-of-text": [{"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "no base64!"}}],
    "link": [{"type": "image_url", "image_url": {"url": "https://example.com/a.png", "detail": "low"}}],
    "what-a-tool-is-called-with": [{"type": "tool_use", "id": "t", "name": "draw", "input": {"data": "!", "url": "data:x"}}],
}


@pytest.mark.parametrize("name", TAKEN)
@pytest.mark.parametrize("path", [CHAT, MESSAGES])
async def test_media_as_programs_send_them_are_taken(name: str, path: str) -> None:
    assert (await ask(TAKEN[name], path=path)).status == 502


BOUNDS = MediaBounds(parts_max=3, part_bytes_max=3000, request_bytes_max=5000, frames_max=4, pixels_max=10_000, request_pixels_max=25_000)
FRAME = jpeg(10, 10)

REFUSED: dict[str, tuple[int, str, list[dict[str, Any]]]] = {
    "34-bytes-of-a-part": (413, "[0].image_url.url", [image(SMALL + bytes(3000))]),
    "34-bytes-of-a-sound": (413, "[0].input_audio", [sound(encoded(bytes(3003)))]),
    "34-bytes-of-a-source": (413, "[0].source.data", [source(SMALL + bytes(3000))]),
    "34-bytes-in-all": (413, "[1].image_url.url", [image(SMALL + bytes(2800))] * 2),
    "34-parts": (400, "[3].image_url.url", [{"image_url": {"url": "https://example.com/a.png"}}] * 4),
    "34-parts-of-every-kind": (400, "[3].source", [image(SMALL), sound("AAAA"), {"image_url": "https://example.com/"}, source(SMALL)]),
    "34-frames": (400, "[0].video_url.url", [film([FRAME] * 5)]),
    "34-empty-frames": (400, "[0].video_url.url", [film([b""] * 500)]),
    "34-frames-of-another-type": (400, "[0].video_url.url", [film([FRAME] * 5, "video/mp4")]),
    "34-frames-in-capitals": (400, "[0].video_url.url", [film([FRAME] * 5, "VIDEO/JPEG")]),
    "34-a-frame-of-nothing": (400, "[0].video_url.url", [film([FRAME, b"", FRAME])]),
    "34-a-frame-that-is-none": (400, "[0].video_url.url", [film([FRAME, bytes(3)])]),
    "34-pixels-of-a-frame": (400, "[0].video_url.url", [film([jpeg(50_000, 50_000)])]),
    "34-pixels-of-frames": (400, "[0].video_url.url", [film([jpeg(99, 99)] * 3)]),
    "34-pixels": (400, "[0].image_url.url", [image(png(50_000, 50_000))]),
    "34-pixels-in-all": (400, "[2].image_url.url", [image(png(99, 99))] * 3),
    "34-pixels-called-a-sound": (400, "[0].input_audio", [sound(encoded(png(50_000, 50_000)))]),
    "34-pixels-in-a-document": (400, "[0].file.file_data", [{"file": {"file_data": url(png(50_000, 50_000), "application/pdf")}}]),
    "34-pixels-in-a-source": (400, "[0].source.data", [source(gif(50_000, 50_000), "image/gif")]),
    "34-pixels-of-what-a-tool-answered": (400, "[0].content[0].source.data", [answered(source(png(50_000, 50_000)))]),
    "34-pixels-in-a-document-of-parts": (
        400,
        "[0].source.content[0].image_url.url",
        [{"type": "document", "source": {"type": "content", "content": [image(png(50_000, 50_000))]}}],
    ),
    "34-pixels-called-a-text": (
        400,
        "[0].source.data",
        [{"type": "image", "source": {"type": "text", "media_type": "image/png", "data": encoded(png(50_000, 50_000))}}],
    ),
    "34-a-source-s-url": (400, "[0].source.url", [{"type": "image", "source": {"type": "url", "url": url(b"RIFF", "audio/wav")}}]),
    "34-a-damaged-picture": (400, "[0].image_url.url", [image(png(1, 1)[:30])]),
    "34-another-decoder-s-picture": (400, "[0].image_url.url", [image(b"II*\0" + bytes(20))]),
    "34-a-sound-where-a-picture-is-wanted": (400, "[0].image_url.url", [image(b"RIFF", "audio/wav")]),
    "34-a-document-where-a-picture-is-wanted": (400, "[0].source.data", [source(b"%PDF", "application/pdf")]),
    "34-a-type-that-is-not-taken": (400, "[0].image_url.url", [image(b"<svg/>", "image/svg+xml")]),
    "34-no-type": (400, "[0].image_url.url", [{"image_url": {"url": "data:;base64," + encoded(SMALL)}}]),
    "34-a-type-with-parameters": (400, "[0].image_url.url", [image(SMALL, "image/png;a=b")]),
    "34-a-type-without-end": (400, "[0].image_url.url", [image(SMALL, "image/png" + ";" * 500)]),
    "34-not-in-base64": (400, "[0].image_url.url", [{"image_url": {"url": "data:image/png,%89PNG"}}]),
    "34-no-comma": (400, "[0].image_url.url", [{"image_url": {"url": "data:image/png;base64"}}]),
    "34-no-data": (400, "[0].image_url.url", [{"image_url": {"url": "data:image/png;base64,"}}]),
    "34-another-alphabet": (400, "[0].input_audio", [sound("-_-_")]),
    "34-a-line-end": (400, "[0].input_audio", [sound("AAAA\nAAA")]),
    "34-no-padding": (400, "[0].input_audio", [sound("AAA")]),
    "34-padding-in-the-middle": (400, "[0].input_audio", [sound("AA==AAAA")]),
    "34-only-padding": (400, "[0].input_audio", [sound("====")]),
    "34-wide-letters": (400, "[0].input_audio", [sound("\uff21" * 4)]),
    "34-data-that-is-no-text": (400, "[0].input_audio", [{"input_audio": {"data": 5, "format": "wav"}}]),
    "34-a-format-that-is-no-text": (400, "[0].input_audio", [sound("AAAA", ["wav"])]),
    "34-a-type-that-is-no-text": (400, "[0].source", [source(SMALL, None)]),
    "34-embeddings": (400, "[0].image_embeds", [{"type": "image_embeds", "image_embeds": "gAJ9cQAu"}]),
    "34-embeddings-by-name": (400, "[0].audio_embeds", [{"type": "audio_embeds", "audio_embeds": {"a": "gAJ9cQAu"}}]),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("path", [CHAT, MESSAGES])
async def test_media_beyond_the_bounds_are_refused_before_an_engine_hears_of_them(name: str, path: str) -> None:
    status, place, parts = REFUSED[name]
    answer = await ask(parts, BOUNDS, path)
    assert answer.status == status, answer.body
    if path == CHAT:
        assert answer.error["code"] == {400: "invalid_media", 413: "media_too_large"}[status]
        assert answer.error["param"] == f"messages[1].content{place}"
    else:
        assert answer.json()["error"]["type"] == {400: "invalid_request_error", 413: "request_too_large"}[status]


def one_more(name: str) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """Parts at a bound, and over it."""
    match name:
        case "bytes":
            yield [sound(encoded(bytes(3000)))], 502
            yield [sound(encoded(bytes(2999)))], 502
            yield [sound(encoded(bytes(3001)))], 413
        case "frames":
            yield [film([FRAME] * 4)], 502
            yield [film([FRAME] * 5)], 400
        case "pixels":
            yield [image(png(100, 100))], 502
            yield [image(png(73, 137))], 400  # 10,001
        case "parts":
            yield [image(SMALL)] * 3, 502
            yield [image(SMALL)] * 4, 400


@pytest.mark.parametrize("name", ["bytes", "frames", "pixels", "parts"])
async def test_34_a_bound_is_the_last_that_is_taken(name: str) -> None:
    for parts, status in one_more(name):
        assert (await ask(parts, BOUNDS)).status == status


async def test_34_an_operator_chooses_the_types() -> None:
    only = MediaBounds(types=("image/png", "image/avif"))
    assert (await ask([image(SMALL)], only)).status == 502
    assert (await ask([image(b"\0\0\0\x1cftypavif", "image/avif")], only)).status == 502
    assert (await ask([image(jpeg(2, 2), "image/jpeg")], only)).status == 400
    assert (await ask([image(jpeg(2, 2))], only)).status == 400, "by its content, whatever it is called"
    assert (await ask([image(png(50_000, 50_000), "image/avif")], only)).status == 400
    answer = await ask([sound("AAAA")], only)
    assert (answer.status, "Accepted: none." in answer.error["message"]) == (400, True)


async def test_34_a_refusal_echoes_nothing() -> None:
    for parts in ([sound("secret!!")], [image(b"secret", "image/secret")], [{"image_url": "data:secret"}]):
        answer = await ask(parts, BOUNDS)
        assert answer.status == 400 and b"secret" not in answer.body and b"c2VjcmV0" not in answer.body
