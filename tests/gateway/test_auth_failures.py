"""Failed authentications per address: bounded in number and in memory, whoever they come from."""

import pytest

from tollway.domain import faults
from tollway.domain.faults import Fault
from tollway.gateway.edge import auth_failures
from tollway.gateway.edge.auth_failures import AuthFailureLimiter

UNKNOWN = Fault(faults.KEY_INVALID)
SECOND_NS = 1_000_000_000


def throttle(found: AuthFailureLimiter, address: str, now_ns: int = 0) -> str:
    return found.throttle(UNKNOWN, address, now_ns).kind.code


def test_a_minute_of_failures_is_taken_at_once_and_then_one_by_one() -> None:
    found = AuthFailureLimiter(60)
    told = [found.throttle(UNKNOWN, "192.0.2.1", 0) for _ in range(61)]
    assert told[:60] == [UNKNOWN] * 60
    assert (told[60].kind, told[60].retry_after_seconds) == (faults.AUTHENTICATIONS_EXCEEDED, 1.0)
    assert throttle(found, "192.0.2.1", SECOND_NS) == "invalid_api_key"
    assert throttle(found, "192.0.2.1", SECOND_NS) == "too_many_failed_authentications"


@pytest.mark.parametrize(
    ("first", "second", "alike"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("@a", "@a", True),
    ],
)
def test_who_shares_a_bucket(first: str, second: str, alike: bool) -> None:
    found = AuthFailureLimiter(1)
    assert throttle(found, first) == "invalid_api_key"
    assert (throttle(found, second) == "too_many_failed_authentications") is alike


def test_faults_that_say_nothing_of_a_key_are_not_counted() -> None:
    found = AuthFailureLimiter(1)
    for kind in (faults.SNAPSHOT_MISSING, faults.CREDENTIALS_AMBIGUOUS):
        fault = Fault(kind)
        assert found.throttle(fault, "192.0.2.1", 0) is fault
    assert len(found) == 0


def test_without_a_bound_or_an_address_nothing_is_counted() -> None:
    for found, address in ((AuthFailureLimiter(0), "192.0.2.1"), (AuthFailureLimiter(1), "")):
        assert [throttle(found, address) for _ in range(3)] == ["invalid_api_key"] * 3
        assert len(found) == 0


def test_memory_is_bounded_and_idle_addresses_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth_failures, "ADDRESSES_MAX", 4)
    found = AuthFailureLimiter(60)
    for number in range(1000):
        throttle(found, f"10.0.{number // 250}.{number % 250}")
    assert len(found) == 5, "the addresses, and one bucket for all others"
    assert throttle(found, "10.9.9.9") == "too_many_failed_authentications", "those without an entry of their own share it"
    assert throttle(found, "10.0.0.0") == "invalid_api_key", "those that came before have their own"
    found.forget_idle(2 * SECOND_NS)
    assert throttle(found, "10.9.9.9", 2 * SECOND_NS) == "invalid_api_key"
    found.forget_idle(120 * SECOND_NS)
    assert len(found) == 0
