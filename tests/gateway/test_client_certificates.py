"""Programs that present a certificate instead of a secret: in the handshake, or handed on by a proxy."""

import base64
import datetime
import ssl
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.fakes import Upstream
from tests.gateway.authorities import DAY, Issued, issue, presenting
from tests.gateway.certificates import make
from tests.gateway.harness import (
    KEY,
    NOWHERE,
    ORGANIZATION,
    PEPPER,
    Memory,
    Served,
    chat,
    completion,
    connect,
    gateway,
    message,
    plane,
    split_answers,
    whole,
)
from tollway.domain import keys
from tollway.domain.catalog import Endpoint
from tollway.domain.certificates import CertificateMapping
from tollway.domain.faults import Fault
from tollway.domain.snapshot import CertificateEntry, Change
from tollway.gateway.authenticate import authenticate
from tollway.gateway.directory import Directory
from tollway.gateway.edge.edge_policy import EdgePolicy, parse_networks
from tollway.gateway.principal import PrincipalKind
from tollway.gateway.request import RequestHead
from tollway.serve.tls import client_context, server_context
from tollway.wire.client_certificates import FORWARDED_CLIENT_CERT, find_forwarded

KEY_ID = f"key_{0:032x}"
URI = "spiffe://example.com/ci/deploy"
ORGANIZATION_HEADER = {"openai-organization": ORGANIZATION}
LONG = {"begins": -400 * DAY, "ends": 400 * DAY}
ours = issue("our authority", is_authority=True, begins=-500 * DAY, ends=500 * DAY)
program = issue("ci.example.com", ours, uri=URI, **LONG)


def trust(issued: Issued, *rules: dict[str, str], organization_id: str = ORGANIZATION, id: str = "cert_1") -> CertificateEntry:
    mappings = tuple(CertificateMapping(KEY_ID, matchers) for matchers in rules)
    return CertificateEntry(id=id, organization_id=organization_id, certificate=issued.der, rules=mappings)


def put(directory: Directory, entry: CertificateEntry | None, id: str = "cert_1") -> None:
    directory.apply(Change(version=directory.version + 1, kind="certificate", id=id, entry=entry))


@pytest.fixture
async def memory() -> AsyncIterator[Memory]:
    with plane({"m": Served([NOWHERE])}) as (made, _, log):
        put(made.directory, trust(ours, {"uri": "spiffe://example.com/ci/*"}))
        yield Memory(made)
        log.close()


NOW_US = int(datetime.datetime.now(datetime.UTC).timestamp()) * 1_000_000


def find(memory: Memory, issued: Issued, organization_id: str = ORGANIZATION, at: int = NOW_US) -> Any:
    head = RequestHead(Endpoint.CHAT_COMPLETIONS, {b"openai-organization": organization_id.encode()})
    head.certificate = issued.der
    return authenticate(head, memory.edge.plane.directory, memory.edge.plane.digesters, at)


def test_certificate_and_key_are_one_principal(memory: Memory) -> None:
    """As a token is: everything but the kind and the end is that of the key for which the rule stands."""
    by_key = memory.edge.plane.directory.find_caller(keys.digest(PEPPER, KEY.encode()), NOW_US)
    caller = find(memory, program)
    ends = int(program.certificate.not_valid_after_utc.timestamp() + 1) * 1_000_000
    assert by_key is not None
    assert caller.principal == msgspec.structs.replace(by_key.principal, kind=PrincipalKind.CERTIFICATE, expires_at=ends)
    assert (caller.cache_salt, caller.budgets) == (by_key.cache_salt, by_key.budgets)
    assert find(memory, program) is caller


REFUSED = {
    "117-signs-itself": issue("ci.example.com", uri=URI),
    "117-another-authority-of-the-same-name": issue("ci.example.com", issue("our authority", is_authority=True), uri=URI),
    "117-expired": issue("ci.example.com", ours, uri=URI, begins=-3 * DAY, ends=-DAY),
    "117-not-valid-yet": issue("ci.example.com", ours, uri=URI, begins=DAY, ends=2 * DAY),
    "117-of-a-server": issue("ci.example.com", ours, uri=URI, use=ExtendedKeyUsageOID.SERVER_AUTH),
    "117-no-rule": issue("ci.example.com", ours, uri="spiffe://example.com/cistern"),
    "117-issued-by-a-program": issue("ci.example.com", program, uri=URI),
    "117-no-certificate": None,
}


