"""The hint of when a client may try again: one decision for both planes, never too early."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollway.domain.faults import DATABASE_UNAVAILABLE, KEY_INVALID, OVERLOADED, RESOURCE_UNKNOWN, Fault
from tollway.wire.retry_after import RetryAfter, retry_after, retry_header_lines, retry_headers


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, RetryAfter(1, 1)), (0.25, RetryAfter(1, 250)), (1, RetryAfter(1, 1000)), (1.4, RetryAfter(2, 1400)), (60, RetryAfter(60, 60_000))],
)
def test_retry_after_is_rounded_up_in_both_units(seconds: float, expected: RetryAfter) -> None:
    assert retry_after(Fault(OVERLOADED, retry_after_seconds=seconds)) == expected


@given(st.floats(0, 1e6))
def test_retry_after_is_never_too_early(seconds: float) -> None:
    hint = retry_after(Fault(OVERLOADED, retry_after_seconds=seconds))
    assert hint is not None and hint.seconds >= seconds and hint.milliseconds >= seconds * 1000 and min(hint) >= 1


def test_a_503_without_a_time_has_a_default_and_other_faults_have_none() -> None:
    assert retry_after(Fault(DATABASE_UNAVAILABLE)) == RetryAfter(1, 1000)
    assert retry_after(Fault(KEY_INVALID)) is None and retry_after(Fault(RESOURCE_UNKNOWN)) is None


def test_headers_say_it_in_both_units_and_are_the_same_as_lines() -> None:
    fault = Fault(OVERLOADED, retry_after_seconds=1.4)
    assert retry_headers(fault) == {"retry-after": "2", "retry-after-ms": "1400"}
    assert retry_header_lines(fault) == b"retry-after: 2\r\nretry-after-ms: 1400\r\n"
    assert retry_headers(Fault(KEY_INVALID)) == {} and retry_header_lines(Fault(KEY_INVALID)) == b""
