"""Transcripts, speech and edits of images: forms in, sound out, and what each is billed."""

import asyncio
import io
import socket
import wave
from typing import Any

import msgspec
import openai
import pytest

from tests.fakes import Do, Script, Upstream
from tests.gateway.harness import KEY, NOWHERE, Served, connect, event, gateway, message, post, whole
from tests.gateway.test_request_quantities import admit_of
from tollway.domain.billing_classes import OtherClasses, Quantities
from tollway.domain.budgets import find_fixed_cost
from tollway.domain.catalog import Endpoint
from tollway.domain.limits import Limits
from tollway.domain.usage import Outcome, UsageSource
from tollway.simulator import media as simulated
from tollway.wire.forms import File, find_boundary, read_fields, read_parts

TRANSCRIPTIONS, TRANSLATIONS, SPEECH = "/v1/audio/transcriptions", "/v1/audio/translations", "/v1/audio/speech"
EDITS = "/v1/images/edits"
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x08\0\0\0\x08\x08\x06\0\0\0\0\0\0\0\0\0\0\0IDAT"
VAST = PNG.replace(b"\0\0\0\x08\0\0\0\x08", b"\0\0\xff\xff\0\0\xff\xff")


def sound(seconds: float = 1.5, rate: int = 8000) -> bytes:
    """A WAV file of one channel and 16 bits."""
    held = io.BytesIO()
    with wave.open(held, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(b"\0\0" * int(seconds * rate))
    return held.getvalue()


def form(*fields: tuple[str, bytes | str], file: bytes | None = None, name: str = "file") -> bytes:
    parts = [f'--b\r\ncontent-disposition: form-data; name="{key}"\r\n\r\n{value!s}\r\n'.encode() for key, value in fields]
    if file is not None:
        parts.append(b'--b\r\ncontent-disposition: form-data; name="%b"; filename="a"\r\n\r\n%b\r\n' % (name.encode(), file))
    return b"".join(parts) + b"--b--\r\n"


FORM = {"content_type": "multipart/form-data; boundary=b"}
ASKED = form(("model", "m"), file=sound())


def received(asked: Any) -> dict[str, Any]:
    """The form that an engine was sent."""
    content_type = next(line.partition(b": ")[2] for line in asked.head.split(b"\r\n") if line.lower().startswith(b"content-type"))
    boundary = find_boundary(content_type)
    assert boundary is not None
    fields, _ = read_fields(asked.body, read_parts(asked.body, boundary), {})

    def find_content(value: Any) -> Any:
        if isinstance(value, list):
            return [find_content(each) for each in value]
        return value.read(0, value.size) if isinstance(value, File) else value

    return {name: find_content(value) for name, value in fields.items()}


async def test_official_client_gets_a_transcript_and_pays_for_the_seconds_that_the_engine_reports() -> None:
    answer = whole({"text": "Hello.", "usage": {"type": "duration", "seconds": 1.4}})
    async with Upstream([answer]).listening() as upstream, gateway({"m": Served([upstream.url], upstream_model="own")}) as made:
        async with openai.AsyncOpenAI(base_url=made.url + "/v1", api_key=KEY, max_retries=0) as client:
            transcript = await client.audio.transcriptions.create(
                model="m", file=("a.wav", sound()), language="en", temperature=0.2, timestamp_granularities=["word"]
            )
        final = await made.sink.settled()
        assert made.plane.metrics.anomalies == {}
    assert transcript.text == "Hello."
    asked = received(upstream.asked[0])
    assert asked.pop("file") == sound()
    assert asked == {"model": "own", "language": "en", "temperature": 0.2, "timestamp_granularities": ["word"]}
    assert (final.outcome, final.admit.endpoint, final.source) == (
        Outcome.COMPLETED,
        "audio/transcriptions",
        UsageSource.ENGINE_FINAL,
    )
    assert final.used == Quantities(other=OtherClasses(seconds=2))


async def test_limit_on_seconds_of_sound_holds_the_files_length_and_keeps_what_was_billed() -> None:
    durations = iter((1.0, 2.0))
    limits = Limits(audio_seconds_per_day=5)
    async with (
        Upstream(lambda _: [whole({"text": "", "duration": next(durations)})]).listening() as upstream,
        gateway({"m": Served([upstream.url])}, limits=limits) as made,
    ):
        got = [await post(made.port, form(("model", "m"), file=sound(length)), TRANSCRIPTIONS, **FORM) for length in (2.5, 2.5, 2.5, 6)]
    assert [each.status for each in got] == [200, 200, 429, 429]
    assert [int(each.headers["x-ratelimit-remaining-audio-seconds"]) for each in got[:3]] == [2, 1, 2]
    assert "Rate limit reached for audio seconds per day of " in got[2].error["message"]
    assert got[3].headers["x-should-retry"] == "false" and "send a shorter sound." in got[3].error["message"]


@pytest.mark.parametrize(
    ("answer", "used", "source", "anomaly"),
    [
        ({"text": ""}, OtherClasses(seconds=2), UsageSource.ESTIMATED, None),
        ({"text": "", "duration": 0.5}, OtherClasses(seconds=1), UsageSource.ENGINE_FINAL, None),
        ({"text": "", "duration": "1.01"}, OtherClasses(seconds=2), UsageSource.ENGINE_FINAL, None),
        ({"text": "", "duration": 9.0}, OtherClasses(seconds=2), UsageSource.ENGINE_FINAL, "usage_inflated"),
        ({"text": "", "usage": {"type": "duration", "seconds": -3}}, OtherClasses(seconds=2), UsageSource.ESTIMATED, "usage_invalid"),
        ({"text": "", "usage": []}, OtherClasses(seconds=2), UsageSource.ESTIMATED, "usage_invalid"),
    ],
)
async def test_seconds_are_those_of_the_engine_as_far_as_the_file_can_have_them_and_else_an_estimate(
    answer: Any, used: OtherClasses, source: UsageSource, anomaly: str | None
) -> None:
    async with Upstream([whole(answer)]).listening() as upstream, gateway({"m": Served([upstream.url])}) as made:
        assert (await post(made.port, ASKED, TRANSLATIONS, **FORM)).status == 200
        final = await made.sink.settled()
    assert (final.used, final.source, final.anomaly) == (Quantities(other=used), source, anomaly)


async def test_tokens_of_a_transcript_are_billed_where_the_engine_reports_them() -> None:
    usage = {"type": "tokens", "input_tokens": 14, "output_tokens": 5, "input_token_details": {"audio_tokens": 10, "text_tokens": 4}}
    async with Upstream([whole({"text": "", "usage": usage})]).listening() as upstream, gateway({"m": Served([upstream.url])}) as made:
        assert (await post(made.port, ASKED, TRANSCRIPTIONS, **FORM)).status == 200
        final = await made.sink.settled()
    assert final.used == Quantities(4, output=5, other=OtherClasses(audio_input=10, seconds=2))


async def test_plain_transcript_is_relayed_as_text_and_its_seconds_are_estimated() -> None:
    answer = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 7\r\n\r\n{Hello\n"
    async with Upstream([answer]).listening() as upstream, gateway({"m": Served([upstream.url])}) as made:
        got = await post(made.port, form(("model", "m"), ("response_format", "text"), file=sound()), TRANSCRIPTIONS, **FORM)
        final = await made.sink.settled()
    assert (got.status, got.body, got.headers["content-type"]) == (200, b"{Hello\n", "text/plain; charset=utf-8")
    assert (final.used, final.source) == (Quantities(other=OtherClasses(seconds=2)), UsageSource.ESTIMATED)


def delta(text: str) -> dict[str, Any]:
    return {"type": "transcript.text.delta", "delta": text}


EVENTS = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
SOUND = b"HTTP/1.1 200 OK\r\ncontent-type: audio/mpeg\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def test_official_client_reads_a_streamed_transcript() -> None:
    done = {"type": "transcript.text.done", "text": "One two", "usage": {"type": "tokens", "input_tokens": 3, "output_tokens": 2}}
    script: Script = [EVENTS, chunk(event(delta("One "))), chunk(event(delta("two"))), chunk(event(done)), END]
    async with Upstream(script).listening() as upstream, gateway({"m": Served([upstream.url])}) as made:
        async with openai.AsyncOpenAI(base_url=made.url + "/v1", api_key=KEY, max_retries=0) as client:
            stream = await client.audio.transcriptions.create(model="m", file=("a.wav", sound()), stream=True)
            got = [each.model_dump(exclude_unset=True) async for each in stream]
        final = await made.sink.settled()
    assert [each["type"] for each in got] == ["transcript.text.delta", "transcript.text.delta", "transcript.text.done"]
    assert final.used == Quantities(3, output=2, other=OtherClasses(seconds=2))
    assert final.outcome is Outcome.COMPLETED


async def test_transcript_of_vllm_ends_with_its_terminator_and_one_without_it_is_an_error() -> None:
    chunks = [{"object": "transcription.chunk", "choices": [{"delta": {"content": "x" * 30}}]}]
    script: Script = [EVENTS, *[chunk(event(each)) for each in chunks]]
    asked = form(("model", "m"), ("stream", "true"), file=sound())
    ending: Script = [chunk(b"data: [DONE]\n\n"), END]
    async with Upstream([*script, *ending], [*script, END]).listening() as upstream, gateway({"m": Served([upstream.url])}) as made:
        assert (await post(made.port, asked, TRANSCRIPTIONS, **FORM)).events()[-1] == "[DONE]"
        got = (await post(made.port, asked, TRANSCRIPTIONS, **FORM)).events()
        final = await made.sink.settled(2)
    assert got[-1]["error"]["code"] == "upstream_cut"
    assert (final.outcome, final.used) == (Outcome.UPSTREAM_ERROR, Quantities(other=OtherClasses(seconds=2)))


async def test_speech_is_relayed_as_it_comes_and_billed_by_the_character() -> None:
    script: Script = [SOUND, chunk(b"\xff\xf3 one"), Do.GATE, chunk(b" two"), END]
    async with Upstream(script).listening() as upstream, gateway({"m": Served([upstream.url], upstream_model="own")}) as made:
        async with openai.AsyncOpenAI(base_url=made.url + "/v1", api_key=KEY, max_retries=0) as client:
            speech = client.audio.speech.with_streaming_response.create(model="m", input="Grüße", voice="alloy")
            async with speech as answer:
                pieces = answer.iter_bytes()
                first = await anext(pieces)
                upstream.gate.set()
                rest = b"".join([piece async for piece in pieces])
                content_type = answer.headers["content-type"]
        final = await made.sink.settled()
    assert (first, rest, content_type) == (b"\xff\xf3 one", b" two", "audio/mpeg")
    assert msgspec.json.decode(upstream.asked[0].body)["model"] == "own"
    assert (final.outcome, final.used, final.anomaly) == (Outcome.COMPLETED, Quantities(other=OtherClasses(characters=5)), None)


SPEAK = {"model": "m", "input": "Hello", "voice": "v"}


@pytest.mark.parametrize(
    "script",
    [
        [SOUND, chunk(b"sound"), Do.FIN],
        [SOUND, chunk(b"sound"), Do.RST],
        [SOUND, chunk(b"sound"), b"xx\r\n"],
        [SOUND, chunk(b"sound"), b"6\r\nabc", Do.FIN],
        [b"HTTP/1.1 200 OK\r\ncontent-type: audio/mpeg\r\n\r\nsound", Do.FIN],
        [b"HTTP/1.1 200 OK\r\ncontent-type: audio/mpeg\r\ncontent-length: 9\r\n\r\nsound", Do.FIN],
    ],
)
async def test_123_speech_that_an_engine_breaks_off_never_ends_cleanly_and_costs_nothing(script: Script) -> None:
    async with Upstream(script).listening() as upstream, gateway({"m": Served([upstream.url])}) as made:
        async with connect(made.port) as client:
            client.send(message(SPEAK, SPEECH))
            got = await client.answer()
        final = await made.sink.settled()
    assert got.ended in ("eof", "reset") and got.status == 200
    assert final.outcome is Outcome.UPSTREAM_ERROR


@pytest.mark.parametrize(
    "script",
    [
        [SOUND, END],
        [whole({"error": {"message": "x", "code": 500}})],
        [b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 1\r\n\r\nx"],
        [b"HTTP/1.1 200 OK\r\ncontent-type: audio/x\t\x01\r\ncontent-length: 1\r\n\r\nx"],
    ],
)
async def test_answer_without_sound_is_a_fault_of_the_engine(script: Script) -> None:
    async with Upstream(script).listening() as upstream, gateway({"m": Served([upstream.url])}) as made:
        got = await post(made.port, SPEAK, SPEECH)
        final = await made.sink.settled()
    assert (got.status, got.headers["content-type"]) in ((500, "application/json"), (502, "application/json"))
    assert (final.outcome, final.used.other) == (Outcome.UPSTREAM_ERROR, None)


async def test_client_that_leaves_after_the_first_sound_pays_for_the_text() -> None:
    script: Script = [SOUND, chunk(b"sound"), Do.HOLD]
    async with Upstream(script).listening() as upstream, gateway({"m": Served([upstream.url])}) as made:
        with socket.create_connection(("127.0.0.1", made.port)) as client:
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(client, message(SPEAK, SPEECH))
            while b"sound" not in await loop.sock_recv(client, 65536):
                pass
        final = await made.sink.settled()
    assert (final.outcome, final.used) == (Outcome.CLIENT_CANCELLED, Quantities(other=OtherClasses(characters=5)))


async def test_speech_in_events_is_billed_by_its_characters_and_the_tokens_of_its_last_event() -> None:
    done = {"type": "speech.audio.done", "usage": {"input_tokens": 4, "output_tokens": 30, "total_tokens": 34}}
    script: Script = [EVENTS, chunk(event({"type": "speech.audio.delta", "audio": "AAAA"})), chunk(event(done)), END]
    async with Upstream(script).listening() as upstream, gateway({"m": Served([upstream.url])}) as made:
        got = await post(made.port, SPEAK | {"stream_format": "sse"}, SPEECH)
        final = await made.sink.settled()
    assert b"speech.audio.done" in got.body and got.headers["content-type"].startswith("text/event-stream")
    assert final.used == Quantities(4, other=OtherClasses(audio_output=30, characters=5))


async def test_official_client_edits_images_and_pays_for_each() -> None:
    answer = whole({"created": 1, "data": [{"b64_json": "aGVsbG8="}] * 2})
    async with Upstream([answer]).listening() as upstream, gateway({"m": Served([upstream.url])}) as made:
        async with openai.AsyncOpenAI(base_url=made.url + "/v1", api_key=KEY, max_retries=0) as client:
            await client.images.edit(model="m", prompt="a gate", image=[("1.png", PNG), ("2.png", PNG)], n=2)
        await post(made.port, form(("model", "m"), ("n", "2"), file=PNG, name="image"), "/v1/images/variations", **FORM)
        final = await made.sink.settled(2)
    assert received(upstream.asked[0]) == {"model": "m", "prompt": "a gate", "image": [PNG, PNG], "n": 2}
    assert received(upstream.asked[1]) == {"model": "m", "image": PNG, "n": 2}
    assert (final.admit.endpoint, final.used) == ("images/variations", Quantities(other=OtherClasses(images=2)))


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "code", "param"),
    [
        (TRANSCRIPTIONS, b"{}", {}, 415, "unsupported_media_type", None),
        (TRANSCRIPTIONS, ASKED, {"content_type": "multipart/form-data"}, 415, "unsupported_media_type", None),
        (SPEECH, ASKED, FORM, 415, "unsupported_media_type", None),
        (TRANSCRIPTIONS, b"--b\r\n", FORM, 400, "invalid_form", None),
        (TRANSCRIPTIONS, form(("model", "m")), FORM, 400, "missing_required_parameter", "file"),
        (TRANSCRIPTIONS, form(("model", "m"), ("file", "text")), FORM, 400, "invalid_value", "file"),
        (TRANSCRIPTIONS, form(("model", "m"), file=b""), FORM, 400, "invalid_value", "file"),
        (TRANSCRIPTIONS, form(file=sound()), FORM, 400, "missing_required_parameter", "model"),
        (TRANSCRIPTIONS, form(("model", "other"), file=sound()), FORM, 404, "model_not_found", "model"),
        (TRANSCRIPTIONS, form(("model", "m"), ("model", "m"), file=sound()), FORM, 400, "duplicate_key", "model"),
        (TRANSCRIPTIONS, form(("model", "m"), ("temperature", "9"), file=sound()), FORM, 400, "invalid_value", "temperature"),
        (TRANSCRIPTIONS, form(("model", "m"), ("stream", "yes"), file=sound()), FORM, 400, "invalid_value", "stream"),
        (TRANSCRIPTIONS, form(("model", "m"), ("priority", "1"), file=sound()), FORM, 400, "unknown_parameter", "priority"),
        (TRANSCRIPTIONS, form(("model", "m"), file=b"MZ" * 99), FORM, 400, "invalid_media", "file"),
        (TRANSCRIPTIONS, form(("model", "m"), file=sound()[:20]), FORM, 400, "invalid_media", "file"),
        (EDITS, form(("model", "m"), ("prompt", "x"), file=sound(), name="image"), FORM, 400, "invalid_media", "image"),
        (EDITS, form(("model", "m"), ("prompt", "x"), ("n", "11"), file=PNG, name="image"), FORM, 400, "invalid_value", "n"),
        (EDITS, form(("model", "m"), ("prompt", "x"), file=VAST, name="image"), FORM, 400,
         "invalid_media", "image"),
    ],
)  # fmt: skip
async def test_bad_form_is_refused_before_an_engine_is_asked(
    path: str, body: bytes, headers: dict[str, str], status: int, code: str, param: str | None
) -> None:
    async with gateway({"m": Served([NOWHERE])}) as made:
        answer = await post(made.port, body, path, **headers)
    assert (answer.status, answer.error["code"], answer.error["param"]) == (status, code, param)


@pytest.mark.parametrize(
    ("changed", "param"),
    [({"input": ""}, "input"), ({"input": "x" * 4097}, "input"), ({"voice": {"id": 1}}, "voice"), ({"speed": 9}, "speed")],
)
async def test_bad_text_for_speech_is_refused_with_the_name_of_the_field(changed: dict[str, Any], param: str) -> None:
    async with gateway({"m": Served([NOWHERE])}) as made:
        answer = await post(made.port, SPEAK | changed, SPEECH)
    assert (answer.status, answer.json()["error"]["param"]) == (400, param)


async def test_file_that_is_too_large_for_one_part_is_refused_and_a_large_one_is_sent_in_pieces() -> None:
    large = sound(60.0, 32_000)
    async with (
        Upstream([whole({"text": "x"})]).listening() as upstream,
        gateway({"m": Served([upstream.url], upstream_model="own")}) as made,
    ):
        assert (await post(made.port, form(("model", "m"), file=large), TRANSCRIPTIONS, **FORM)).status == 200
        final = await made.sink.settled()
        refused = await post(made.port, form(("model", "m"), file=sound() + bytes(21 << 20)), TRANSCRIPTIONS, **FORM)
    assert received(upstream.asked[0]) == {"model": "own", "file": large}
    assert final.used == Quantities(other=OtherClasses(seconds=61))
    assert (refused.status, refused.error["code"]) == (413, "media_too_large")


def test_cost_of_speech_is_known_at_admission() -> None:
    call = admit_of({"m": Served([NOWHERE])}, Endpoint.AUDIO_SPEECH, SPEAK)
    assert call.measure is not None and call.measure.characters == 5
    assert (call.stream, call.output_tokens_max) == (True, 40)


async def test_123_transcript_that_dies_at_any_byte_ends_in_an_error_and_is_never_whole() -> None:
    done = {"type": "transcript.text.done", "text": "One", "usage": {"type": "tokens", "input_tokens": 3, "output_tokens": 2}}
    stream = b"".join((EVENTS, chunk(event(delta("One"))), chunk(event(done))))
    asked = form(("model", "m"), ("stream", "true"), file=sound())
    cuts = range(len(EVENTS), len(stream) - 2, 3)
    scripts: list[Script] = [[stream[:cut], Do.FIN] for cut in cuts]
    async with Upstream(*scripts).listening() as upstream, gateway({"m": Served([upstream.url], retry_started=False)}) as made:
        for _ in cuts:
            got = await post(made.port, asked, TRANSCRIPTIONS, **FORM)
            assert b"transcript.text.done" not in got.body and b"upstream_" in got.body
        finals = made.sink.finals
    assert {final.outcome for final in finals} == {Outcome.UPSTREAM_ERROR} and len(finals) == len(cuts)


SPOKEN: dict[str, tuple[dict[str, Any], bytes, bytes]] = {
    "as sound": (SPEAK, SOUND, b"".join((chunk(b"sound"), chunk(b"sound"), END))),
    "as events": (
        SPEAK | {"stream_format": "sse"},
        EVENTS,
        chunk(event({"type": "speech.audio.delta", "audio": "AAAA"})) + chunk(event({"type": "speech.audio.done"})),
    ),
}


@pytest.mark.parametrize("kind", SPOKEN)
async def test_123_speech_that_dies_at_any_byte_is_never_whole(kind: str) -> None:
    asked, head, body = SPOKEN[kind]
    cuts = range(0, len(body) - 4, 2)
    scripts: list[Script] = [[head + body[:cut], Do.FIN] for cut in cuts]
    async with Upstream(*scripts).listening() as upstream, gateway({"m": Served([upstream.url], retry_started=False)}) as made:
        for _ in cuts:
            made.plane.retries._tokens = 0.0
            async with connect(made.port) as client:
                client.send(message(asked, SPEECH))
                got = await client.answer()
            assert got.status != 200 or got.ended in ("eof", "reset") or b"upstream_" in got.body
            assert b"speech.audio.done" not in got.body
        finals = made.sink.finals
    assert {final.outcome for final in finals} == {Outcome.UPSTREAM_ERROR} and len(finals) == len(cuts)


async def test_form_is_served_by_a_fallback_that_is_named_in_it() -> None:
    async with Upstream([whole({"text": "Hello."})]).listening() as upstream:
        served = {"m": Served([NOWHERE], fallbacks=("other",)), "other": Served([upstream.url])}
        async with gateway(served) as made:
            for file in (sound(), sound(20.0)):
                got = await post(made.port, form(("model", "m"), ("language", "en"), file=file), TRANSCRIPTIONS, **FORM)
                assert (got.status, got.headers["x-tollway-model"]) == (200, "other")
                assert received(upstream.asked[-1]) == {"model": "other", "language": "en", "file": file}


async def test_simulated_engine_transcribes_what_it_speaks() -> None:
    speech = answer_of_simulator(b"/v1/audio/speech", msgspec.json.encode({"input": "x" * 30}))
    script: Script = [b"HTTP/1.1 200 OK\r\ncontent-type: audio/wav\r\ncontent-length: %d\r\n\r\n%b" % (len(speech), speech)]
    async with Upstream(script).listening() as upstream, gateway({"m": Served([upstream.url])}) as made:
        spoken = (await post(made.port, SPEAK, SPEECH)).body
    transcript = msgspec.json.decode(answer_of_simulator(b"/v1/audio/transcriptions", form(("model", "m"), file=spoken)))
    assert transcript == {"text": "word " * 3, "usage": {"type": "duration", "seconds": 3}}
    edited = msgspec.json.decode(answer_of_simulator(b"/v1/images/edits", form(("n", "2"), file=PNG, name="image[]")))
    assert len(edited["data"]) == 2


def answer_of_simulator(path: bytes, body: bytes) -> bytes:
    found = simulated.answer(path, body)
    assert found is not None
    return found[1]


@pytest.mark.parametrize(("path", "body", "headers"), [(SPEECH, SPEAK, {}), (TRANSCRIPTIONS, ASKED, FORM)])
async def test_request_with_media_that_may_cost_more_than_it_allows_is_refused_because_nothing_would_bound_it(
    path: str, body: Any, headers: dict[str, str]
) -> None:
    async with gateway({"m": Served([NOWHERE])}) as made:
        answer = await post(made.port, body, path, x_max_cost="0.000000000001", **headers)
    assert (answer.status, answer.error["code"]) == (400, "max_cost_exceeded")


def test_budgets_hold_the_seconds_and_characters_that_a_request_can_use() -> None:
    prices = Quantities(3, request=5, other=OtherClasses(seconds=100, characters=7, images=1_000))
    assert find_fixed_cost(prices, 10, media=OtherClasses(seconds=4, characters=2)) == 10 * 3 + 5 + 400 + 14
