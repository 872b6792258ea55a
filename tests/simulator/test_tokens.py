"""Token arithmetic: the pencil with which bills are recomputed."""

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollway.simulator.tokens import (
    BLOCK_TOKENS,
    TOKEN_BYTES,
    WORDS,
    Answer,
    Lengths,
    Pace,
    PrefixCache,
    Prompt,
    chat_prompt,
    count,
    jitter_sums,
    plan_answer,
    prompt_of_ids,
    prompt_of_text,
)

texts = st.text(max_size=400)


def spoken(answer: Answer, choice: int, cuts: list[int]) -> str:
    """A sequence's text, put together from the pieces between the cuts."""
    length = answer.lengths[choice]
    edges = [0, *sorted({cut % (length + 1) for cut in cuts}), length]
    pieces = [answer.text(choice, first, last) for first, last in pairwise(edges) if first < last]
    decoded: str = msgspec.json.decode(b'"%s"' % b"".join(pieces))
    return decoded


def echo(text: str, **changes: object) -> Answer:
    arguments = {
        "tokens_max": None,
        "ignore_eos": False,
        "echo": text.encode(),
        "lengths": Lengths(1, 1, 1_000_000, 0),
        "seed": 0,
    } | changes
    return plan_answer((prompt_of_text(text),), 1, **arguments)  # type: ignore[arg-type]


def words(prompts: tuple[Prompt, ...], choices: int = 1, **changes: object) -> Answer:
    arguments = {
        "tokens_max": None,
        "ignore_eos": False,
        "echo": b"",
        "lengths": Lengths(8, 64, 1000, 0),
        "seed": 0,
    } | changes
    return plan_answer(prompts, choices, **arguments)  # type: ignore[arg-type]


def test_words_are_one_token_each_and_need_no_escape() -> None:
    assert all(len(word) == TOKEN_BYTES and msgspec.json.encode(word.decode())[1:-1] == word for word in WORDS)
    assert len(set(WORDS)) == len(WORDS)


@pytest.mark.parametrize(("text", "tokens"), [("", 1), ("a", 1), ("abcd", 1), ("abcde", 2), ("ääää", 2), ("a" * 400, 100)])
def test_a_token_is_four_bytes_rounded_up(text: str, tokens: int) -> None:
    assert prompt_of_text(text).tokens == count(text.encode()) == tokens


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50))
def test_a_token_id_is_one_token(ids: list[int]) -> None:
    assert prompt_of_ids(ids).tokens == len(ids)


def test_every_message_and_tool_costs_tokens() -> None:
    short = chat_prompt([("user", "hi")])
    assert chat_prompt([("system", "be brief"), ("user", "hi")]).tokens > short.tokens
    assert chat_prompt([("user", "hi")], b'[{"type":"function"}]').tokens > short.tokens


@given(texts.filter(bool), st.lists(st.integers(0, 1000)), st.integers(0, 5))
def test_any_split_of_an_echo_is_the_same_text(text: str, cuts: list[int], reasoning: int) -> None:
    answer = echo(text, lengths=Lengths(1, 1, 1_000_000, reasoning))
    assert answer.lengths == (count(text.encode()) + reasoning,)
    assert answer.finish_reasons == ("stop",)
    assert spoken(answer, 0, cuts) == " " * (TOKEN_BYTES * reasoning) + text


@given(texts.filter(bool), st.integers(1, 300), st.lists(st.integers(0, 1000)))
def test_an_echo_of_any_length_is_valid_text(text: str, tokens: int, cuts: list[int]) -> None:
    answer = echo(text, tokens_max=tokens, ignore_eos=True)
    assert answer.lengths == (tokens,)
    assert (text * (tokens * TOKEN_BYTES + 1)).startswith(spoken(answer, 0, cuts))


