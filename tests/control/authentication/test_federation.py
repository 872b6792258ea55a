"""Identity providers and their rules: which assertions become tokens, by which SDK, and what a rule can never give."""

import asyncio
import socket
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx2
import msgspec
import pytest
from anthropic.lib.credentials import default_credentials
from openai.auth._workload import WorkloadIdentityAuth

from tests.control.authentication.test_tokens import open_token
from tests.control.harness import Running, TenantSetup, answered
from tests.control.test_routes import refused
from tests.link.samples import ORGANIZATION
from tests.patience import PATIENCE_SECONDS
from tests.tokens import Signer, make_ed25519, make_p256
from tollway.control import host_names
from tollway.control.authentication import federation
from tollway.control.identity import issuer_keys
from tollway.control.identity.issuer_keys import KeysUnavailable
from tollway.domain.federation import KEY_BYTES_MAX, KEYS_MAX, RULES_MAX
from tollway.domain.snapshot import Change, IssuerEntry
from tollway.domain.tokens import LIFETIME_SECONDS, MATCHERS_BYTES_MAX, FederationRule, find_matcher_error
from tollway.link.snapshot_follower import LINE_BYTES_MAX
from tollway.link.token_requests import TokenRequests

PROVIDERS = "/v1/organization/workload_identity_providers"
ISSUER = "https://issuer.example"
AUDIENCE = "https://gateway.example"
EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"

signer = make_p256("k1")


def key_set(*signers: Signer) -> dict[str, Any]:
    return {"keys": [msgspec.to_builtins(each.jwk) for each in signers]}


@dataclass(frozen=True)
class Federation:
    """A tenant with an identity provider whose keys were uploaded, and a rule."""

    control: Running
    tenant: TenantSetup
    provider: Mapping[str, Any]
    rule: Mapping[str, Any]

    @property
    def admin(self) -> httpx2.Client:
        return self.control.client(self.tenant.admin_key)

    @property
    def rules(self) -> str:
        return f"{PROVIDERS}/{self.provider['id']}/federation_rules"

    def claims(self, **changes: Any) -> dict[str, Any]:
        now = self.control.plane.now() // 1_000_000
        claims = {"iss": self.provider["issuer"], "aud": AUDIENCE, "sub": "repo:acme/shop", "iat": now, "exp": now + 600}
        return {name: value for name, value in (claims | changes).items() if value is not None}

    def exchange(self, assertion: str, **changes: str) -> httpx2.Response:
        body = {
            "grant_type": EXCHANGE,
            "subject_token": assertion,
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
            "identity_provider_id": self.provider["id"],
            "service_account_id": self.tenant.service_account_id,
        }
        return self.control.client(None).post("/v1/oauth/token", json=body | changes)

    def bear(self, assertion: str, **changes: str) -> httpx2.Response:
        body = {
            "grant_type": BEARER,
            "assertion": assertion,
            "federation_rule_id": self.rule["id"],
            "organization_id": self.tenant.organization_id,
        }
        return self.control.client(None).post("/v1/oauth/token", json=body | changes)


def make_federation(control: Running, tenant: TenantSetup, issuer: str = ISSUER, **wanted: Any) -> Federation:
    admin = control.client(tenant.admin_key)
    body = {
        "type": "oidc", "name": "CI", "issuer": issuer, "audience": AUDIENCE,
        "verification": {"type": "uploaded_jwks", "jwks": key_set(signer)},
    }  # fmt: skip
    provider = answered(admin.post(PROVIDERS, json=body | wanted))
    rule_body = {
        "project_id": tenant.project_id,
        "service_account_id": tenant.service_account_id,
        "attribute_matchers": {"sub": "repo:acme/*"},
    }
    rule = answered(admin.post(f"{PROVIDERS}/{provider['id']}/federation_rules", json=rule_body))
    return Federation(control, tenant, provider, rule)


@pytest.fixture(scope="module")
def ci(control: Running, alice: TenantSetup) -> Federation:
    return make_federation(control, alice)


