"""The comparison of bills with the truth log tells a right bill of sound, pictures and sessions from a wrong one."""

from dataclasses import replace

import pytest

from reliability.bill_checks import TOKEN_CLASSES, UNIT_CLASSES, Attempt, Bill, Ended, Heard, find_wrong

PRICES = {
    "m": {
        "input": "1",
        "cached_input": "1",
        "output": "2",
        "reasoning": "3",
        "characters": "1",
        "images": "2",
        "pixels": "3",
        "request": "0",
    }
}
UNITS = {"input": 10**6, "output": 2 * 10**6, "characters": 10**6, "images": 2 * 10**12, "pixels": 3 * 10**6}


def bill(endpoint: str, outcome: str = "completed", **used: int) -> Bill:
    quantities = dict.fromkeys((*TOKEN_CLASSES, *UNIT_CLASSES), 0) | used
    lines = {name: (count, UNITS[name], count * UNITS[name]) for name, count in used.items() if count}
    return Bill("req_1", "m", endpoint, outcome, 1, "engine_final", quantities, lines)


def made(ended: str = "completed", units: int = 0, prompt: int = 0, generated: int = 0, pixels: int = 0) -> Attempt:
    return Attempt(1, prompt, 0, generated, 0, ended, units, pixels)


@pytest.mark.parametrize(
    ("billed", "is_right"),
    [
        (bill("images/edits", images=3, pixels=12), True),
        (bill("images/edits", images=2, pixels=12), False),
        (bill("images/edits", images=3, pixels=11), False),
        (bill("audio/speech", characters=3), False),
        (bill("images/edits", "client_cancelled"), True),
        (bill("images/edits", "client_cancelled", images=3), False),
    ],
)
def test_units_are_those_that_the_engine_made(billed: Bill, is_right: bool) -> None:
    attempt = made(units=3, pixels=12) if billed.endpoint == "images/edits" else made(units=4)
    assert (not find_wrong({"req_1": [attempt]}, {"req_1": billed}, [], PRICES)[0]) is is_right


@pytest.mark.parametrize(
    ("endpoint", "outcome", "input_tokens", "is_right"),
    [
        ("responses", "upstream_error", 0, True),  # its input is told in the last event, which the engine did not send
        ("responses", "gateway_crash", 0, True),
        ("chat/completions", "upstream_error", 0, False),
        ("chat/completions", "upstream_error", 7, True),
        ("responses", "upstream_error", 8, False),
    ],
)
def test_input_of_a_cut_stream_is_the_prompt_or_what_was_not_told_yet(
    endpoint: str, outcome: str, input_tokens: int, is_right: bool
) -> None:
    billed = bill(endpoint, outcome, input=input_tokens, output=3)
    billed = replace(billed, source="counted")
    assert (not find_wrong({"req_1": [made(prompt=7, generated=5)]}, {"req_1": billed}, [], PRICES)[0]) is is_right


def test_speech_that_is_left_is_billed_whole_or_not() -> None:
    for characters, is_right in ((4, True), (0, True), (3, False)):
        billed = bill("audio/speech", "client_cancelled", characters=characters)
        assert (not find_wrong({"req_1": [made(units=4)]}, {"req_1": billed}, [], PRICES)[0]) is is_right


@pytest.mark.parametrize(
    ("output", "outcome", "ended", "delivered", "is_right"),
    [
        (5, "completed", "complete", 5, True),
        (4, "completed", "complete", 5, False),
        (0, "client_cancelled", "complete", 5, False),
        (5, "client_cancelled", "left", 3, True),
        (3, "client_cancelled", "left", 3, True),
        (2, "client_cancelled", "left", 3, False),
        (6, "client_cancelled", "left", 3, False),
        (3, "gateway_crash", "broken", 3, True),
        (0, "gateway_crash", "broken", 1, False),
        (5, "completed", "left", 3, True),
    ],
)
def test_responses_of_sessions_are_compared_by_what_they_used(
    output: int, outcome: str, ended: Ended, delivered: int, is_right: bool
) -> None:
    billed = bill("realtime", outcome, output=output) if outcome != "completed" else bill("realtime", outcome, input=7, output=output)
    heard = [Heard("m", 0, "resp_1", 101, delivered, ended)]
    assert (not find_wrong({"resp_1": [made(prompt=7, generated=5)]}, {"req_1": billed}, heard, PRICES)[0]) is is_right
