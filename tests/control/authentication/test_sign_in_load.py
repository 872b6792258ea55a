"""Bounds on what anybody takes of the control plane: places while a client or a provider is waited for, attempts by network address."""

import asyncio
import ipaddress
import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest

from tests.control.browsing import PASSWORD, Browser, join
from tests.control.harness import Running, answered, make_tenant
from tollway.control.api import places
from tollway.control.api.app import create_apps
from tollway.control.authentication import provider_flow, provider_sign_in, sign_in
from tollway.control.authentication.provider_flow import ProviderClient
from tollway.control.identity.provider_metadata import FAILED_SECONDS, KEPT_SECONDS, MetadataCache, ProviderMetadata
from tollway.control.plane import ControlPlane
from tollway.domain.faults import PROVIDER_UNAVAILABLE, Fault
from tollway.storage.sign_in_connections import SignInConnection

ISSUER = "https://login.example.com"
METADATA = ProviderMetadata(ISSUER, f"{ISSUER}/authorize", f"{ISSUER}/token", f"{ISSUER}/keys")


def connect(plane: ControlPlane, peer: str = "127.0.0.1") -> httpx2.AsyncClient:
    """Return a client of the REST API of `plane`, in the event loop of the test."""
    transport = httpx2.ASGITransport(app=create_apps(plane)[0], client=(peer, 50_000))
    return httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1:8081")


def make_connection(control: Running, name: str) -> str:
    admin = control.client(make_tenant(control, name).admin_key)
    body = {"name": "x", "issuer": ISSUER, "client_id": "x"}
    made: str = answered(admin.post("/v1/organization/sign_in_connections", json=body))["id"]
    return made


