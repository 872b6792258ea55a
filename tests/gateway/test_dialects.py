"""The dialect alone: the two ways to read an event come to the same result, and what a stream says is read as it was meant."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tollway.domain.billing_classes import OtherClasses, Quantities
from tollway.domain.catalog import Engine
from tollway.domain.faults import Fault
from tollway.domain.usage import TOKENS_MAX, Anomaly, UsageSource
from tollway.engines.table import ENGINES
from tollway.gateway.dialects import messages, openai_stream
from tollway.gateway.dialects.answers import AnswerContext
from tollway.gateway.dialects.engine_usage import cap_output, check_report
from tollway.gateway.dialects.messages import MessageStream
from tollway.gateway.dialects.openai_answers import read_answer, read_usage
from tollway.gateway.dialects.openai_stream import OpenAIStream


def context(
    *,
    hide_usage: bool = True,
    hide_continuous: bool = True,
    counting: bool = False,
    input_tokens_max: int = 10_000,
    output_tokens_max: int | None = None,
    prompts: int = 1,
    sequences: int = 1,
    engine: Engine = Engine.VLLM,
) -> AnswerContext:
    """Properties of a request, with a model that has the same name everywhere."""
    return AnswerContext(
        ENGINES[engine], "m", "m", input_tokens_max, output_tokens_max, prompts, sequences, hide_usage, hide_continuous, counting
    )


COUNTS = st.one_of(st.integers(-2, 40), st.sampled_from([None, 10**12, 1.5, "3"]))
DETAILS = st.one_of(st.none(), st.fixed_dictionaries({"reasoning_tokens": st.one_of(st.none(), st.integers(0, 3))}))
USAGES = st.one_of(
    st.none(),
    st.integers(1, 30).map(lambda tokens: {"prompt_tokens": 5, "completion_tokens": tokens}),
    st.integers(1, 30).map(lambda tokens: {"prompt_tokens": 5, "completion_tokens": tokens, "prompt_tokens_details": {"x": {}}}),
    st.fixed_dictionaries({"prompt_tokens": COUNTS, "completion_tokens": COUNTS}, optional={"completion_tokens_details": DETAILS}),
)
CHOICE = st.fixed_dictionaries(
    {"index": st.just(0), "delta": st.fixed_dictionaries({"content": st.sampled_from(["a", "", '},"usage":{', "é", "{}}"])})},
    optional={"finish_reason": st.sampled_from([None, "stop", "abort"])},
)
EXTRA: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [{}, {"x": {"y": {}}}, {"x": {"usage": {"a": {}}}}, {"error": None}, {"error": {"code": 500}}, {"model": "m"}]
)
SPELLING = st.sampled_from([b"", b" ", b"\n"])


@st.composite
def events(draw: st.DrawFn) -> bytes:
    """One event as an engine may write it: members in any order, with or without spaces."""
    members: list[tuple[str, Any]] = [("id", "c"), ("choices", draw(st.lists(CHOICE, max_size=2)))]
    members += draw(EXTRA).items()
    usage = draw(USAGES)
    if usage is not None:
        members.insert(draw(st.sampled_from([len(members), len(members), 1, 0])), ("usage", usage))
    data = msgspec.json.encode(dict(members))
    space = draw(SPELLING)
    if space == b" ":
        data = msgspec.json.format(data, indent=0)
    elif space == b"\n":
        data = data.replace(b"{", b"{ ", 1)
    return b"data: " + data + b"\n\n"


def _read_regular(stream: OpenAIStream, data: bytes) -> bytes | None:
    """As the relay asks: the template about what was read, then the stream about a part of it."""
    template = stream.template
    if template is not None:
        relayed = template.relay(b"%x\r\n%b\r\n" % (len(data), data))
        if relayed is not None:
            size, _, rest = relayed.partition(b"\r\n")
            assert len(rest) == int(size, 16) + 2 and template.event_bytes == len(data)
            return rest[:-2]
    return stream.read_regular(b"7f\r\n" + data + b"\r\n", 4, 4 + len(data))


def play(stream: OpenAIStream, sent: list[bytes], *, quickly: bool) -> list[Any]:
    """Return what is relayed of events that come one a read, what is known of usage after each, and how it ends."""
    seen: list[Any] = []
    for data in sent:
        out = _read_regular(stream, data) if quickly else None
        if out is None:
            try:
                out = stream.read(data[:-2])
            except Fault as fault:
                seen.append(fault.kind.code)
                break
        seen.append((out, stream.used, stream.source, stream.anomaly, stream.terminated))
    return seen


@settings(max_examples=400)
@given(
    st.lists(st.one_of(events(), st.just(b": x\n\n")), max_size=6),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, 10, 1000]),
)
def test_both_ways_to_read_a_stream_agree(
    sent: list[bytes], hide_usage: bool, hide_continuous: bool, counting: bool, cap: int | None
) -> None:
    def stream() -> OpenAIStream:
        return OpenAIStream(
            context(hide_usage=hide_usage, hide_continuous=hide_usage or hide_continuous, counting=counting, output_tokens_max=cap)
        )

    sent = [*sent, b"data: [DONE]\n\n"]
    assert play(stream(), sent, quickly=True) == play(stream(), sent, quickly=False)


TEXTS = st.one_of(
    st.text(max_size=4).map(msgspec.json.encode),
    st.sampled_from(
        [b'"a"', b'" "', b'"\\u00e9"', b'"\\""', b'"\\n"', b'"\xff"', b'"\xc3"', b'"\t"', b'"\x7f"', b'""', b'"', b'"a","b":"c"', b"null"]
    ),
    st.sampled_from(
        [b'"},"finish_reason":"stop"},{"delta":{"content":"a"', b'"}}],"usage":{"prompt_tokens":5,"total_tokens":', b'"a", "x":1']
    ),
)
COUNTS = st.one_of(
    st.integers(0, 30).map(lambda count: b"%d" % count), st.sampled_from([b"01", b"-1", b"1e1", b"", b"9" * 30, b"1,", b"1.0"])
)


@settings(max_examples=400)
@given(
    st.lists(
        st.tuples(st.just(b'"a"') | TEXTS, st.none() | st.tuples(COUNTS, COUNTS), st.sampled_from([b"5", b"5", b"5", b"6"])), max_size=12
    ),
    st.booleans(),
    st.sampled_from([None, 4, 20]),
)
def test_both_ways_agree_on_events_that_are_nearly_alike(
    parts: list[tuple[bytes, tuple[bytes, bytes] | None, bytes]], hide: bool, cap: int | None
) -> None:
    """Counts of None: one token more than the last event, as nearly all events have."""

    def stream() -> OpenAIStream:
        return OpenAIStream(context(hide_usage=hide, hide_continuous=hide, counting=False, output_tokens_max=cap))

    sent = [alike(b'""', b"5", b"0", b"5"), alike(b'"a"', b"6", b"1", b"5")]
    more = 1
    for text, counts, prompt in parts:
        more += counts is None
        total, count = counts or (b"%d" % (5 + more), b"%d" % more)
        sent.append(alike(text, total, count, prompt))
    sent.append(b"data: [DONE]\n\n")
    assert play(stream(), sent, quickly=True) == play(stream(), sent, quickly=False)


def alike(text: bytes, total: bytes, count: bytes, prompt: bytes) -> bytes:
    """An event as vLLM writes it in mid-stream."""
    return (
        b'data: {"id":"c","choices":[{"index":0,"delta":{"content":%b},"logprobs":null,"finish_reason":null,"token_ids":null}],'
        b'"usage":{"prompt_tokens":%b,"total_tokens":%b,"completion_tokens":%b}}\n\n' % (text, prompt, total, count)
    )


@pytest.mark.parametrize("cap", [1, 3, 9])
@pytest.mark.parametrize("step", [1, 2])
def test_events_alike_are_held_to_what_was_asked_for(cap: int, step: int) -> None:
    def stream() -> OpenAIStream:
        return OpenAIStream(context(hide_usage=True, hide_continuous=True, counting=False, output_tokens_max=cap))

    counts = [0, 1, *range(2, 12, step)]
    sent = [*(alike(b'"a"', b"%d" % (5 + count), b"%d" % count, b"5") for count in counts), b"data: [DONE]\n\n"]
    seen = play(stream(), sent, quickly=True)
    assert seen == play(stream(), sent, quickly=False)
    assert [seen[at][1].output for at in range(len(counts))] == [min(count, cap) for count in counts]


@pytest.mark.parametrize("text", [b'"a"', b'"\xc3\xa9\xe6\x97\xa5"', b'"}}"'])
def test_an_event_like_the_last_is_known_without_reading_it(text: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = OpenAIStream(context(hide_usage=True, hide_continuous=True, counting=False, output_tokens_max=None))
    stream.read(alike(b'""', b"5", b"0", b"5")[:-2])
    assert _read_regular(stream, alike(b'"a"', b"6", b"1", b"5")) is not None
    monkeypatch.setattr(openai_stream, "_regular", None)
    data = alike(text, b"7", b"2", b"5")
    assert _read_regular(stream, data) == data[: data.index(b',"usage"')] + b"}\n\n"
    assert stream.used == Quantities(5, 0, 2)


def test_the_quick_way_is_taken_and_only_where_it_leads() -> None:
    stream = OpenAIStream(context(hide_usage=True, hide_continuous=True, counting=False, output_tokens_max=None))
    choices = b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]'

    def regular(tokens: int) -> bytes:
        return choices + b',"usage":{"prompt_tokens":5,"completion_tokens":%d}}\n\n' % tokens

    assert _read_regular(stream, regular(1)) is None, "nothing was believed yet"
    assert stream.read(regular(1)[:-2]) == choices + b"}\n\n"
    assert _read_regular(stream, regular(2)) == choices + b"}\n\n" and stream.used == Quantities(5, 0, 2)
    others = {
        "fewer tokens": regular(1),
        "two events": regular(3) * 2,
        "half an event": regular(3)[:-1],
        "usage not last": regular(3).replace(b"}}\n", b'},"x":{"y":{}}}\n'),
        "nested beyond reason": regular(3).replace(b'"index":0', b'"index":' + b"[" * 20_000 + b"]" * 20_000),
        "not ASCII": regular(3).replace(b'"a"', b'"\xff"'),
        "an error": regular(3).replace(b'{"choices"', b'{"error":{},"choices"'),
        "an end": regular(3).replace(b"null", b'"stop"'),
        "done": b"data: [DONE]\n\n",
    }
    for name, data in others.items():
        assert _read_regular(stream, data) is None, name
    assert stream.read(choices.replace(b"null", b'"stop"') + b"}") is not None
    assert _read_regular(stream, regular(3)) is None, "after the finish a report is the last one, and named so"


@given(st.dictionaries(st.sampled_from(["prompt_tokens", "completion_tokens", "reasoning_tokens"]), COUNTS), st.integers(-1, 50))
def test_read_usage_any_report_is_disjoint_and_keeps_believable_totals(report: dict[str, Any], cached: int) -> None:
    read = read_usage(msgspec.json.encode(report | {"prompt_tokens_details": {"cached_tokens": cached}}))
    used = read.used
    assert min(used.input, used.cached_input, used.output, used.reasoning) >= 0
    for name, total, is_known in (
        ("prompt_tokens", used.input + used.cached_input, read.has_input),
        ("completion_tokens", used.output + used.reasoning, read.has_output),
    ):
        said = report.get(name)
        is_count = type(said) is int and 0 <= said <= TOKENS_MAX
        assert (is_known, total) == (is_count, said if is_count else 0)


DETAILS_ODD = [{}, {"cached_tokens": 1}, {"cached_tokens": "1"}, {"reasoning_tokens": 2}]
ODD = st.one_of(st.integers(0, 40), st.sampled_from([None, -1, 2**40, 1.5, "7", [], *DETAILS_ODD]))
USAGE_FIELDS = ["prompt_tokens", "completion_tokens", "reasoning_tokens", "prompt_tokens_details", "completion_tokens_details"]


@given(st.one_of(st.dictionaries(st.sampled_from(USAGE_FIELDS), ODD), ODD), st.one_of(st.none(), st.integers(0, 40)))
def test_a_usage_read_with_its_answer_is_read_as_it_is_by_itself(usage: Any, cap: int | None) -> None:
    raw = msgspec.json.encode(usage)
    known = context(output_tokens_max=cap)
    answer = read_answer(b'{"choices":[{"finish_reason":"stop"}],"usage":' + raw + b"}", known)
    expected = (None, None) if usage is None else check_report(read_usage(raw), known)
    if usage is not None and expected == (expected[0], None) and not read_usage(raw).has_output and cap != 0:
        expected = expected[0], Anomaly.INVALID
    assert (answer.used, answer.anomaly) == expected


@pytest.mark.parametrize(
    ("report", "used", "anomaly"),
    [
        ({"prompt_tokens_details": {"cached_tokens": 100}}, Quantities(26, 100, 2), None),
        ({"prompt_tokens_details": {"cached_tokens": 100.0}}, Quantities(26, 100, 2), None),
        ({"prompt_tokens_details": {"cached_tokens": 128}}, Quantities(0, 126, 2), Anomaly.INVALID),
        ({"prompt_tokens_details": {"cached_tokens": -1}}, Quantities(126, 0, 2), Anomaly.INVALID),
        ({"prompt_tokens_details": []}, Quantities(126, 0, 2), Anomaly.INVALID),
        ({"completion_tokens_details": {"reasoning_tokens": 317}}, Quantities(126, 0, 2), Anomaly.INVALID),
        ({"completion_tokens_details": {"reasoning_tokens": "1"}}, Quantities(126, 0, 2), Anomaly.INVALID),
        ({"reasoning_tokens": 3}, Quantities(126, 0, 2), Anomaly.INVALID),
        ({"prompt_tokens": 126.0, "completion_tokens": 2.0}, Quantities(126, 0, 2), None),
        ({"prompt_tokens": -1}, Quantities(0, 0, 2), Anomaly.INVALID),
        ({"prompt_tokens": True}, Quantities(0, 0, 2), Anomaly.INVALID),
        ({"prompt_tokens": 2**40}, Quantities(0, 0, 2), Anomaly.INVALID),
        ({"completion_tokens": "2"}, Quantities(126, 0, 0), Anomaly.INVALID),
        ({"completion_tokens": None, "completion_tokens_details": {"reasoning_tokens": 1}}, Quantities(126, 0, 0), None),
    ],
)
def test_read_usage_impossible_member_keeps_the_others(report: dict[str, Any], used: Quantities, anomaly: object) -> None:
    read = read_usage(msgspec.json.encode({"prompt_tokens": 126, "completion_tokens": 2} | report))
    assert (read.used, read.anomaly) == (used, anomaly)


@pytest.mark.parametrize(
    ("input_details", "output_details", "used"),
    [
        ({"audio_tokens": 30}, {}, Quantities(96, 0, 20, other=OtherClasses(audio_input=30))),
        ({"audio_tokens": 30, "cached_tokens": 100}, {}, Quantities(0, 100, 20, other=OtherClasses(audio_input=26))),
        ({"image_tokens": 126, "audio_tokens": 1}, {}, Quantities(0, 0, 20, other=OtherClasses(image_input=126))),
        ({"cache_write_tokens": 26}, {}, Quantities(100, 0, 20, other=OtherClasses(cache_write=26))),
        ({}, {"audio_tokens": 15, "reasoning_tokens": 8}, Quantities(126, 0, 0, 8, other=OtherClasses(audio_output=12))),
        ({}, {"image_tokens": 5}, Quantities(126, 0, 15, other=OtherClasses(image_output=5))),
    ],
)
def test_read_usage_of_audio_and_images_puts_each_token_in_one_class(
    input_details: dict[str, int], output_details: dict[str, int], used: Quantities
) -> None:
    report = {"prompt_tokens": 126, "prompt_tokens_details": input_details}
    report |= {"completion_tokens": 20, "completion_tokens_details": output_details}
    read = read_usage(msgspec.json.encode(report))
    assert (read.used, read.anomaly) == (used, None)
    assert (read.used.input_tokens, read.used.output_tokens) == (126, 20)


@pytest.mark.parametrize("raw", [b"[]", b"7", b'"x"', b"true"])
def test_read_usage_of_no_object_is_not_believed(raw: bytes) -> None:
    for read in (read_usage(raw), messages.read_usage(raw)):
        assert (read.has_input, read.has_output, read.anomaly) == (False, False, Anomaly.INVALID)


@pytest.mark.parametrize(
    ("report", "used", "anomaly"),
    [
        ({}, Quantities(126, 100, 2, other=OtherClasses(cache_write=10)), None),
        ({"cache_read_input_tokens": []}, Quantities(126, 0, 2, other=OtherClasses(cache_write=10)), Anomaly.INVALID),
        ({"cache_creation_input_tokens": -1}, Quantities(126, 100, 2), Anomaly.INVALID),
        ({"input_tokens": 126.0, "output_tokens": 2.0}, Quantities(126, 100, 2, other=OtherClasses(cache_write=10)), None),
        ({"input_tokens": "126"}, Quantities(0, 100, 2, other=OtherClasses(cache_write=10)), Anomaly.INVALID),
        ({"output_tokens": -5}, Quantities(126, 100, 0, other=OtherClasses(cache_write=10)), Anomaly.INVALID),
        ({"input_tokens": TOKENS_MAX}, Quantities(TOKENS_MAX, 100, 2), Anomaly.INVALID),
    ],
)
def test_read_message_usage_impossible_member_keeps_the_others(report: dict[str, Any], used: Quantities, anomaly: object) -> None:
    whole = {"input_tokens": 126, "cache_creation_input_tokens": 10, "cache_read_input_tokens": 100, "output_tokens": 2}
    read = messages.read_usage(msgspec.json.encode(whole | report))
    assert (read.used, read.anomaly) == (used, anomaly)


def running(*totals: int, last: int | None, cap: int | None = None, step: int = 1) -> OpenAIStream:
    """A stream with these running totals, a finish and a last total, read as the relay reads it."""
    stream = OpenAIStream(context(output_tokens_max=cap))
    sent = [alike(b'"a"', b"%d" % (5 + total), b"%d" % total, b"5") for total in totals]
    sent.append(b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n')
    if last is not None:
        sent.append(b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":%d}}\n\n' % last)
    play(stream, [*sent, b"data: [DONE]\n\n"], quickly=True)
    return stream


@pytest.mark.parametrize("cap", [None, 4096])
@pytest.mark.parametrize(
    ("totals", "last", "output", "anomaly"),
    [
        ((1, 2147483647), 2, 2, Anomaly.INFLATED),
        ((1, 4000), 2, 2, Anomaly.INFLATED),
        ((1, 2, 2147483647, 4, 5), 5, 5, Anomaly.INFLATED),
        ((1, 2, 3, 2147483647), None, 3, Anomaly.INFLATED),
        ((1, 150, 3), 3, 3, Anomaly.SHRINKING),
        ((1, 2, 3, 4), 0, 4, Anomaly.SHRINKING),
        ((1, 900, 901), 901, 901, None),
    ],
    ids=["absurd", "absurd-below-the-cap", "absurd-between", "absurd-and-no-final", "falling", "final-of-nothing", "hidden-reasoning"],
)
def test_69_running_total_that_is_absurd_does_not_outlive_the_final_one(
    totals: tuple[int, ...], last: int | None, output: int, anomaly: Anomaly | None, cap: int | None
) -> None:
    stream = running(*totals, last=last, cap=cap)
    assert stream.used == Quantities(5, 0, output)
    assert stream.anomaly is anomaly


def test_69_input_above_what_the_prompts_can_have_is_held_to_it() -> None:
    known = context(input_tokens_max=100, output_tokens_max=10)
    absurd = {"prompt_tokens": 2147483647, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 2147483600}}
    answer = read_answer(msgspec.json.encode({"choices": [], "usage": absurd}), known)
    assert (answer.used, answer.anomaly) == (Quantities(0, 100, 2), Anomaly.INFLATED)
    told = {"type": "message", "content": [], "usage": {"input_tokens": 2147483647, "cache_read_input_tokens": 60, "output_tokens": 2}}
    answer = messages.read_answer(msgspec.json.encode(told), known)
    assert (answer.used, answer.anomaly) == (Quantities(40, 60, 2), Anomaly.INFLATED)
    stream = OpenAIStream(known)
    first = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}],"usage":{"prompt_tokens":5,"completion_tokens":1}}'
    assert stream.read(first) is not None
    assert stream.read(b'data: {"choices":[],"usage":%b}' % msgspec.json.encode(absurd)) is None
    assert (stream.used, stream.anomaly) == (Quantities(5, 0, 2), Anomaly.INFLATED), "the report before could be true"


def reports(stream: OpenAIStream, *usages: tuple[int, int]) -> OpenAIStream:
    """A stream of two choices with two events each, and these usage chunks behind them."""
    for index in (0, 1, 0, 1):
        stream.read(b'data: {"choices":[{"index":%d,"delta":{"content":"a"}}]}' % index)
    for prompt, completion in usages:
        stream.read(b'data: {"choices":[],"usage":{"prompt_tokens":%d,"completion_tokens":%d}}' % (prompt, completion))
    return stream


@pytest.mark.parametrize(
    ("prompts", "usages", "used", "source"),
    [
        (1, [(7, 5), (7, 5)], Quantities(7, 0, 10), UsageSource.ENGINE_FINAL),
        (2, [(7, 5), (9, 4)], Quantities(16, 0, 9), UsageSource.ENGINE_FINAL),
        (1, [(7, 5)], Quantities(7, 0, 4), UsageSource.COUNTED),
        (1, [(7, 5), (7, 5), (7, 10)], Quantities(7, 0, 10), UsageSource.ENGINE_FINAL),
    ],
    ids=["choices", "prompts", "one-is-missing", "a-total-behind"],
)
def test_reports_of_single_sequences_are_added_up(prompts: int, usages: list[Any], used: Quantities, source: UsageSource) -> None:
    stream = reports(OpenAIStream(context(prompts=prompts, sequences=2, engine=Engine.LLAMACPP)), *usages)
    assert (stream.used, stream.source) == (used, source)
    whole = reports(OpenAIStream(context(prompts=prompts, sequences=2, engine=Engine.VLLM)), (16, 9))
    assert (whole.used, whole.source) == (Quantities(16, 0, 9), UsageSource.ENGINE_FINAL), "other engines report the request"


def test_whole_answer_that_reports_its_first_choice_is_billed_for_all() -> None:
    choices = [{"index": 0, "text": "a" * 20}, {"index": 1, "text": "b" * 20}]
    body = msgspec.json.encode({"choices": choices, "usage": {"prompt_tokens": 7, "completion_tokens": 5}})
    several: dict[str, Any] = {"sequences": 2, "engine": Engine.LLAMACPP}
    answer = read_answer(body, context(**several))
    assert (answer.used, answer.source, answer.anomaly) == (Quantities(7, 0, 10), UsageSource.ESTIMATED, Anomaly.MISSING)
    assert read_answer(body, context(output_tokens_max=8, **several)).used == Quantities(7, 0, 8)
    assert read_answer(body, context(prompts=2, **several)).used == Quantities(0, 0, 10), "its input is estimated by the relay"
    assert read_answer(body, context(sequences=2)).used == Quantities(7, 0, 5)


def told(stream: MessageStream, *usages: Any) -> MessageStream:
    """A message whose start has the first of these reports, and whose deltas have the others."""
    start, *deltas = usages
    stream.read(b"data: " + msgspec.json.encode({"type": "message_start", "message": {"content": [], "usage": start}}))
    for _ in range(3):
        stream.read(b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"a"}}')
    for delta in deltas:
        stream.read(b"data: " + msgspec.json.encode({"type": "message_delta", "delta": {}, "usage": delta}))
    return stream


@pytest.mark.parametrize(
    ("usages", "used", "anomaly"),
    [
        ([{"input_tokens": 36, "cache_read_input_tokens": 64}, {"output_tokens": 3}], Quantities(36, 64, 3), None),
        ([{"input_tokens": 36, "cache_read_input_tokens": 64}, {"input_tokens": 100, "output_tokens": 3}], Quantities(36, 64, 3), None),
        ([{"input_tokens": 100}, {"input_tokens": 36, "cache_read_input_tokens": 64, "output_tokens": 3}], Quantities(36, 64, 3), None),
        ([{"input_tokens": 100}, {"input_tokens": 0, "output_tokens": 3}], Quantities(100, 0, 3), None),
        ([{"input_tokens": 100}, {"input_tokens": 2**31 - 1, "output_tokens": 3}], Quantities(100, 0, 3), Anomaly.INFLATED),
        ([{"input_tokens": -1}, {"input_tokens": 100, "output_tokens": 3}], Quantities(100, 0, 3), Anomaly.INVALID),
        ([{"input_tokens": 100}, {"output_tokens": -3}], Quantities(100, 0, 3), Anomaly.INVALID),
        ([{"input_tokens": 100}, {"output_tokens": []}], Quantities(100, 0, 3), Anomaly.INVALID),
        ([{"input_tokens": 100}, []], Quantities(100, 0, 3), Anomaly.INVALID),
        ([{"input_tokens": 100}, {"output_tokens": 2000}, {"output_tokens": 4}], Quantities(100, 0, 4), Anomaly.SHRINKING),
        ([{"input_tokens": 100}, {"output_tokens": 4}, {"output_tokens": 0}], Quantities(100, 0, 3), Anomaly.SHRINKING),
        ([[], {"input_tokens": 100, "output_tokens": 3}], Quantities(100, 0, 3), Anomaly.INVALID),
    ],
)
def test_merged_reports_of_a_message_keep_what_each_says_believably(usages: list[Any], used: Quantities, anomaly: Anomaly | None) -> None:
    stream = told(MessageStream(context(input_tokens_max=1000, output_tokens_max=2000)), *usages)
    assert (stream.used, stream.anomaly) == (used, anomaly)


@given(st.integers(0, 50), st.integers(0, 50), st.one_of(st.none(), st.integers(0, 60)))
def test_no_more_is_billed_than_could_be_made(output: int, reasoning: int, cap: int | None) -> None:
    held = cap_output(Quantities(7, 3, output, reasoning), cap)
    assert (held.input, held.cached_input) == (7, 3)
    assert held.output + held.reasoning == (output + reasoning if cap is None else min(cap, output + reasoning))
    assert 0 <= held.output <= output and 0 <= held.reasoning <= reasoning
