"""The token endpoint: who gets a token, for which key it stands, and how the keys that sign are replaced."""

import base64
from collections.abc import Callable
from typing import Any

import httpx2
import msgspec
import pytest

from tests.control.harness import Running, TenantSetup, answered
from tollway.control.authentication import token_exchange
from tollway.control.secrets.signing_keys import KEPT_US, ROTATION_US, SIGNS_AFTER_US
from tollway.domain.snapshot import SigningKeyEntry
from tollway.domain.tokens import AUDIENCE, LIFETIME_SECONDS, check_claims
from tollway.wire.json_web_tokens import load_key, read_token, verify

TOKEN = "/v1/oauth/token"


def make_account(control: Running, tenant: TenantSetup, **wanted: Any) -> dict[str, Any]:
    """Create a service account of the tenant with a key; `wanted`: members of the body."""
    path = f"/v1/organization/projects/{tenant.project_id}/service_accounts"
    made: dict[str, Any] = answered(control.client(tenant.admin_key).post(path, json={"name": "robot"} | wanted))
    return made


def ask(control: Running, **form: str) -> httpx2.Response:
    return control.client(None).post(TOKEN, data={"grant_type": "client_credentials"} | form)


def list_signing_keys(control: Running) -> dict[str, SigningKeyEntry]:
    """Return the signing keys as gateways receive them."""
    lines = control.node().get("/v1/link/snapshot").content.splitlines()
    entries = [msgspec.json.decode(line) for line in lines[1:]]
    return {each["id"]: msgspec.convert(each, SigningKeyEntry) for each in entries if each["kind"] == "signing_key"}


def open_token(control: Running, token: str) -> dict[str, Any]:
    """Return the claims of a token, verified as a gateway does."""
    read = read_token(token.encode())
    assert read.key_id is not None
    verify(read, {read.key_id: load_key(list_signing_keys(control)[read.key_id].key)})
    check_claims(read.claims, "tollway", AUDIENCE, control.plane.now(), LIFETIME_SECONDS)
    return read.claims


def by_form(control: Running, client: str, secret: str) -> httpx2.Response:
    return ask(control, client_id=client, client_secret=secret)


def by_header(control: Running, client: str, secret: str) -> httpx2.Response:
    basic = base64.b64encode(f"{client}:{secret}".encode()).decode()
    return control.client(None, authorization=f"Basic {basic}").post(TOKEN, data={"grant_type": "client_credentials"})


def by_json(control: Running, client: str, secret: str) -> httpx2.Response:
    return control.client(None).post(TOKEN, json={"grant_type": "client_credentials", "client_id": client, "client_secret": secret})


@pytest.mark.parametrize("present", [by_form, by_header, by_json])
def test_service_account_gets_a_token_that_stands_for_its_key(
    control: Running, alice: TenantSetup, present: Callable[[Running, str, str], httpx2.Response]
) -> None:
    account = make_account(control, alice)
    answer = present(control, account["id"], account["api_key"]["value"])
    token = answered(answer)
    assert (token["token_type"], token["expires_in"]) == ("Bearer", LIFETIME_SECONDS)
    assert answer.headers["cache-control"] == "no-store"
    claims = open_token(control, token["access_token"])
    assert (claims["sub"], claims["key_id"]) == (account["id"], account["api_key"]["id"])
    assert read_token(token["access_token"].encode()).type == "at+jwt"
    (line,) = (line for line in control.lines if line.get("token_id") == claims["jti"])
    assert (line["event"], line["key_id"], line["organization_id"]) == ("token_issued", account["api_key"]["id"], alice.organization_id)


def test_token_ends_with_its_key(control: Running, alice: TenantSetup) -> None:
    account = make_account(control, alice, expires_in_seconds=100)
    assert 0 < answered(by_form(control, account["id"], account["api_key"]["value"]))["expires_in"] <= 100