@given(texts, st.integers(1, 200), st.booleans(), st.integers(1, 4))
def test_max_tokens_bounds_every_sequence(text: str, tokens_max: int, ignore_eos: bool, choices: int) -> None:
    answer = words((prompt_of_text(text),), choices, tokens_max=tokens_max, ignore_eos=ignore_eos)
    assert len(answer.lengths) == choices
    for length, reason in zip(answer.lengths, answer.finish_reasons, strict=True):
        assert 1 <= length <= tokens_max
        assert length == tokens_max or (not ignore_eos and reason == "stop" and 8 <= length <= 64)
        assert not ignore_eos or (length, reason) == (tokens_max, "length")


@given(texts, st.lists(st.integers(0, 1000)), st.integers(0, 100))
def test_what_is_generated_is_what_is_said(text: str, cuts: list[int], seed: int) -> None:
    answer = words((prompt_of_text(text),), 2, seed=seed)
    for choice, length in enumerate(answer.lengths):
        assert count(spoken(answer, choice, cuts).encode()) == length
    assert answer.generated(10**6) == sum(answer.lengths)


@given(texts)
def test_the_same_prompt_gets_the_same_answer(text: str) -> None:
    prompts = (prompt_of_text(text),)
    assert words(prompts) == words(prompts)


@given(st.integers(0, 100), st.integers(0, 30))
def test_reasoning_is_part_of_what_is_generated(tokens_each: int, reasoning: int) -> None:
    answer = words((prompt_of_text("why"),), 2, lengths=Lengths(8, 64, 1000, reasoning))
    assert 0 <= answer.reasoned(tokens_each) <= answer.generated(tokens_each)
    assert answer.reasoned(10**6) == sum(min(reasoning, length) for length in answer.lengths)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.integers(0, 5), st.integers(1, 5000), st.floats(0, 100))
def test_chunks_are_due_in_order_and_counted_by_time(
    first: float, gap: float, fraction: float, seed: int, steps: int, elapsed: float
) -> None:
    pace = Pace(first, gap, jitter_sums(fraction, seed))
    assert pace.due(1) == first
    assert pace.due(steps) <= pace.due(steps + 1) + 1e-9
    done = pace.steps_by(elapsed, steps)
    assert 0 <= done <= steps
    assert done == 0 or pace.due(done) <= elapsed + 1e-9
    assert done == steps or pace.due(done + 1) > elapsed - 1e-9


# Prefix cache


@given(st.binary(max_size=2000))
def test_hits_are_whole_blocks_and_never_all_of_the_prompt(data: bytes) -> None:
    cache, prompt = PrefixCache(1000), Prompt(data, count(data))
    assert cache.take(prompt, "") == 0
    again = cache.take(prompt, "")
    assert again % BLOCK_TOKENS == 0
    assert again < prompt.tokens
    assert again == (prompt.tokens - 1) // BLOCK_TOKENS * BLOCK_TOKENS


@given(st.integers(0, 40), st.integers(1, 40), st.integers(1, 40))
def test_hits_are_the_common_beginning(common: int, left: int, right: int) -> None:
    cache = PrefixCache(1000)
    first = b"c" * common * 16 + b"a" * left * 16
    second = b"c" * common * 16 + b"b" * right * 16
    cache.take(Prompt(first, count(first)), "")
    assert cache.take(Prompt(second, count(second)), "") == common // 4 * BLOCK_TOKENS


def test_salts_share_nothing() -> None:
    cache, prompt = PrefixCache(1000), prompt_of_text("x" * 1000)
    cache.take(prompt, "tenant-a")
    assert cache.take(prompt, "tenant-b") == 0
    assert cache.take(prompt, "tenant-a") > 0


def test_the_cache_is_bounded_and_forgets_the_oldest() -> None:
    cache = PrefixCache(8)
    old, new = prompt_of_text("o" * 64 * 4), prompt_of_text("n" * 64 * 8)
    cache.take(old, "")
    cache.take(new, "")
    assert len(cache) == 8
    assert cache.take(old, "") == 0