def test_anthropics_sdk_gets_a_token_from_environment_variables_alone(
    ci: Federation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "token").write_text(signer.token(ci.claims()))
    monkeypatch.setenv("ANTHROPIC_FEDERATION_RULE_ID", ci.rule["id"])
    monkeypatch.setenv("ANTHROPIC_ORGANIZATION_ID", ci.tenant.organization_id)
    monkeypatch.setenv("ANTHROPIC_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    found = default_credentials(base_url=ci.control.url)
    assert found is not None
    provider: Any = found.provider
    with provider:
        claims = open_token(ci.control, provider(force_refresh=True).token)
    assert (claims["key_id"], claims["sub"]) == (ci.rule["api_key_id"], ci.tenant.service_account_id)
    assert claims["exp"] <= ci.claims()["exp"], "a token never outlives its assertion"


def test_openais_sdk_exchanges_an_assertion(ci: Federation) -> None:
    auth = WorkloadIdentityAuth(
        workload_identity={
            "identity_provider_id": ci.provider["id"],
            "service_account_id": ci.tenant.service_account_id,
            "provider": {"token_type": "jwt", "get_token": lambda: signer.token(ci.claims())},
        },
        token_exchange_url=f"{ci.control.url}/v1/oauth/token",
    )
    claims = open_token(ci.control, auth.get_token())
    assert claims["key_id"] == ci.rule["api_key_id"]
    answer = answered(ci.exchange(signer.token(ci.claims())))
    assert answer["issued_token_type"] == "urn:ietf:params:oauth:token-type:access_token"


async def test_request_that_reaches_a_gateway_is_answered_by_control(ci: Federation) -> None:
    requests = TokenRequests(control_link_url=ci.control.link_url, node_key=ci.control.node_key)
    body = {"grant_type": BEARER, "federation_rule_id": ci.rule["id"], "organization_id": ci.tenant.organization_id}
    try:
        encoded = msgspec.json.encode(body | {"assertion": signer.token(ci.claims())})
        status, answer = await requests.ask(encoded, b"application/json", None)
        assert status == 200
        assert open_token(ci.control, msgspec.json.decode(answer)["access_token"])["key_id"] == ci.rule["api_key_id"]
        for refused_body, content_type, expected in (
            (b"{", b"application/json", (400, "invalid_request")),
            (b"{}", b"text/plain", (415, "invalid_request")),
            (b"\xff\x00", b"\xff", (415, "invalid_request")),
            (b"grant_type=client_credentials", b"application/x-www-form-urlencoded", (401, "invalid_client")),
        ):
            status, answer = await requests.ask(refused_body, content_type, None)
            assert (status, msgspec.json.decode(answer)["error"]) == expected
    finally:
        await requests.close()
    away = TokenRequests(control_link_url="http://127.0.0.1:9", node_key=ci.control.node_key)
    try:
        assert (await away.ask(b"{}", b"application/json", None))[0] == 503
    finally:
        await away.close()


def test_token_lives_as_long_as_its_assertion_at_most(ci: Federation) -> None:
    now = ci.claims()["iat"]
    assert 90 <= answered(ci.bear(signer.token(ci.claims(exp=now + 100))))["expires_in"] <= 100
    assert answered(ci.bear(signer.token(ci.claims(exp=now + 7200))))["expires_in"] == LIFETIME_SECONDS


def test_49_assertion_is_refused_alike_until_it_is_verified(ci: Federation, bob: TenantSetup) -> None:
    other = make_federation(ci.control, bob)
    good = signer.token(ci.claims())
    refusals = [
        ci.exchange(good, identity_provider_id=other.provider["id"]),
        ci.exchange(good, identity_provider_id=f"idp_{0:032x}"),
        ci.exchange(good, identity_provider_id="' OR 1=1"),
        ci.exchange(good, identity_provider_id="idp_\0"),
        ci.exchange(good, service_account_id=bob.service_account_id),
        ci.exchange(make_p256("k1").token(ci.claims())),
        ci.exchange("not.a.token"),
        ci.exchange(make_ed25519("k2").token(ci.claims())),
        ci.bear(good, organization_id=bob.organization_id),
        ci.bear(good, federation_rule_id=other.rule["id"]),
        ci.bear(good, federation_rule_id=f"fedrule_{0:032x}"),
        ci.bear(good, workspace_id=bob.project_id),
        ci.bear("ключ"),
    ]
    assert {answer.status_code for answer in refusals} == {400}
    assert {answer.content for answer in refusals} == {refusals[0].content}
    assert refusals[0].json()["error"] == "invalid_grant"
    for part in good.split("."):
        assert not any(part in str(line) for line in ci.control.lines)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"exp": 1}, "expired"),
        ({"exp": None}, "exp is missing"),
        ({"iat": None}, "iat is missing"),
        ({"aud": "https://elsewhere.example"}, "audience"),
        ({"iss": "https://issuer.example/"}, "issuer"),
        ({"sub": "repo:evil/shop"}, "no rule matches"),
        ({"sub": None}, "subject"),
    ],
)
def test_49_verified_assertion_with_other_claims_is_refused_with_the_reason(ci: Federation, changes: dict[str, Any], reason: str) -> None:
    answer = ci.bear(signer.token(ci.claims(**changes)))
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_grant")
    assert reason in answer.json()["error_description"]


