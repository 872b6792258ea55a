"""The credential of a request, whichever headers carry it. Both planes read it here."""

from collections.abc import Iterable

from tollway.domain.faults import CREDENTIALS_AMBIGUOUS, KEY_INVALID, Fault


def find_secret(authorization: Iterable[bytes], api_keys: Iterable[bytes]) -> bytes | None:
    """Return the one secret that a request presents, None if it presents none.

    `authorization`: values of that header, whose scheme must be Bearer (RFC 6750, section 2.1). `api_keys`: values of `x-api-key` and
    `api-key`. The same secret in several headers counts once and an empty value counts as absent, because clients fill one header from
    each of their environment variables. Raises Fault ambiguous_credentials for two secrets that differ, since which of them counts must
    never be a matter of opinion, and invalid_api_key for another scheme alone.
    """
    secrets = {value for value in api_keys if value}
    is_foreign = False
    for value in authorization:
        scheme, _, secret = value.partition(b" ")
        if scheme.lower() != b"bearer":
            is_foreign = is_foreign or bool(value)
        elif secret := secret.strip(b" "):
            secrets.add(secret)
    if len(secrets) + is_foreign > 1:
        raise Fault(CREDENTIALS_AMBIGUOUS)
    if is_foreign:
        raise Fault(KEY_INVALID)
    return secrets.pop() if secrets else None