def test_49_client_that_is_not_the_owner_of_a_live_key_gets_no_token(control: Running, alice: TenantSetup, bob: TenantSetup) -> None:
    account, other = make_account(control, alice), make_account(control, bob)
    secret = account["api_key"]["value"]
    key_path = f"/v1/organization/projects/{alice.project_id}/api_keys/{account['api_key']['id']}"
    tried = [
        (other["id"], secret),
        (alice.project_id, secret),
        (account["id"], other["api_key"]["value"]),
        (account["id"], alice.admin_key),
        (account["id"], control.node_key),
        (account["id"], secret[:-1] + ("0" if secret[-1] != "0" else "1")),
        (account["id"], "' OR 1=1 --"),
        (account["id"], "ключ"),
        ("", secret),
    ]
    refused = [by_form(control, *each) for each in tried]
    answered(control.client(alice.admin_key).delete(key_path))
    refused.append(by_form(control, account["id"], secret))
    for answer in refused:
        assert answer.status_code == 401 and answer.json()["error"] == "invalid_client"
    assert len({answer.content for answer in refused}) == 1, "an unknown client, a foreign and a revoked key are answered alike"
    assert not any(secret in str(line) for line in control.lines)


def test_request_that_is_no_request_for_a_token_is_refused_with_the_words_of_oauth(control: Running) -> None:
    client = control.client(None)
    assert client.post(TOKEN, data={"client_id": "x"}).json()["error"] == "invalid_request"
    assert client.post(TOKEN, data={"grant_type": "password"}).json()["error"] == "unsupported_grant_type"
    form = {"content-type": "application/x-www-form-urlencoded"}
    assert client.post(TOKEN, content=b"grant_type=client_credentials&grant_type=x", headers=form).json()["error"] == "invalid_request"
    assert client.post(TOKEN, content=b"grant_type=%ff", headers=form).json()["error"] == "invalid_request"
    assert client.post(TOKEN, content=b"&".join(b"a%d=1" % number for number in range(99)), headers=form).status_code == 400
    assert client.post(TOKEN, content=b"x" * 40_000, headers=form).status_code == 413
    assert client.post(TOKEN, content=b"{}", headers={"content-type": "text/plain"}).status_code == 415
    assert client.post(TOKEN, content=b'{"a":1,"a":2}', headers={"content-type": "application/json"}).status_code == 400
    both = control.client(None, authorization="Basic eDp5").post(TOKEN, data={"grant_type": "client_credentials", "client_secret": "y"})
    assert both.json()["error"] == "invalid_request"


def test_published_keys_are_those_that_gateways_know(control: Running, alice: TenantSetup) -> None:
    account = make_account(control, alice)
    answered(by_form(control, account["id"], account["api_key"]["value"]))
    published = answered(control.client(None).get("/.well-known/jwks.json"))["keys"]
    assert {key["kid"]: key["x"] for key in published} == {id: entry.key.x for id, entry in list_signing_keys(control).items()}
    assert all("d" not in key for key in published), "a private key has a member d"
    assert control.client(None).get("/.well-known/oauth-authorization-server").status_code == 404


def test_signing_keys_are_replaced_without_a_token_that_cannot_be_verified(fresh_control: Running) -> None:
    control = fresh_control
    plane, clock = control.plane, control.clock

    def signer() -> str:
        return token_exchange._get_signer(plane).key_id

    began = plane.now()
    with clock.set_to(began):
        first = signer()
        assert token_exchange.maintain_signing_keys(plane) is None, "nothing is due"
        clock.stop_at(began + ROTATION_US)
        token_exchange.maintain_signing_keys(plane)
        second = (set(list_signing_keys(control)) - {first}).pop()
        assert signer() == first, "the new key is published and does not sign yet"
        clock.stop_at(began + ROTATION_US + SIGNS_AFTER_US)
        assert signer() == second
        token_exchange.maintain_signing_keys(plane)
        assert set(list_signing_keys(control)) == {first, second}, "tokens of the first key may still be valid"
        clock.stop_at(began + ROTATION_US + SIGNS_AFTER_US + KEPT_US)
        token_exchange.maintain_signing_keys(plane)
        assert set(list_signing_keys(control)) == {second}