def test_49_assertion_with_an_id_is_exchanged_once(ci: Federation, alice: TenantSetup) -> None:
    assertion = signer.token(ci.claims(jti="once"))
    answered(ci.exchange(assertion))
    for again in (ci.exchange(assertion), ci.bear(assertion)):
        assert again.status_code == 400 and "used before" in again.json()["error_description"]
    reusable = make_federation(ci.control, alice, "https://reusable.example", is_single_use=False)
    assertion = signer.token(reusable.claims(jti="once"))
    answered(reusable.exchange(assertion))
    answered(reusable.exchange(assertion))


def test_rule_gives_no_more_than_its_endpoints_and_ends_with_its_key(control: Running, alice: TenantSetup) -> None:
    ci = make_federation(control, alice, "https://bounded.example")
    restricted = {"permissions": {"type": "restricted", "scopes": ["embeddings"]}}
    assert answered(ci.admin.post(f"{ci.rules}/{ci.rule['id']}", json=restricted))["permissions"]["scopes"] == ["embeddings"]
    key = answered(ci.admin.get(f"/v1/organization/projects/{alice.project_id}/api_keys/{ci.rule['api_key_id']}"))
    assert key["endpoints"] == ["embeddings"]
    unknown = {"permissions": {"type": "restricted", "scopes": ["all"]}}
    refused(ci.admin.post(f"{ci.rules}/{ci.rule['id']}", json=unknown), 400, "invalid_value", "permissions.scopes")
    answered(ci.bear(signer.token(ci.claims())))
    refused(ci.admin.delete(f"{PROVIDERS}/{ci.provider['id']}"), 409, "conflict")
    answered(ci.admin.post(f"{ci.rules}/{ci.rule['id']}", json={"enabled": False}))
    assert ci.bear(signer.token(ci.claims())).status_code == 400
    answered(ci.admin.delete(f"{ci.rules}/{ci.rule['id']}"))
    refused(ci.admin.get(f"/v1/organization/projects/{alice.project_id}/api_keys/{ci.rule['api_key_id']}"), 404, "not_found")
    answered(ci.admin.delete(f"{PROVIDERS}/{ci.provider['id']}"))


def test_rule_of_another_tenant_is_one_that_does_not_exist(ci: Federation, bob: TenantSetup) -> None:
    other = ci.control.client(bob.admin_key)
    for path in (f"{PROVIDERS}/{ci.provider['id']}", ci.rules, f"{ci.rules}/{ci.rule['id']}"):
        refused(other.get(path), 404, "not_found")
        if path != ci.rules:
            refused(other.post(path, json={}), 404, "not_found")
            refused(other.delete(path), 404, "not_found")
    body = {"project_id": ci.tenant.project_id, "service_account_id": ci.tenant.service_account_id, "attribute_matchers": {"sub": "x"}}
    own = make_federation(ci.control, bob, "https://bob.example")
    refused(other.post(own.rules, json=body), 404, "not_found")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"attribute_matchers": {}}, "attribute_matchers"),
        ({"attribute_matchers": {"sub": "*"}}, "attribute_matchers"),
        ({"attribute_matchers": {"a b": "x"}}, "attribute_matchers"),
        ({"attribute_matchers": {f"claim_{each}": "\u20ac" * 512 for each in range(4)}}, "attribute_matchers"),
        ({"attribute_matchers": {"n": 10**4200}}, "attribute_matchers"),
    ],
)
def test_rule_that_would_match_too_much_or_is_too_long_is_refused(ci: Federation, body: dict[str, Any], param: str) -> None:
    whole = {"project_id": ci.tenant.project_id, "service_account_id": ci.tenant.service_account_id} | body
    refused(ci.admin.post(ci.rules, json=whole), 400, "invalid_value", param)


