"""Access tokens at a gateway: what is accepted, what is refused and why, and that a token is the key that it stands for."""

import datetime
import hashlib
import hmac
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from tests.fakes import Clock
from tests.gateway.authorities import issue
from tests.gateway.harness import (
    KEY,
    NOWHERE,
    ORGANIZATION,
    PEPPER,
    PROJECT,
    Answer,
    Log,
    Memory,
    Served,
    chat,
    message,
    plane,
    split_answers,
)
from tests.tokens import Signer, encode, make_ed25519, make_p256, make_rsa
from tollway.domain import keys
from tollway.domain.catalog import Endpoint
from tollway.domain.certificates import CertificateMapping
from tollway.domain.keys import KeyType
from tollway.domain.limits import Limits
from tollway.domain.snapshot import CertificateEntry, Change, Entry, IssuerEntry, KeyEntry, SigningKeyEntry
from tollway.domain.tokens import FederationRule, Jwk, TokenInvalid, check_claims
from tollway.gateway import directory as directories
from tollway.gateway.edge.auth_failures import AuthFailureLimiter
from tollway.gateway.plane import Plane
from tollway.gateway.principal import PrincipalKind
from tollway.wire.json_web_tokens import load_key

OURS = "https://control.example"
THEIRS = "https://issuer.example"
AUDIENCE = f"https://gateway.example/{ORGANIZATION}"
KEY_ID = f"key_{0:032x}"
RULE_KEY_ID = f"key_{99:032x}"
RULE = FederationRule(RULE_KEY_ID, {"sub": "repo:acme/*", "environment": "production"})
RULE_KEY = KeyEntry(
    id=RULE_KEY_ID, digest=b"r" * 32, type=KeyType.LIVE, project_id=PROJECT, limits=Limits(requests_per_minute=7),
    service_account_id="sa_" + "0" * 32,
)  # fmt: skip

ed25519, p256, rsa2048, other = make_ed25519("ours-1"), make_p256("theirs-ec"), make_rsa("theirs-rsa"), make_rsa("theirs-rsa")


class Gateway(Memory):
    """A gateway in memory that trusts one key of ours and one issuer of an organization."""

    def __init__(self, made: Plane, clock: Clock, log: Log) -> None:
        super().__init__(made)
        self.plane, self.clock, self.log_of_plane = made, clock, log

    def become(self, kind: str, id: str, entry: Entry | None) -> None:
        self.plane.apply(Change(version=self.plane.version + 1, kind=kind, id=id, entry=entry))

    async def ask(self, credential: str, **headers: str) -> Answer:
        connection = self.connect("192.0.2.1")
        connection.feed(message(chat(), key=credential, **headers))
        await self.settle()
        return split_answers(connection.written)[-1]

    def ours(self, **changes: Any) -> dict[str, Any]:
        now = self.clock.now_us() // 1_000_000
        claims = {"iss": OURS, "aud": "tollway", "sub": "sa_1", "key_id": KEY_ID, "iat": now, "exp": now + 900, "jti": "1"}
        return {name: value for name, value in (claims | changes).items() if value is not None}

    def theirs(self, **changes: Any) -> dict[str, Any]:
        now = self.clock.now_us() // 1_000_000
        claims = {"iss": THEIRS, "aud": AUDIENCE, "sub": "repo:acme/shop", "environment": "production", "iat": now, "exp": now + 600}
        return {name: value for name, value in (claims | changes).items() if value is not None}


ISSUER = IssuerEntry(
    id="idp_1", organization_id=ORGANIZATION, issuer=THEIRS, audience=AUDIENCE, keys=(p256.jwk, rsa2048.jwk), rules=(RULE,)
)


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    clock = Clock()
    with plane({"other": Served([NOWHERE])}, clock=clock) as (made, _, log):
        memory = Gateway(made, clock, log)
        memory.become("key", RULE_KEY.id, RULE_KEY)
        memory.become("signing_key", "ours-1", SigningKeyEntry(id="ours-1", issuer=OURS, key=ed25519.jwk))
        memory.become("issuer", "idp_1", ISSUER)
        yield memory


SERVED = 502
"""Status of a request that was authenticated: its model is served nowhere."""


