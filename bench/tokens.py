"""The cost of access tokens at a gateway: `python -m bench.tokens`.

The phase `authenticate` is run with an API key, and with tokens of this platform and of an organization's own issuer: on a connection that
sent the credential before, on a new one while the gateway remembers the token, and at the first use, when it has to verify the signature.
What is printed is CPU time of a call, the least of several turns, so that other work on the machine matters little."""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from functools import partial

from tests.tokens import Signer, make_ed25519, make_p256, make_rsa
from tollway.domain import keys
from tollway.domain.catalog import Endpoint
from tollway.domain.keys import KeyType
from tollway.domain.prices import PriceTerms
from tollway.domain.snapshot import IssuerEntry, KeyEntry, OrganizationEntry, ProjectEntry, SigningKeyEntry
from tollway.domain.tokens import FederationRule
from tollway.gateway.authenticate import Digester, authenticate
from tollway.gateway.directory import Directory
from tollway.gateway.request import RequestHead

NOW_US = 1_796_000_000 * 1_000_000
PEPPER = b"p" * 32
ORGANIZATION, PROJECT, KEY = (f"{prefix}_{1:032x}" for prefix in ("org", "proj", "key"))
OURS, THEIRS, AUDIENCE = "https://control.example", "https://issuer.example", f"https://gateway.example/{ORGANIZATION}"
TURNS = 9
CALLS = 10_000
TOKENS = 900
"""Tokens of each kind, each of which is verified once; fewer than a gateway remembers."""


def make_directory(secret: str, ours: Signer, theirs: tuple[Signer, ...]) -> Directory:
    """Return the directory of a gateway with one key, which tokens of two issuers stand for."""
    directory = Directory()
    directory.begin_reset()
    for entry in (
        OrganizationEntry(id=ORGANIZATION, currency="EUR", terms=(PriceTerms(0, "book_1"),)),
        ProjectEntry(id=PROJECT, organization_id=ORGANIZATION),
        KeyEntry(id=KEY, digest=keys.digest(PEPPER, secret.encode()), type=KeyType.LIVE, project_id=PROJECT),
        SigningKeyEntry(id="ours-1", issuer=OURS, key=ours.jwk),
        IssuerEntry(
            id="idp_1",
            organization_id=ORGANIZATION,
            issuer=THEIRS,
            audience=AUDIENCE,
            keys=tuple(signer.jwk for signer in theirs),
            rules=(FederationRule(KEY, {"sub": "repo:acme/*"}),),
        ),
    ):
        directory.add(entry)
    directory.finish_reset(1)
    return directory


def measure(calls: Sequence[Callable[[], object]]) -> float:
    """Return the CPU time of one of these calls in microseconds."""
    began = time.process_time_ns()
    for call in calls:
        call()
    return (time.process_time_ns() - began) / len(calls) / 1000


def describe(directory: Directory, digesters: Sequence[Digester], credentials: Sequence[str]) -> str:
    """Return the figures of credentials that differ in nothing that matters: each is new to the gateway when it comes first."""

    def ask(head: RequestHead) -> None:
        authenticate(head, directory, digesters, NOW_US)

    def new_head(credential: str) -> RequestHead:
        return RequestHead(Endpoint.CHAT_COMPLETIONS, {b"authorization": b"Bearer " + credential.encode()})

    part = len(credentials) // TURNS
    first = [measure([partial(ask, new_head(each)) for each in credentials[turn * part :][:part]]) for turn in range(TURNS)]
    anew = [measure([partial(ask, new_head(credentials[0])) for _ in range(CALLS)]) for _ in range(TURNS)]
    kept = new_head(credentials[0])
    ask(kept)
    again = [measure([partial(ask, kept)] * CALLS) for _ in range(TURNS)]
    return f"same connection {min(again):.2f}, new connection {min(anew):.2f}, first use {min(first):.1f}"


def main() -> None:
    """Print the figures."""
    argparse.ArgumentParser(prog="python -m bench.tokens", description=(__doc__ or "").partition("\n")[0]).parse_args()
    secret = keys.new_key(KeyType.LIVE, bytes(keys.RANDOM_BYTES)).secret
    ours, p256, rsa = make_ed25519("ours-1"), make_p256("theirs-ec"), make_rsa("theirs-rsa")
    directory, digesters = make_directory(secret, ours, (p256, rsa)), (keys.digester(PEPPER),)
    now = NOW_US // 1_000_000
    own = {"iss": OURS, "aud": "tollway", "sub": "sa_1", "key_id": KEY, "iat": now, "exp": now + 900}
    others = {"iss": THEIRS, "aud": AUDIENCE, "sub": "repo:acme/shop", "iat": now, "exp": now + 600}
    credentials = {
        "API key": [secret] * TOKENS,
        "token of ours (EdDSA)": [ours.token({**own, "jti": str(number)}, typ="at+jwt") for number in range(TOKENS)],
        "token of another issuer (ES256)": [p256.token({**others, "jti": str(number)}) for number in range(TOKENS)],
        "token of another issuer (RS256)": [rsa.token({**others, "jti": str(number)}) for number in range(TOKENS)],
    }
    print(f"CPU of the phase authenticate in microseconds, least of {TURNS} turns; load of the machine {os.getloadavg()[0]:.1f}")
    for name, each in credentials.items():
        print(f"  {name}: {describe(directory, digesters, each)}")


if __name__ == "__main__":
    main()