@pytest.mark.parametrize("row", REFUSED)
def test_certificate_that_is_refused(row: str, memory: Memory) -> None:
    head = RequestHead(Endpoint.CHAT_COMPLETIONS, {b"openai-organization": ORGANIZATION.encode()})
    issued = REFUSED[row]
    head.certificate = b"\x30\x03\x02\x01\x00" if issued is None else issued.der
    with pytest.raises(Fault) as refused:
        authenticate(head, memory.edge.plane.directory, memory.edge.plane.digesters, NOW_US)
    assert refused.value.kind.code == "invalid_client_certificate"


@pytest.mark.parametrize("change", ["deactivated", "key revoked", "another organization", "no organization", "later"])
def test_117_certificate_that_was_accepted_ends(change: str, memory: Memory) -> None:
    directory = memory.edge.plane.directory
    assert find(memory, program).principal.id == KEY_ID
    organization_id, at = ORGANIZATION, NOW_US
    if change == "deactivated":
        put(directory, None)
    elif change == "key revoked":
        directory.apply(Change(version=directory.version + 1, kind="key", id=KEY_ID, entry=None))
    elif change == "later":
        at += 401 * 86_400 * 1_000_000
    else:
        organization_id = "org_" + "9" * 32 if change == "another organization" else ""
    with pytest.raises(Fault) as refused:
        find(memory, program, organization_id, at)
    assert refused.value.kind.code == "invalid_client_certificate"


def test_117_authority_of_two_organizations_vouches_in_the_one_that_is_named(memory: Memory) -> None:
    """Certificates of authorities are public: whoever uploads somebody else's must not get their requests."""
    directory = memory.edge.plane.directory
    put(directory, trust(ours, {"uri": "spiffe://example.com/ci/*"}, organization_id="org_" + "9" * 32, id="cert_0"), "cert_0")
    assert find(memory, program).organization.id == ORGANIZATION


def test_certificate_of_one_program_is_trusted_by_itself(memory: Memory) -> None:
    alone = issue("alone.example.com")
    put(memory.edge.plane.directory, trust(alone, {}, id="cert_2"), "cert_2")
    assert find(memory, alone).principal.id == KEY_ID


def test_secret_counts_before_the_certificate(memory: Memory) -> None:
    head = RequestHead(Endpoint.CHAT_COMPLETIONS, {b"authorization": b"Bearer " + KEY.encode()})
    head.certificate = REFUSED["117-signs-itself"].der  # type: ignore[union-attr]
    caller = authenticate(head, memory.edge.plane.directory, memory.edge.plane.digesters, NOW_US)
    assert caller.principal.kind is PrincipalKind.API_KEY


async def test_handshake_asks_for_a_certificate_and_takes_none_that_nobody_trusts(tmp_path: Path) -> None:
    files = make(tmp_path, "gateway", days=3)
    asking = client_context(server_context(*files), lambda: server_context(*files), [ours.der])  # type: ignore[arg-type]
    upstream = Upstream([whole(completion())])
    rules = EdgePolicy(client_certificates=True)
    async with upstream.listening(), gateway({"m": Served([upstream.url])}, tls=asking, rules=rules) as running:
        put(running.plane.directory, trust(ours, {"dns": "CI.example.com"}))
        async with connect(running.port, presenting(files[0], program.write(tmp_path, "program"))) as client:
            client.send(message(chat(), key=None, **ORGANIZATION_HEADER))
            assert (await client.answer()).status == 200
            client.send(message(chat(), key=None))
            assert (await client.answer()).error["code"] == "invalid_client_certificate"
        async with connect(running.port, presenting(files[0], None)) as client:
            client.send(message(chat(), key=None, **ORGANIZATION_HEADER))
            assert (await client.answer()).error["code"] == "invalid_api_key"
        foreign = issue("ci.example.com", uri=URI).write(tmp_path, "foreign")
        rest = b""
        with suppress(ssl.SSLError, ConnectionError):
            async with connect(running.port, presenting(files[0], foreign)) as client:
                client.send(message(chat(), key=None, **ORGANIZATION_HEADER))
                rest = await client.rest()
        assert rest == b""