async def test_token_of_ours_and_of_the_own_issuer_are_accepted_in_each_algorithm(gateway: Gateway) -> None:
    assert (await gateway.ask(ed25519.token(gateway.ours(), typ="at+jwt"))).status == SERVED
    assert (await gateway.ask(ed25519.token(gateway.ours(), typ="application/at+jwt"))).status == SERVED
    ps256 = make_rsa("ps", "PS256")
    gateway.become("issuer", "idp_1", msgspec.structs.replace(ISSUER, keys=(*ISSUER.keys, ps256.jwk)))
    for signer in (p256, rsa2048, ps256):
        assert (await gateway.ask(signer.token(gateway.theirs()))).status == SERVED, signer.algorithm
    assert (await gateway.ask(p256.token(gateway.theirs(aud=["elsewhere", AUDIENCE]), typ=None))).status == SERVED


def forge_with_public_key(claims: dict[str, Any]) -> str:
    """Return a token that is signed by HMAC with the public RSA key, which a verifier that trusts `alg` would accept."""
    signed = f"{encode(msgspec.json.encode({'alg': 'HS256', 'kid': 'theirs-rsa'}))}.{encode(msgspec.json.encode(claims))}"
    return f"{signed}.{encode(hmac.digest(rsa2048.jwk.n.encode(), signed.encode(), 'sha256'))}"


def unsigned(claims: dict[str, Any], algorithm: str) -> str:
    return f"{encode(msgspec.json.encode({'alg': algorithm}))}.{encode(msgspec.json.encode(claims))}."


FORGERIES = {
    "46-none": lambda g: unsigned(g.theirs(), "none"),
    "46-none-with-signature": lambda g: unsigned(g.theirs(), "nOnE") + "AA",
    "46-hmac-with-the-public-key": lambda g: forge_with_public_key(g.theirs()),
    "46-algorithm-of-another-kind-of-key": lambda g: rsa2048.token(g.theirs(), alg="ES256"),
    "46-algorithm-of-another-key": lambda g: rsa2048.token(g.theirs(), kid="theirs-ec", alg="RS256"),
    "46-foreign-key-by-the-same-id": lambda g: other.token(g.theirs()),
    "46-key-in-the-header": lambda g: other.token(g.theirs(), kid="mine", jwk=msgspec.to_builtins(other.jwk)),
    "46-key-by-address": lambda g: other.token(g.theirs(), kid="mine", jku="https://evil.example/keys", x5u="https://evil.example"),
    "46-key-id-is-a-path": lambda g: other.token(g.theirs(), kid="../../../dev/null"),
    "46-key-id-is-sql": lambda g: other.token(g.theirs(), kid="x' UNION SELECT 'y"),
    "46-key-id-is-no-text": lambda g: rsa2048.token(g.theirs(), kid=["theirs-rsa"]),
    "46-no-key-id-and-several-keys": lambda g: rsa2048.token(g.theirs(), kid=None),
    "46-crit": lambda g: rsa2048.token(g.theirs(), crit=["exp"]),
    "46-unencoded-payload": lambda g: rsa2048.token(g.theirs(), b64=False),
    "46-zip": lambda g: rsa2048.token(g.theirs(), zip="DEF"),
    "46-duplicate-claims": lambda g: rsa2048.token(msgspec.json.encode(g.theirs())[:-1] + b',"sub":"repo:acme/shop"}'),
    "46-no-object": lambda g: rsa2048.token(b"[]"),
    "46-our-token-by-their-key": lambda g: rsa2048.token(g.ours(), typ="at+jwt", kid="ours-1"),
    "46-their-claims-by-our-key": lambda g: ed25519.token(g.theirs(), typ="at+jwt"),
    "46-signature-cut": lambda g: rsa2048.token(g.theirs())[:-8],
    "46-claims-changed": lambda g: _with_other_claims(p256, g.theirs(), g.theirs(sub="repo:acme/other")),
    "46-der-signature": lambda g: p256.token(g.theirs()) + "AAAA",
    "48-expired": lambda g: ed25519.token(g.ours(iat=g.ours()["iat"] - 900, exp=g.ours()["iat"]), typ="at+jwt"),
    "48-without-end": lambda g: ed25519.token(g.ours(exp=None), typ="at+jwt"),
    "48-end-in-milliseconds": lambda g: ed25519.token(g.ours(exp=(g.ours()["iat"] + 60) * 1000), typ="at+jwt"),
    "48-end-is-a-text": lambda g: ed25519.token(g.ours(exp=str(g.ours()["exp"])), typ="at+jwt"),
    "48-end-is-true": lambda g: ed25519.token(g.ours(exp=True), typ="at+jwt"),
    "48-issued-in-the-future": lambda g: ed25519.token(g.ours(iat=g.ours()["iat"] + 120), typ="at+jwt"),
    "48-not-valid-yet": lambda g: ed25519.token(g.ours(nbf=g.ours()["iat"] + 120), typ="at+jwt"),
    "48-lives-too-long": lambda g: ed25519.token(g.ours(exp=g.ours()["iat"] + 901), typ="at+jwt"),
    "48-lives-too-long-elsewhere": lambda g: rsa2048.token(g.theirs(exp=g.theirs()["iat"] + 86_401)),
    "48-no-issuer": lambda g: ed25519.token(g.ours(iss=None), typ="at+jwt"),
    "48-another-issuer": lambda g: ed25519.token(g.ours(iss=OURS + "/"), typ="at+jwt"),
    "48-another-audience": lambda g: ed25519.token(g.ours(aud="other"), typ="at+jwt"),
    "48-audience-of-another-organization": lambda g: rsa2048.token(g.theirs(aud=AUDIENCE[:-1] + "1")),
    "48-no-audience": lambda g: rsa2048.token(g.theirs(aud=None)),
    "48-id-token-as-access-token": lambda g: ed25519.token(g.ours(), typ="JWT"),
    "48-no-subject": lambda g: rsa2048.token(g.theirs(sub=None)),
    "48-subject-beyond-the-prefix": lambda g: rsa2048.token(g.theirs(sub="repo:acmeevil/shop")),
    "48-claim-of-another-value": lambda g: rsa2048.token(g.theirs(environment="staging")),
    "48-claim-missing": lambda g: rsa2048.token(g.theirs(environment=None)),
    "48-claim-of-another-type": lambda g: rsa2048.token(g.theirs(environment={"production": True})),
    "48-key-id-of-no-key": lambda g: ed25519.token(g.ours(key_id=f"key_{1234:032x}"), typ="at+jwt"),
}