ADDRESSES = {
    "99-http": "http://issuer.example",
    "99-loopback": "https://127.0.0.1",
    "99-loopback-name": "https://localhost",
    "99-private": "https://10.0.0.1:8443",
    "99-metadata": "https://169.254.169.254/latest",
    "99-mapped": "https://[::ffff:127.0.0.1]",
    "99-unique-local": "https://[fd00::1]",
    "99-cluster": "https://kubernetes.default.svc.internal",
    "99-user": "https://issuer.example@10.0.0.1",
    "99-file": "file:///etc/passwd",
}


@pytest.mark.parametrize("row", ADDRESSES)
def test_issuer_that_must_not_be_fetched_is_refused(row: str, ci: Federation) -> None:
    body = {"type": "oidc", "name": "x", "issuer": ADDRESSES[row], "audience": AUDIENCE}
    refused(ci.admin.post(PROVIDERS, json=body), 400, "invalid_value", "issuer")
    body |= {"issuer": "https://elsewhere.example", "verification": {"type": "discovery", "discovery_url": ADDRESSES[row]}}
    refused(ci.admin.post(PROVIDERS, json=body), 400, "invalid_value", "verification.discovery_url")


def test_key_sets_that_hold_secrets_or_nothing_are_refused(ci: Federation) -> None:
    private = key_set(signer)
    private["keys"][0]["d"] = "secret"
    for keys in ({"keys": []}, {}, private, {"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}, {"keys": key_set(signer)["keys"] * 2}):
        body = {"type": "oidc", "name": "x", "issuer": "https://x.example", "audience": AUDIENCE}
        body |= {"verification": {"type": "uploaded_jwks", "jwks": keys}}
        refused(ci.admin.post(PROVIDERS, json=body), 400, "invalid_value", "verification.jwks")


def test_largest_identity_provider_is_a_line_that_gateways_read() -> None:
    long = msgspec.structs.replace(signer.jwk, kid="k" * (KEY_BYTES_MAX - 200))
    matchers: dict[str, Any] = {"sub": "x" * (MATCHERS_BYTES_MAX - len('{"sub":""}'))}
    assert find_matcher_error(matchers) is None
    assert find_matcher_error({"sub": matchers["sub"] + "x"}) is not None
    assert issuer_keys.read_keys({"keys": [msgspec.to_builtins(long)]}) == (long,)
    longer = msgspec.structs.replace(signer.jwk, kid="k" * KEY_BYTES_MAX)
    assert issuer_keys.read_keys({"keys": [msgspec.to_builtins(each) for each in (longer, signer.jwk)]}) == (signer.jwk,)
    entry = IssuerEntry(
        id="i" * 64, organization_id="o" * 64, issuer='"' * 2048, audience='"' * 2048,
        keys=(long,) * KEYS_MAX, rules=(FederationRule("k" * 64, matchers),) * RULES_MAX,
    )  # fmt: skip
    assert len(msgspec.json.encode(Change(version=1, kind="issuer", id=entry.id, entry=entry))) < LINE_BYTES_MAX


def test_gateways_learn_of_providers_that_are_direct_and_of_no_others(control: Running, alice: TenantSetup) -> None:
    ci = make_federation(control, alice, "https://direct.example")
    refused(ci.admin.post(f"{PROVIDERS}/{ci.provider['id']}", json={"is_direct": True}), 400, "invalid_value", "audience")
    answered(ci.admin.post(f"{PROVIDERS}/{ci.provider['id']}", json={"is_direct": True, "audience": f"x/{alice.organization_id}"}))

    def known() -> list[IssuerEntry]:
        lines = [msgspec.json.decode(line) for line in control.node().get("/v1/link/snapshot").content.splitlines()[1:]]
        return [msgspec.convert(each, IssuerEntry) for each in lines if each["kind"] == "issuer"]

    (entry,) = known()
    assert (entry.id, entry.issuer, [rule.key_id for rule in entry.rules]) == (
        ci.provider["id"], "https://direct.example", [ci.rule["api_key_id"]],
    )  # fmt: skip
    answered(ci.admin.post(f"{PROVIDERS}/{ci.provider['id']}", json={"enabled": False}))
    assert known() == []


# ---- Keys that are fetched --------------------------------------------------------------------------------------------


@contextmanager
def issuing(documents: Mapping[str, bytes]) -> Iterator[str]:
    """Serve documents by path on loopback for the length of the block. Yields the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = documents.get(self.path)
            self.send_response(404 if body is None else 302 if body == b"redirect" else 200)
            self.send_header("location", "/elsewhere")
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def fetch(issuer: str) -> tuple[str, ...]:
    async def run() -> tuple[str, ...]:
        return tuple(key.kid for key in await issuer_keys.fetch(issuer, None, ORGANIZATION))

    return asyncio.run(run())


def test_99_name_is_resolved_once_and_connected_to_only_if_each_address_is_public(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [["93.184.216.34", "127.0.0.1"]]
    monkeypatch.setattr(host_names, "_resolve", lambda _host, _port: answers.pop())
    with pytest.raises(KeysUnavailable, match="its address is not public"):
        fetch("https://rebound.example")
    assert not answers


async def test_181_names_of_issuers_that_do_not_resolve_hold_up_neither_others_nor_other_work(monkeypatch: pytest.MonkeyPatch) -> None:
    released, stuck = threading.Event(), threading.Semaphore(0)

    def resolve(host: str, *_: object, **__: object) -> list[tuple[Any, ...]]:
        if host == "stuck.example":
            stuck.release()
            released.wait(PATIENCE_SECONDS)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 443))]

    async def ask(host: str, organization_id: str) -> str:
        with pytest.raises(KeysUnavailable) as unavailable:
            await issuer_keys.fetch(f"https://{host}", None, organization_id)
        return str(unavailable.value)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    default = ThreadPoolExecutor(max_workers=1)  # as busy as a process with few cores may be
    asyncio.get_running_loop().set_default_executor(default)
    asking = [asyncio.ensure_future(ask("stuck.example", ORGANIZATION)) for _ in range(20)]
    try:
        async with asyncio.timeout(PATIENCE_SECONDS / 2):
            for _ in range(host_names.OWNER_NAMES_MAX):
                while not stuck.acquire(blocking=False):
                    await asyncio.sleep(0.001)
            assert await asyncio.to_thread(lambda: True)
            assert await ask("issuer.example", "org_of_others") == "its address is not public"
        assert await ask("issuer.example", ORGANIZATION) == "other names of the organization are being resolved"
    finally:
        released.set()
        await asyncio.gather(*asking)


def test_99_open_and_closed_ports_of_a_private_network_are_refused_alike() -> None:
    with issuing({}) as address:
        for url in (address, "http://127.0.0.1:9", "http://localhost:9"):
            with pytest.raises(KeysUnavailable, match="its address is not public"):
                fetch(url)


@pytest.mark.parametrize("is_private_allowed", [False, True])
@pytest.mark.parametrize("host", ["a..example.com", f"{'a' * 64}.example.com", ".example.com"])
def test_host_that_cannot_be_a_name_cannot_be_reached(host: str, is_private_allowed: bool) -> None:
    async def read() -> None:
        await issuer_keys.read_object(f"https://{host}/", is_private_allowed=is_private_allowed)

    with pytest.raises(KeysUnavailable, match="cannot be reached"):
        asyncio.run(read())


def test_keys_are_read_from_the_metadata_of_the_issuer_and_of_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(issuer_keys, "is_public", lambda _address: True)
    monkeypatch.setattr(issuer_keys, "find_address_error", lambda _url: None)
    documents: dict[str, bytes] = {}
    with issuing(documents) as address:
        metadata = {"issuer": address, "jwks_uri": f"{address}/keys"}
        documents |= {issuer_keys.METADATA_PATH: msgspec.json.encode(metadata), "/keys": msgspec.json.encode(key_set(signer))}
        assert fetch(address) == ("k1",)
        for path, body, reason in (
            ("/keys", b"redirect", "answered 302"),
            ("/keys", b"[]", "not a JSON object"),
            ("/keys", b" " * (issuer_keys.DOCUMENT_BYTES_MAX + 1), "more than"),
            (issuer_keys.METADATA_PATH, msgspec.json.encode(metadata | {"issuer": "https://other.example"}), "another issuer"),
        ):
            good, documents[path] = documents[path], body
            with pytest.raises(KeysUnavailable, match=reason):
                fetch(address)
            documents[path] = good


async def test_keys_stay_in_force_while_their_issuer_is_away_for_a_day(
    control: Running, alice: TenantSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    ci = make_federation(control, alice, "https://away.example")
    database, now = control.plane.database, control.plane.now()
    newer = make_ed25519("k2")
    with database.tenant(alice.organization_id, write=False) as tx:
        uploaded = federation.get_provider(tx, ci.provider["id"])
    provider = replace(uploaded, is_uploaded=False, fetched_at=now)
    with database.tenant(alice.organization_id) as tx:
        federation.put_provider(tx, provider, now, is_new=False)

    def read() -> list[str]:
        with database.tenant(alice.organization_id, write=False) as tx:
            return [key.kid for key in federation.get_provider(tx, ci.provider["id"]).keys]

    async def answer(*_: object) -> Any:
        return (newer.jwk,)

    async def fail(*_: object) -> Any:
        raise KeysUnavailable("it cannot be reached")

    monkeypatch.setattr(issuer_keys, "fetch", fail)
    assert await federation.refresh_keys(database, database, [provider], lambda: now + federation.STALE_US) == [
        (ci.provider["id"], "it cannot be reached")
    ]
    assert read() == ["k1"]
    monkeypatch.setattr(issuer_keys, "fetch", answer)
    assert await federation.refresh_keys(database, database, [provider], lambda: now) == []
    assert read() == ["k2"]
    monkeypatch.setattr(issuer_keys, "fetch", fail)
    await federation.refresh_keys(database, database, [replace(provider, keys=(newer.jwk,))], lambda: now + federation.STALE_US + 1)
    assert read() == []


@pytest.mark.parametrize(
    "change", [{"is_uploaded": True}, {"issuer": "https://changed.example"}, {"discovery_url": "https://changed.example/m"}]
)
async def test_keys_of_an_issuer_that_was_replaced_meanwhile_are_not_stored(
    change: dict[str, Any], control: Running, alice: TenantSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    ci = make_federation(control, alice, f"https://replaced-{next(iter(change)).replace('_', '-')}.example")
    database, now = control.plane.database, control.plane.now()
    with database.tenant(alice.organization_id) as tx:
        asked = replace(federation.get_provider(tx, ci.provider["id"]), is_uploaded=False, fetched_at=now)
        federation.put_provider(tx, asked, now, is_new=False)

    async def change_meanwhile(*_: object) -> Any:
        with database.tenant(alice.organization_id) as tx:
            federation.put_provider(tx, replace(asked, **change), now, is_new=False)
        return (make_ed25519("k2").jwk,)

    monkeypatch.setattr(issuer_keys, "fetch", change_meanwhile)
    assert await federation.refresh_keys(database, database, [asked], lambda: now) == []
    with database.tenant(alice.organization_id, write=False) as tx:
        assert [key.kid for key in federation.get_provider(tx, ci.provider["id"]).keys] == ["k1"]


def test_change_while_keys_are_fetched_is_not_undone(control: Running, alice: TenantSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    ci = make_federation(control, alice, "https://disabled.example")
    path = f"{PROVIDERS}/{ci.provider['id']}"

    def disable_meanwhile(*_: object) -> Any:
        answered(ci.admin.post(path, json={"enabled": False}))
        return (signer.jwk,)

    monkeypatch.setattr(issuer_keys, "fetch_now", disable_meanwhile)
    refused(ci.admin.post(path, json={"name": "x", "verification": {"type": "discovery"}}), 409, "conflict")
    assert answered(ci.admin.get(path))["enabled"] is False


def test_bound_on_the_key_of_a_rule_outlives_a_change_of_the_rules_name(control: Running, alice: TenantSetup) -> None:
    ci = make_federation(control, alice, "https://bounded.example")
    path = f"/v1/organization/projects/{alice.project_id}/api_keys/{ci.rule['api_key_id']}"
    answered(ci.admin.post(path, json={"endpoints": ["embeddings"]}))
    answered(ci.admin.post(f"{ci.rules}/{ci.rule['id']}", json={"name": "x"}))
    assert answered(ci.admin.get(path))["endpoints"] == ["embeddings"]