async def test_connection_without_proof_is_closed_by_its_401_so_that_the_next_handshake_asks_again(memory: Memory) -> None:
    """It may be older than the certificate that would be trusted now."""
    for key, is_closed in ((None, True), (KEY + "x", False)):
        connection = Memory(memory.edge.plane, rules=EdgePolicy(client_certificates=True)).connect()
        connection.feed(message(chat(), key=key))
        await memory.settle()
        (answer,) = split_answers(connection.written)
        assert answer.status == 401 and ("connection" in answer.headers) is is_closed


FORWARDED = {
    "client-cert": f":{base64.b64encode(program.der).decode()}:",
    "x-forwarded-client-cert": f'By=spiffe://x;Hash=00;Cert="{quote(program.pem)}";Subject="CN=x,O=y";URI={URI}',
}


@pytest.mark.parametrize("name", FORWARDED)
@pytest.mark.parametrize(("trusted", "code"), [("192.0.2.0/24", None), ("198.51.100.0/24", "invalid_api_key")])
async def test_118_header_counts_from_trusted_proxies_alone(name: str, trusted: str, code: str | None) -> None:
    rules = EdgePolicy(trusted=parse_networks([trusted]), certificate_header=name.encode())
    with plane({"m": Served([NOWHERE])}) as (made, _, log):
        memory = Memory(made, rules=rules)
        put(made.directory, trust(ours, {"fingerprint": program_fingerprint()}))
        connection = memory.connect("192.0.2.1")
        connection.feed(message(chat(), key=None, **ORGANIZATION_HEADER, **{name: FORWARDED[name]}))
        await memory.settle()
        (answer,) = split_answers(connection.written)
        assert answer.error["code"] == (code or "upstream_unreachable")
        log.close()


async def test_paths_beside_inference_take_certificates(memory: Memory) -> None:
    rules = EdgePolicy(trusted=parse_networks(["192.0.2.0/24"]), certificate_header=b"client-cert")
    connection = Memory(memory.edge.plane, rules=rules).connect("192.0.2.1")
    lines = f"host: gateway\r\nopenai-organization: {ORGANIZATION}\r\nclient-cert: {FORWARDED['client-cert']}\r\n"
    for path in ("/v1/models", "/v1/limits"):
        connection.feed(f"GET {path} HTTP/1.1\r\n{lines}\r\n".encode())
        await memory.settle()
        assert split_answers(connection.written)[-1].status == 200, path


@pytest.mark.parametrize("value", ["", "::", ":not base64:", f":{base64.b64encode(b'x').decode()}:", 'Cert="%2d"', "Cert=x"])
@pytest.mark.parametrize("name", FORWARDED)
async def test_118_header_that_is_malformed_proves_nobody(name: str, value: str) -> None:
    rules = EdgePolicy(trusted=parse_networks(["192.0.2.0/24"]), certificate_header=name.encode())
    with plane({"m": Served([NOWHERE])}) as (made, _, log):
        memory = Memory(made, rules=rules)
        connection = memory.connect("192.0.2.1")
        connection.feed(message(chat(), key=None, **ORGANIZATION_HEADER, **{name: value}))
        await memory.settle()
        (answer,) = split_answers(connection.written)
        assert answer.status == 401
        log.close()


_GENUINE = f'Hash=00;Cert="{quote(issue("x").pem)}"'
_STOLEN = quote(program.pem)


@pytest.mark.parametrize(
    "value",
    [
        f'{_GENUINE};Subject="CN=x\\;Cert=";URI={_STOLEN}";DNS=',
        f'{_GENUINE};Subject="CN=x";URI=x;Cert="{_STOLEN}"',
        f'{_GENUINE};Subject="CN=x";URI=x,Hash=11;Cert="{_STOLEN}"',
        f'{_GENUINE};Subject="CN=x\\;Cert=";URI={_STOLEN},Hash=11;Subject=""',
        f'Cert="{_STOLEN}";Subject=",{_GENUINE};Subject="CN=x"',
        f'Cert="{_STOLEN}",Hash=00;Subject="CN=x"',
        f'Hash=00;Subject="CN=x";URI=x;Cert="{_STOLEN}"',
    ],
)
def test_118_name_in_a_certificate_is_never_taken_for_the_certificate(value: str) -> None:
    """Envoy writes the names of a certificate, which whoever issued it chose, into the same header, and URIs as they are."""
    assert find_forwarded({FORWARDED_CLIENT_CERT: value.encode()}, FORWARDED_CLIENT_CERT) == b""


def program_fingerprint() -> str:
    return program.certificate.fingerprint(hashes.SHA256()).hex()