def _with_other_claims(signer: Signer, signed: dict[str, Any], shown: dict[str, Any]) -> str:
    head, _, signature = signer.token(signed).split(".")
    return f"{head}.{encode(msgspec.json.encode(shown))}.{signature}"


@pytest.mark.parametrize("row", FORGERIES)
async def test_token_is_refused_by_name_and_without_a_word_of_it(row: str, gateway: Gateway) -> None:
    token = FORGERIES[row](gateway)
    answer = await gateway.ask(token)
    assert (answer.status, answer.error["code"]) == (401, "invalid_token")
    gateway.log_of_plane.close()
    seen = str(answer.headers).encode() + answer.body + gateway.log_of_plane.text + gateway.plane.metrics.render()
    assert b"invalid_token" in gateway.log_of_plane.text
    assert not any(part.encode() in seen for part in token.split(".") if part)


@pytest.mark.parametrize("value", [10**400, -(10**400), float("nan"), float("inf"), 0, True, "1"])
def test_instant_that_is_none_refuses_the_token(value: Any) -> None:
    claims = {"iss": "i", "aud": "a", "sub": "s", "iat": 1_790_000_000, "exp": 1_790_000_060}
    for name in ("iat", "exp", "nbf"):
        with pytest.raises(TokenInvalid, match=name):
            check_claims(claims | {name: value}, "i", "a", 1_790_000_000_000_000, 900)


async def test_forty_kilobytes_with_dots_are_no_token(gateway: Gateway) -> None:
    assert (await gateway.ask("a" * 4000 + "." + "b" * 4000 + "." + "c" * 400)).error["code"] == "invalid_api_key"


BOUNDED_KEYS: dict[str, dict[str, Any]] = {
    "unbounded": {},
    "models": {"models": ("echo",)},
    "endpoints-and-output": {"endpoints": (Endpoint.EMBEDDINGS,), "output_tokens_max": 7},
    "addresses": {"addresses": ("192.0.2.0/24",)},
    "limits-of-its-account": {
        "limits": Limits(requests_per_minute=3),
        "service_account_id": "sa_" + "0" * 32,
        "service_account_limits": Limits(tokens_per_minute=5),
    },
    "test-key": {"type": KeyType.TEST},
}


