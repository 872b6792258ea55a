"""Codes of authenticator apps, by the vectors of RFC 6238, and the rules of passwords."""

import secrets

import pytest

from tollway.domain import one_time_codes, passwords

SECRET = b"12345678901234567890"


@pytest.mark.parametrize(
    ("seconds", "code"),
    [(59, "94287082"), (1111111109, "07081804"), (1111111111, "14050471"), (1234567890, "89005924"), (2000000000, "69279037")],
)
def test_code_is_that_of_rfc_6238(seconds: int, code: str) -> None:
    assert one_time_codes.compute_code(SECRET, seconds // 30, 8) == code


def test_code_counts_in_its_step_and_one_beside_it_and_once() -> None:
    now = 1_234_567_890
    step = now // 30
    code = one_time_codes.compute_code(SECRET, step)
    for shift, expected in ((-60, None), (-30, step), (0, step), (30, step), (60, None)):
        assert one_time_codes.find_step(SECRET, code, (now + shift) * 1_000_000, None) == expected
    assert one_time_codes.find_step(SECRET, code, now * 1_000_000, step) is None
    assert one_time_codes.find_step(SECRET, code, now * 1_000_000, step - 1) == step


@pytest.mark.parametrize("code", ["", "12345", "1234567", "abcdef", "\uff11\uff12\uff13\uff14\uff15\uff16"])
def test_text_that_is_no_code_is_not_accepted(code: str) -> None:
    assert one_time_codes.find_step(SECRET, code, 59_000_000, None) is None


def test_app_is_given_the_secret_by_an_address() -> None:
    address = one_time_codes.make_address(SECRET, "ada@example.com", "Tollway")
    assert address == "otpauth://totp/Tollway:ada%40example.com?secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ&issuer=Tollway"


@pytest.mark.parametrize("password", ["short", "x" * 129, "abababababab", "my name is ada.love"])
def test_password_that_is_easily_guessed_is_not_accepted(password: str) -> None:
    assert passwords.find_password_error(password, "ada.love@example.com") is not None


def test_long_password_is_accepted() -> None:
    assert passwords.find_password_error("correct horse battery staple", "ada@example.com") is None


def test_password_may_contain_a_name_so_short_that_words_contain_it() -> None:
    assert passwords.find_password_error("correct horse battery staple", "a@example.com") is None


def test_recovery_codes_differ() -> None:
    made = {passwords.make_recovery_code(secrets.token_bytes(passwords.RECOVERY_BYTES)) for _ in range(100)}
    assert len(made) == 100 and all(len(code) == 19 for code in made)
