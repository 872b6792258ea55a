"""API keys: form, checksum, and what is stored of them (invariant 13: a single edit fails the checksum)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollway.domain import keys
from tollway.domain.keys import KeyType

RANDOM = st.binary(min_size=keys.RANDOM_BYTES, max_size=keys.RANDOM_BYTES)


@given(st.sampled_from(KeyType), RANDOM)
def test_a_new_key_is_recognised_by_its_type(type: KeyType, random_bytes: bytes) -> None:
    key = keys.new_key(type, random_bytes)
    assert keys.find_type(key.secret) is type
    assert key.secret.startswith(f"tw_{type}_{key.public_id}")


@given(RANDOM, st.data())
def test_a_single_edit_fails_the_checksum(random_bytes: bytes, data: st.DataObject) -> None:
    secret = keys.new_key(KeyType.LIVE, random_bytes).secret
    at = data.draw(st.integers(8, len(secret) - 1))
    other = data.draw(st.sampled_from("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz").filter(lambda c: c != secret[at]))
    assert keys.find_type(secret[:at] + other + secret[at + 1 :]) is None


@pytest.mark.parametrize("text", ["", "tw_live_", "sk-1234", "tw_live_" + "a" * 57 + " ", "tw_root_" + "0" * 57, "tw_live_" + "é" * 57])
def test_anything_else_is_no_key(text: str) -> None:
    assert keys.find_type(text) is None


@given(RANDOM)
def test_what_may_be_shown_does_not_hold_the_secret(random_bytes: bytes) -> None:
    key = keys.new_key(KeyType.LIVE, random_bytes)
    assert key.secret[16:-4] not in key.redacted
    assert len(key.redacted) < 25


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_both_ways_to_digest_agree(pepper: bytes, secret: bytes) -> None:
    assert keys.digester(pepper)(secret) == keys.digest(pepper, secret)


def test_a_digest_depends_on_the_pepper() -> None:
    assert keys.digest(b"a" * 32, b"tw_live_x") != keys.digest(b"b" * 32, b"tw_live_x")