@pytest.mark.parametrize("bounds", BOUNDED_KEYS.values(), ids=BOUNDED_KEYS)
async def test_40_identity_is_the_same_principal_by_key_token_assertion_and_certificate(gateway: Gateway, bounds: dict[str, Any]) -> None:
    """A key, and what stands for it (a token of ours, a token of the organization's own issuer, a client certificate), are alike in every
    scope, limit and field of the log, which names the key; they differ in their kind and their end."""
    directory, now = gateway.plane.directory, gateway.clock.now_us()
    digest = keys.digest(PEPPER, KEY.encode())
    gateway.become("key", KEY_ID, KeyEntry(**{"id": KEY_ID, "digest": digest, "type": KeyType.LIVE, "project_id": PROJECT} | bounds))
    gateway.become("issuer", "idp_1", msgspec.structs.replace(ISSUER, rules=(FederationRule(KEY_ID, {"sub": "repo:acme/*"}),)))
    program = issue("worker.acme.example", now=datetime.datetime.fromtimestamp(now / 1e6, datetime.UTC))
    mapping = CertificateMapping(KEY_ID, {"dns": "worker.acme.example"})
    entry = CertificateEntry(id="cert_1", organization_id=ORGANIZATION, certificate=program.der, rules=(mapping,))
    gateway.become("certificate", "cert_1", entry)
    by_key = directory.find_caller(digest, now)
    assert by_key is not None and by_key.principal.kind is PrincipalKind.API_KEY
    tokens = [ed25519.token(gateway.ours(), typ="at+jwt").encode(), p256.token(gateway.theirs()).encode()]
    others = [directory.find_token_caller(hashlib.sha256(token).digest(), token, now) for token in tokens]
    others.append(directory.find_certificate_caller(b"c" * 32, ORGANIZATION, program.der, now))
    kinds = [PrincipalKind.TOKEN, PrincipalKind.TOKEN, PrincipalKind.CERTIFICATE]
    for caller, kind in zip(others, kinds, strict=True):
        assert caller is not None
        assert caller.principal == msgspec.structs.replace(by_key.principal, kind=kind, expires_at=caller.principal.expires_at)
        assert (caller.cache_salt, caller.budgets) == (by_key.cache_salt, by_key.budgets)


async def test_use_of_a_token_is_noted_as_one_of_its_keys_secret(gateway: Gateway) -> None:
    directory, now = gateway.plane.directory, gateway.clock.now_us()
    token = ed25519.token(gateway.ours(), typ="at+jwt").encode()
    digest = hashlib.sha256(token).digest()
    of_key = keys.shorten_digest(keys.digest(PEPPER, KEY.encode()))
    for number, find in enumerate(
        (lambda at: directory.find_token_caller(digest, token, at), lambda at: directory.find_caller(digest, at))
    ):
        for at in (now + 2 * number * directories.USE_US, now + (2 * number + 1) * directories.USE_US):
            assert find(at) is not None
            assert [(use.key_id, use.digest, use.used_at) for use in directory.take_uses()] == [(KEY_ID, of_key, at)]
            assert find(at + 1) is not None
            assert directory.take_uses() == []


async def test_log_line_of_a_token_names_the_key(gateway: Gateway) -> None:
    token = ed25519.token(gateway.ours(), typ="at+jwt")
    assert [(await gateway.ask(credential)).status for credential in (KEY, token)] == [SERVED] * 2
    gateway.log_of_plane.close()
    lines = [msgspec.json.decode(line) for line in gateway.log_of_plane.text.splitlines()]
    by_key, by_token = (line for line in lines if line["event"] == "request")
    assert token.encode() not in gateway.log_of_plane.text
    assert by_key["key_id"] == by_token["key_id"] == KEY_ID
    assert by_key.keys() == by_token.keys()


async def test_token_ends_with_its_time_its_key_and_its_issuer(gateway: Gateway) -> None:
    ours, theirs = ed25519.token(gateway.ours(), typ="at+jwt"), p256.token(gateway.theirs())
    assert [(await gateway.ask(each)).status for each in (ours, theirs, ours)] == [SERVED] * 3
    gateway.become("key", RULE_KEY_ID, None)
    assert [(await gateway.ask(each)).status for each in (ours, theirs)] == [SERVED, 401]
    gateway.become("key", RULE_KEY_ID, RULE_KEY)
    assert (await gateway.ask(theirs)).status == SERVED
    gateway.become("issuer", "idp_1", None)
    assert [(await gateway.ask(each)).status for each in (ours, theirs)] == [SERVED, 401]
    gateway.clock.advance(899.0)
    assert (await gateway.ask(ours)).status == SERVED
    gateway.clock.advance(1.0)
    expired = await gateway.ask(ours)
    assert expired.status == 401 and "expired" in expired.error["message"]
    gateway.become("signing_key", "ours-1", None)
    assert (await gateway.ask(ed25519.token(gateway.ours(), typ="at+jwt"))).status == 401