class TestPlaces:
    @pytest.mark.parametrize("path", ["/v1/oauth/token", "/v1/oauth/device_authorization", "/v1/oauth/revoke"])
    async def test_slow_body_at_the_token_endpoint_holds_no_place(
        self, control: Running, monkeypatch: pytest.MonkeyPatch, path: str
    ) -> None:
        monkeypatch.setattr(places, "REQUESTS_MAX", 1)
        is_waiting, may_end = asyncio.Event(), asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            is_waiting.set()
            await may_end.wait()
            yield b"client_id=other"

        async with connect(control.plane) as client:
            headers = {"content-type": "application/x-www-form-urlencoded"}
            sending = asyncio.create_task(client.post(path, content=slow(), headers=headers))
            await is_waiting.wait()
            assert (await client.get("/sign-in")).status_code == 200
            may_end.set()
            assert (await sending).status_code < 500

    async def test_slow_identity_provider_holds_no_place(self, control: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        connection_id = make_connection(control, "slow")
        monkeypatch.setattr(places, "REQUESTS_MAX", 1)
        is_waiting, may_end = asyncio.Event(), asyncio.Event()

        async def fetch(_plane: ControlPlane, _connection: SignInConnection) -> ProviderMetadata:
            is_waiting.set()
            await may_end.wait()
            return METADATA

        monkeypatch.setattr(provider_flow, "_fetch_metadata", fetch)
        async with connect(replace(control.plane, provider_metadata=MetadataCache())) as client:
            beginning = asyncio.create_task(client.get(f"/sign-in/{connection_id}"))
            await is_waiting.wait()
            assert (await client.get("/sign-in")).status_code == 200
            may_end.set()
            assert (await beginning).status_code == 303


class TestMetadata:
    async def test_are_fetched_once_for_all_that_ask_meanwhile_and_anew_after_a_while(self) -> None:
        now, fetched = [0.0], []
        cache = MetadataCache(lambda: now[0])

        async def fetch() -> ProviderMetadata:
            fetched.append(now[0])
            await asyncio.sleep(0)
            return METADATA

        assert await asyncio.gather(*(cache.find("signin_a", fetch) for _ in range(20))) == [METADATA] * 20
        now[0] = KEPT_SECONDS
        await cache.find("signin_a", fetch)
        await cache.find("signin_b", fetch)
        assert fetched == [0.0, KEPT_SECONDS, KEPT_SECONDS]

    async def test_with_addresses_that_no_header_can_hold_are_refused(self, control: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        for of_whom, private in (
            ("https://login.example.com", frozenset[str]()),
            ("http://127.0.0.1:1", frozenset(["http://127.0.0.1:1"])),
        ):
            plane = replace(control.plane, private_issuers=private)
            client = ProviderClient("signin_a", None, of_whom, "x", False, lambda: None)
            for name in ("authorization_endpoint", "end_session_endpoint"):
                for wrong in (f"{of_whom}/a\r\nX-Evil: 1", f"{of_whom}/\u0416", f"{of_whom}/a b", "http://[bad", "http://"):
                    named = {each: f"{of_whom}/{each}" for each in ("authorization_endpoint", "token_endpoint", "jwks_uri")}
                    document = {"issuer": of_whom, **named, name: wrong}

                    async def read(*_arguments: object, document: dict[str, str] = document) -> dict[str, str]:
                        return document

                    monkeypatch.setattr(provider_flow, "_read", read)
                    with pytest.raises(Fault, match="identity_provider_unavailable"):
                        await provider_flow._fetch_metadata(plane, client)

    async def test_of_a_provider_that_is_away_are_not_asked_for_again_at_once(self) -> None:
        now, fetched = [0.0], []
        cache = MetadataCache(lambda: now[0])

        async def fetch() -> ProviderMetadata:
            fetched.append(now[0])
            if now[0] < FAILED_SECONDS:
                raise Fault(PROVIDER_UNAVAILABLE, detail="away")
            return METADATA

        for _ in range(3):
            with pytest.raises(Fault, match="identity_provider_unavailable") as failure:
                await cache.find("signin_a", fetch)
            assert failure.value.detail == "away"
        now[0] = FAILED_SECONDS
        assert await cache.find("signin_a", fetch) == METADATA
        assert fetched == [0.0, FAILED_SECONDS]

    @pytest.mark.parametrize(("supported", "is_asked"), [((), False), (("openid", "email"), False), (("openid", "groups"), True)])
    async def test_say_whether_the_scope_groups_is_asked_for(self, control: Running, supported: tuple[str, ...], is_asked: bool) -> None:
        plane = replace(control.plane, provider_metadata=MetadataCache())

        async def fetch() -> ProviderMetadata:
            return ProviderMetadata(ISSUER, f"{ISSUER}/authorize", f"{ISSUER}/token", f"{ISSUER}/keys", scopes_supported=supported)

        connection = SignInConnection(
            id="signin_a",
            organization_id="org_a",
            name="x",
            issuer=ISSUER,
            client_id="x",
            client_secret=None,
            trusts_addresses=False,
            domains=(),
            role_id=None,
            groups_claim="groups",
            groups={"eng": "group_a"},
            is_enabled=True,
            created_at=0,
        )
        await plane.provider_metadata.find(connection.id, fetch)
        client = provider_sign_in.make_client(plane, connection)
        begun = await provider_flow.begin(plane, client, "http://127.0.0.1/callback", "/account")
        (scope,) = parse_qs(urlsplit(begun.url).query)["scope"]
        assert scope.split() == ["openid", "email", "profile", *(["groups"] if is_asked else [])]


class TestAddresses:
    @pytest.mark.parametrize(
        ("peer", "forwarded", "seen"),
        [
            ("10.0.0.1", "198.51.100.9, 203.0.113.7, 10.0.0.2", "203.0.113.7"),
            ("10.0.0.1", None, "10.0.0.1"),
            ("192.0.2.1", "203.0.113.7", "192.0.2.1"),
        ],
    )
    async def test_are_what_trusted_proxies_say(self, control: Running, peer: str, forwarded: str | None, seen: str) -> None:
        plane = replace(control.plane, trusted_proxies=(ipaddress.ip_network("10.0.0.0/8"),))
        before = len(control.lines)
        headers = {"origin": "http://127.0.0.1:8081"} | ({} if forwarded is None else {"x-forwarded-for": forwarded})
        async with connect(plane, peer) as client:
            form = {"email": f"{secrets.token_hex(8)}@example.com", "password": "x"}
            assert (await client.post("/sign-in", data=form, headers=headers)).status_code == 401
        assert [line["address"] for line in control.lines[before:] if line["event"] == "sign_in_refused"] == [seen]

    def test_whoever_signs_in_uses_up_no_attempts_of_their_network(self, control: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        email = f"{secrets.token_hex(8)}@example.com"
        admin = control.client(make_tenant(control, "office").admin_key)
        join(control, admin, email)
        monkeypatch.setattr(sign_in, "ADDRESS_ATTEMPTS_MAX", 1)
        with control.clock.set_to(control.plane.now() + 20 * sign_in.WINDOW_US):
            for _ in range(3):
                Browser(control).sign_in(email)
            Browser(control).sign_in(email, "wrong password", status=401)
            Browser(control).sign_in(email, status=429)

    def test_logins_of_the_command_line_and_links_lock_nobody_out(self, control: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        email = f"{secrets.token_hex(8)}@example.com"
        admin = control.client(make_tenant(control, "device").admin_key)
        join(control, admin, email)
        user_id = answered(admin.get("/v1/organization/users", params={"emails": [email]}))["data"][0]["id"]
        monkeypatch.setattr(sign_in, "ADDRESS_ATTEMPTS_MAX", 1)
        with control.clock.set_to(control.plane.now() + 40 * sign_in.WINDOW_US):
            for status in (200, 429):
                begun = control.client(None).post("/v1/oauth/device_authorization", data={"client_id": "tollway-cli"})
                assert begun.status_code == status
            Browser(control).sign_in(email)
            Browser(control).sign_in(email, "wrong password", status=401)
            browser = Browser(control)
            browser.open(answered(admin.post(f"/v1/organization/users/{user_id}/sign_in_links"))["url"])
            browser.send("/link")
            browser.open("/account")
            browser.send("/account/password", password=f"{PASSWORD} again")
