"""Sealed credentials: only the key opens them, only where they belong, and never after a change of any bit."""

import secrets

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollway.storage.vault import LocalVault

VAULT = LocalVault(bytes(range(32)))


class TestSealed:
    @given(secret=st.text(max_size=200), context=st.text(max_size=60))
    def test_opens_to_what_it_was(self, secret: str, context: str) -> None:
        sealed = VAULT.seal(secret, context=context)
        assert VAULT.unseal(sealed) == secret
        assert VAULT.unseal(sealed, context=context) == secret
        assert sealed != VAULT.seal(secret, context=context)

    def test_does_not_open_after_a_change_of_any_bit_or_length(self) -> None:
        sealed = VAULT.seal("secret", context="dep_1")
        for place in range(len(sealed) * 8):
            changed = bytearray(sealed)
            changed[place // 8] ^= 1 << place % 8
            with pytest.raises(ValueError, match="seal"):
                VAULT.unseal(bytes(changed))
        for length in range(len(sealed)):
            with pytest.raises(ValueError, match="seal"):
                VAULT.unseal(sealed[:length])

    def test_does_not_open_elsewhere_or_under_another_key(self) -> None:
        sealed = VAULT.seal("secret", context="dep_1")
        with pytest.raises(ValueError, match="something else"):
            VAULT.unseal(sealed, context="dep_2")
        with pytest.raises(ValueError, match="another key"):
            LocalVault(secrets.token_bytes(32)).unseal(sealed)


class TestAKey:
    @pytest.mark.parametrize("key", [b"", b"short", bytes(32), b"ab" * 16, bytes(31)])
    def test_that_is_none_is_refused(self, key: bytes) -> None:
        with pytest.raises(ValueError, match="32 random bytes"):
            LocalVault(key)

    def test_is_not_shown(self) -> None:
        assert repr(bytes(range(32)))[2:-1] not in repr(VAULT) + str(vars(VAULT))