async def test_stream_of_a_token_is_revoked_with_its_key_and_not_by_a_rotation(gateway: Gateway) -> None:
    directory, now = gateway.plane.directory, gateway.clock.now_us()
    token = ed25519.token(gateway.ours(), typ="at+jwt").encode()
    caller = directory.find_token_caller(hashlib.sha256(token).digest(), token, now)
    assert caller is not None
    entry = KeyEntry(id=KEY_ID, digest=b"n" * 32, type=KeyType.LIVE, project_id=PROJECT)
    gateway.become("key", KEY_ID, entry)
    gateway.become("issuer", "idp_1", None)
    assert not directory.is_revoked(caller)
    gateway.become("key", KEY_ID, None)
    assert directory.is_revoked(caller)


async def test_remembered_tokens_are_bounded(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directories, "TOKENS_MAX", 3)
    directory, now = gateway.plane.directory, gateway.clock.now_us()
    for number in range(10):
        token = ed25519.token(gateway.ours(jti=str(number)), typ="at+jwt").encode()
        assert directory.find_token_caller(hashlib.sha256(token).digest(), token, now) is not None
    assert len(directory._tokens) == 3
    assert len(directory._callers) <= 4


async def test_request_for_a_token_is_handed_on_with_its_credential_and_bounded(gateway: Gateway) -> None:
    asked: list[tuple[bytes, bytes, bytes | None]] = []

    async def ask(body: bytes, content_type: bytes, authorization: bytes | None) -> tuple[int, bytes]:
        asked.append((body, content_type, authorization))
        return 401, b'{"error":"invalid_client"}'

    async def post(body: bytes) -> Answer:
        connection = gateway.connect("192.0.2.1")
        head = f"POST /v1/oauth/token HTTP/1.1\r\nhost: a\r\nauthorization: Basic eDp5\r\ncontent-length: {len(body)}\r\n"
        connection.feed(head.encode() + b"content-type: application/x-www-form-urlencoded\r\n\r\n" + body)
        for _ in range(5):
            await gateway.settle()
        return split_answers(connection.written)[-1]

    assert (await post(b"grant_type=x")).status == 404, "a gateway without control issues nothing"
    gateway.plane.ask_for_token = ask
    answer = await post(b"grant_type=x")
    assert (answer.status, answer.json(), answer.headers["cache-control"]) == (401, {"error": "invalid_client"}, "no-store")
    assert asked == [(b"grant_type=x", b"application/x-www-form-urlencoded", b"Basic eDp5")]
    assert (await post(b"x" * 40_000)).status == 413
    gateway.edge.auth_failures = AuthFailureLimiter(1)
    assert [(await post(b"x")).status for _ in range(2)] == [401, 429], "guesses are bounded per address"


def test_keys_of_issuers_that_are_weak_or_not_for_signatures_are_refused() -> None:
    weak = make_rsa("weak", bits=1024)
    for jwk in (
        weak.jwk,
        msgspec.structs.replace(rsa2048.jwk, use="enc"),
        msgspec.structs.replace(rsa2048.jwk, alg="HS256"),
        msgspec.structs.replace(rsa2048.jwk, e=encode(b"\x01")),
        Jwk(kty="oct", kid="secret"),
        Jwk(kty="OKP", crv="X25519", x=ed25519.jwk.x),
        Jwk(kty="OKP", crv="Ed25519", x="AA"),
        Jwk(kty="EC", crv="P-256", x=p256.jwk.x, y=p256.jwk.x),
        Jwk(kty="RSA"),
    ):
        with pytest.raises(ValueError):
            load_key(jwk)


def test_rule_without_matchers_matches_nothing() -> None:
    assert not FederationRule("key_1", {}).matches({"sub": "x"})
    assert FederationRule("key_1", {"groups": "ops"}).matches({"groups": ["dev", "ops"]})
    assert not FederationRule("key_1", {"admin": True}).matches({"admin": 1})
    assert not FederationRule("key_1", {"count": 1}).matches({"count": True})
    assert not FederationRule("key_1", {"repository": "acme/*"}).matches({"repository": "acme/shop"}), "a prefix is for the subject alone"


def test_refusal_is_an_error_of_its_own() -> None:
    assert str(TokenInvalid("it has expired")) == "it has expired"
