"""Reports of leaked keys: signed ones of GitHub's secret scanning, and those of admins and operators."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.control.harness import Running, TenantSetup, answered, find_token, make_tenant, mint, running, wait_until
from tests.control.test_routes import refused
from tests.patience import PATIENCE_SECONDS
from tests.storage.databases import SqliteTemplate
from tollway.control.identity import github_reports, leaked_keys
from tollway.control.identity.github_reports import GithubReports
from tollway.control.identity.leaked_keys import Finding
from tollway.control.identity.mail import MailDirectory, MailFailure, Message, MessageRefused
from tollway.domain.faults import Fault
from tollway.domain.keys import KeyType
from tollway.domain.leaked_keys import LeakAction, LeakedKey, LeakSource
from tollway.storage import leaked_keys as stored_leaked_keys
from tollway.storage.leaked_keys import Recipient

PATH = "/v1/leaked_keys/github"
PLACE = "https://github.com/octocat/hello/blob/1/config.yaml"


@dataclass(slots=True)
class Github:
    """A reporter with keys of its own. `published`: what is published at `url`; `asked`: how often it was."""

    keys: dict[str, ec.EllipticCurvePrivateKey] = field(default_factory=dict)
    url: str = ""
    asked: int = 0
    fails: bool = False

    def add_key(self, name: str) -> None:
        self.keys[name] = ec.generate_private_key(ec.SECP256R1())

    def publish(self) -> bytes:
        def pem(key: ec.EllipticCurvePrivateKey) -> str:
            return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

        own = [{"key_identifier": name, "key": pem(key), "is_current": True} for name, key in self.keys.items()]
        others = [{"key_identifier": "p384", "key": pem(ec.generate_private_key(ec.SECP384R1()))}, {"key_identifier": "none", "key": "x"}]
        return json.dumps({"public_keys": [*own, *others]}).encode()

    def sign(self, body: bytes, name: str = "k1") -> dict[str, str]:
        signature = base64.b64encode(self.keys[name].sign(body, ec.ECDSA(SHA256()))).decode()
        return {"github-public-key-identifier": name, "github-public-key-signature": signature, "content-type": "application/json"}

    def report(self, control: Running, tokens: Sequence[str], **headers: str) -> httpx2.Response:
        body = json.dumps([{"token": token, "type": "tollway_key", "url": PLACE, "source": "content"} for token in tokens]).encode()
        return control.client(None).post(PATH, content=body, headers=self.sign(body) | headers)


@contextmanager
def publishing() -> Iterator[Github]:
    github = Github()
    github.add_key("k1")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            github.asked += 1
            self.send_response(500 if github.fails else 200)
            self.end_headers()
            self.wfile.write(github.publish())

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    github.url = f"http://127.0.0.1:{server.server_address[1]}/keys"
    try:
        yield github
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def github() -> Iterator[Github]:
    with publishing() as published:
        yield published


@pytest.fixture(scope="module")
def control(sqlite_template: SqliteTemplate, tmp_path_factory: pytest.TempPathFactory, github: Github) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("control")
    with sqlite_template.copied(directory) as url, running(url, directory / "archive", github_keys_url=github.url) as started:
        yield started


@pytest.fixture
def tenant(control: Running, request: pytest.FixtureRequest) -> TenantSetup:
    return make_tenant(control, f"leaking {request.node.name}"[:60])


def never() -> bool:
    """A turn of a job that is not over."""
    return False


def label(token: str, *, is_known: bool) -> dict[str, str]:
    named = "true_positive" if is_known else "false_positive"
    return {"token_hash": hashlib.sha256(token.encode()).hexdigest(), "token_type": "tollway_key", "label": named}


def list_leaks(control: Running, tenant: TenantSetup) -> list[dict[str, Any]]:
    return list(answered(control.client(tenant.admin_key).get("/v1/organization/leaked_keys"))["data"])


def set_policy(control: Running, tenant: TenantSetup, policy: str) -> None:
    answered(control.client(tenant.admin_key).post("/v1/organization", json={"leaked_key_policy": policy}))


def find_key(control: Running, tenant: TenantSetup) -> httpx2.Response:
    return control.client(tenant.admin_key).get(f"/v1/organization/projects/{tenant.project_id}/api_keys/{tenant.key_id}")


class TestGithub:
    def test_key_in_a_signed_report_is_revoked_recorded_and_labelled(self, control: Running, github: Github, tenant: TenantSetup) -> None:
        unknown = mint(KeyType.LIVE)
        tokens = [tenant.secret, unknown, "tw_live_broken", "", tenant.secret]
        answer = github.report(control, tokens)
        assert answered(answer) == [label(each, is_known=each == tenant.secret) for each in tokens]
        assert find_key(control, tenant).status_code == 404
        (leak,) = list_leaks(control, tenant)
        assert (leak["key_id"], leak["action"], leak["source"], leak["url"]) == (tenant.key_id, "revoked", "github", PLACE)
        assert tenant.secret.startswith(leak["redacted_value"].partition("...")[0])
        records = answered(control.client(tenant.admin_key).get("/v1/organization/audit_logs?event_types[]=api_key.leak_reported"))["data"]
        assert [(each["record"]["actor_kind"], each["actor"]["api_key"]["id"]) for each in records] == [("scanner", "github")]
        assert tenant.secret not in json.dumps([records, control.lines], default=str)
        assert tenant.secret not in answer.text and unknown not in answer.text

    def test_same_report_again_changes_nothing_and_answers_alike(self, control: Running, github: Github, tenant: TenantSetup) -> None:
        first, second = (answered(github.report(control, [tenant.secret])) for _ in range(2))
        assert first == second
        assert [each["action"] for each in list_leaks(control, tenant)] == ["revoked"]

    @pytest.mark.parametrize(
        "headers",
        [
            {"github-public-key-signature": "x"},
            {"github-public-key-signature": base64.b64encode(b"0" * 70).decode()},
            {"github-public-key-signature": ""},
            {"github-public-key-identifier": "p384"},
            {"github-public-key-identifier": "none"},
            {"github-public-key-identifier": "other"},
            {"github-public-key-identifier": ""},
        ],
        ids=str,
    )
    def test_119_report_without_a_right_signature_is_refused_and_not_read(
        self, control: Running, github: Github, alice: TenantSetup, headers: dict[str, str]
    ) -> None:
        refused(github.report(control, [alice.secret], **headers), 401, "invalid_signature")
        assert find_key(control, alice).status_code == 200

    def test_119_signature_of_another_body_is_refused(self, control: Running, github: Github, alice: TenantSetup) -> None:
        body = json.dumps([{"token": alice.secret, "type": "x", "url": ""}]).encode()
        answer = control.client(None).post(PATH, content=body, headers=github.sign(body.replace(b'"x"', b'"y"')))
        refused(answer, 401, "invalid_signature")

    @pytest.mark.parametrize("document", [{}, [1], [{"type": "x"}], [{"token": 5, "type": "x"}], [{"token": "x" * 5000, "type": "x"}]])
    def test_120_signed_nonsense_is_a_400_without_a_word_of_it(self, control: Running, github: Github, document: object) -> None:
        body = json.dumps(document).encode()
        answer = control.client(None).post(PATH, content=body, headers=github.sign(body))
        refused(answer, 400, "invalid_value")

    def test_120_report_of_too_many_secrets_is_a_400(self, control: Running, github: Github) -> None:
        refused(github.report(control, ["x"] * 101), 400, "invalid_value")
        assert answered(github.report(control, ["x"] * 100))

    def test_key_that_was_published_later_is_fetched_once_however_often_others_are_named(
        self, control: Running, github: Github, alice: TenantSetup, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        github.report(control, ["x"])
        asked = github.asked
        for number in range(5):
            refused(github.report(control, ["x"], **{"github-public-key-identifier": f"invented {number}"}), 401, "invalid_signature")
        assert github.asked <= asked + 1
        github.add_key("k2")
        monkeypatch.setattr(github_reports, "PAUSE_SECONDS", 0.0)
        body = b"[]"
        assert answered(control.client(None).post(PATH, content=body, headers=github.sign(body, "k2"))) == []

    def test_without_the_setting_there_is_no_such_route(self, fresh_control: Running, github: Github) -> None:
        refused(github.report(fresh_control, ["x"]), 404, "not_found")


class TestKeysOfTheReporter:
    async def test_keys_stay_in_force_while_they_cannot_be_fetched_and_no_longer_than_a_day(self) -> None:
        at, lines = [0.0], list[object]()
        with publishing() as published:
            reports = GithubReports(published.url, lines.append, clock=lambda: at[0])
            headers = published.sign(b"x")
            name, signature = headers["github-public-key-identifier"], headers["github-public-key-signature"]
            await reports.verify(name, signature, b"x")
            published.fails = True
            at[0] = github_reports.STALE_SECONDS - 1
            await reports.verify(name, signature, b"x")
            at[0] = github_reports.STALE_SECONDS + 100
            with pytest.raises(Fault) as caught:
                await reports.verify(name, signature, b"x")
            assert caught.value.kind is github_reports.REPORTER_KEYS_UNAVAILABLE
            assert len(lines) == 2

    async def test_120_verified_reports_are_bounded_by_rate(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(github_reports, "REPORTS_PER_MINUTE", 2)
        at = [0.0]
        with publishing() as published:
            reports = GithubReports(published.url, lambda _line: None, clock=lambda: at[0])
            headers = published.sign(b"x")
            name, signature = headers["github-public-key-identifier"], headers["github-public-key-signature"]
            for _ in range(2):
                await reports.verify(name, signature, b"x")
            with pytest.raises(Fault) as caught:
                await reports.verify(name, signature, b"x")
            assert caught.value.kind is github_reports.REPORTS_EXCEEDED
            at[0] = 61.0
            await reports.verify(name, signature, b"x")


class TestPolicies:
    @pytest.mark.parametrize(
        ("policy", "action", "status", "mails"), [("revoke", "revoked", 404, 1), ("notify", "none", 200, 1), ("record", "none", 200, 0)]
    )
    def test_policy_decides_what_is_done(
        self, control: Running, tenant: TenantSetup, policy: str, action: str, status: int, mails: int
    ) -> None:
        admin = control.client(tenant.admin_key)
        owner = f"{policy}@example.com"
        answered(admin.post("/v1/organization/invites", json={"email": owner, "role": "owner"}))
        answered(control.client(find_token(control, owner)).post("/v1/invites/accept", json={"name": "Owner"}))
        set_policy(control, tenant, policy)
        before = count_mails(control, owner)
        for _ in range(2):
            reported = answered(admin.post("/v1/organization/leaked_keys", json={"secrets": [tenant.secret], "url": "https://x.example"}))
        assert find_key(control, tenant).status_code == status
        wait_until(lambda: count_mails(control, owner) - before == mails)
        assert reported["secrets"][0]["key_id"] == tenant.key_id
        assert [(each["action"], each["source"]) for each in list_leaks(control, tenant)] == [(action, "admin")]

    def test_old_secret_of_a_rotated_key_ends_and_the_key_goes_on(self, control: Running, tenant: TenantSetup) -> None:
        admin = control.client(tenant.admin_key)
        path = f"/v1/organization/projects/{tenant.project_id}/api_keys/{tenant.key_id}"
        answered(admin.post(f"{path}/rotate", json={"grace_seconds": 3600}))
        reported = answered(admin.post("/v1/organization/leaked_keys", json={"secrets": [tenant.secret]}))
        assert reported["secrets"][0]["action"] == "retired"
        key = answered(admin.get(path))
        assert key["rotation"]["previous"] is None

    def test_admin_key_that_leaked_is_revoked(self, control: Running, tenant: TenantSetup) -> None:
        answered(control.client(tenant.admin_key).post("/v1/organization/leaked_keys", json={"secrets": [tenant.admin_key]}))
        refused(control.client(tenant.admin_key).get("/v1/organization"), 401, "invalid_api_key")


class TestMail:
    def test_mail_server_that_hangs_holds_up_no_answer(
        self, control: Running, tenant: TenantSetup, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        answered_first, sent = threading.Event(), list[bool]()
        admin = control.client(tenant.admin_key)
        answered(admin.post("/v1/organization/invites", json={"email": "slow@example.com", "role": "owner"}))
        answered(control.client(find_token(control, "slow@example.com")).post("/v1/invites/accept", json={"name": "Owner"}))
        monkeypatch.setattr(MailDirectory, "send", lambda _mail, _message: sent.append(answered_first.wait(PATIENCE_SECONDS)))
        assert answered(admin.post("/v1/organization/leaked_keys", json={"secrets": [tenant.secret]}))["secrets"][0]["is_known"]
        assert answered(admin.get("/v1/organization"))["id"] == tenant.organization_id, "the turn of the organization is over"
        answered_first.set()
        wait_until(lambda: sent == [True])

    def test_owner_who_could_not_be_told_is_written_to_later_once(
        self, control: Running, tenant: TenantSetup, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        admin, plane, owner = control.client(tenant.admin_key), control.plane, f"later-{tenant.key_id}@example.com"
        answered(admin.post("/v1/organization/invites", json={"email": owner, "role": "owner"}))
        answered(control.client(find_token(control, owner)).post("/v1/invites/accept", json={"name": "Owner"}))
        refusals = list[str]()

        def refuse(_mail: MailDirectory, message: Message) -> None:
            refusals.append(message.recipient)
            raise MailFailure("it is away")

        with monkeypatch.context() as away:
            away.setattr(MailDirectory, "send", refuse)
            answered(admin.post("/v1/organization/leaked_keys", json={"secrets": [tenant.secret]}))
            wait_until(lambda: refusals == [owner])
            later = plane.now() + leaked_keys.MAIL_PAUSE_SECONDS * 1_000_000
            assert leaked_keys.notify_due_owners(plane.database, plane.mail, plane.log, plane.now(), never) == 0, "it is not due yet"
            assert leaked_keys.notify_due_owners(plane.database, plane.mail, plane.log, later, never) == 1
        before = count_mails(control, owner)
        later += leaked_keys.MAIL_PAUSE_SECONDS_MAX * 1_000_000
        assert [leaked_keys.notify_due_owners(plane.database, plane.mail, plane.log, later, never) for _ in range(2)] == [1, 0]
        assert count_mails(control, owner) == before + 1

    def test_owner_who_can_never_be_told_is_given_up(self, control: Running, tenant: TenantSetup, monkeypatch: pytest.MonkeyPatch) -> None:
        admin, plane, owner = control.client(tenant.admin_key), control.plane, f"never-{tenant.key_id}@example.com"
        answered(admin.post("/v1/organization/invites", json={"email": owner, "role": "owner"}))
        answered(control.client(find_token(control, owner)).post("/v1/invites/accept", json={"name": "Owner"}))

        def refuse(_mail: MailDirectory, message: Message) -> None:
            raise MailFailure("it is away")

        monkeypatch.setattr(MailDirectory, "send", refuse)
        answered(admin.post("/v1/organization/leaked_keys", json={"secrets": [tenant.secret]}))
        at = plane.now()
        for _ in range(leaked_keys.MAIL_ATTEMPTS_MAX):
            at += leaked_keys.MAIL_PAUSE_SECONDS_MAX * 1_000_000
            assert leaked_keys.notify_due_owners(plane.database, plane.mail, plane.log, at, never) == 1
        assert leaked_keys.notify_due_owners(plane.database, plane.mail, plane.log, at + 10**12, never) == 0
        assert [line["key_id"] for line in control.lines if line["event"] == "mail_given_up"] == [tenant.key_id]

    def test_owners_who_were_told_are_not_written_to_again_for_one_whose_message_is_refused(
        self, control: Running, tenant: TenantSetup, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        admin, plane, sent = control.client(tenant.admin_key), control.plane, list[str]()
        owners = [f"{name}-{tenant.key_id}@example.com" for name in ("full", "free")]
        for owner in owners:
            answered(admin.post("/v1/organization/invites", json={"email": owner, "role": "owner"}))
            answered(control.client(find_token(control, owner)).post("/v1/invites/accept", json={"name": "Owner"}))

        def take(_mail: MailDirectory, message: Message) -> None:
            sent.append(message.recipient)
            if message.recipient == owners[0]:
                raise MessageRefused("452 the mailbox is full")

        monkeypatch.setattr(MailDirectory, "send", take)
        answered(admin.post("/v1/organization/leaked_keys", json={"secrets": [tenant.secret]}))
        at = plane.now() + 10**9

        def find_told() -> tuple[str, ...]:
            with plane.database.platform(write=False) as tx:
                due = stored_leaked_keys.find_due_mail(tx, at)
                return () if due is None else due.told

        wait_until(lambda: len(find_told()) == 1)
        assert sent == owners, "the second is told although the first is not"
        assert leaked_keys.notify_due_owners(plane.database, plane.mail, plane.log, at, never) == 1 and sent[2:] == owners[:1]
        owners[0] = ""  # the mailbox has space again
        assert leaked_keys.notify_due_owners(plane.database, plane.mail, plane.log, at + 10**10, never) == 1 and sent[3:] == sent[:1]
        assert leaked_keys.notify_due_owners(plane.database, plane.mail, plane.log, at + 10**12, never) == 0

    def test_turn_ends_with_a_server_that_is_away_and_when_its_time_is_over(
        self, control: Running, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plane, tried, sent, is_over = control.plane, list[str](), list[str](), [False]
        owners = list[str]()

        def refuse(_mail: MailDirectory, message: Message) -> None:
            tried.append(message.recipient)
            raise MailFailure("it is away")

        def hang(_mail: MailDirectory, message: Message) -> None:
            sent.append(message.recipient)
            is_over[0] = True

        for number in range(2):
            tenant = make_tenant(control, f"hanging {number}")
            admin = control.client(tenant.admin_key)
            owners.append(f"hanging-{number}-{tenant.key_id}@example.com")
            answered(admin.post("/v1/organization/invites", json={"email": owners[-1], "role": "owner"}))
            answered(control.client(find_token(control, owners[-1])).post("/v1/invites/accept", json={"name": "Owner"}))
            with monkeypatch.context() as away:
                away.setattr(MailDirectory, "send", refuse)
                answered(admin.post("/v1/organization/leaked_keys", json={"secrets": [tenant.secret]}))
                wait_until(lambda: tried == owners)
        at = plane.now() + leaked_keys.MAIL_PAUSE_SECONDS * 1_000_000
        monkeypatch.setattr(MailDirectory, "send", refuse)
        assert leaked_keys.notify_due_owners(plane.database, plane.mail, plane.log, at, never) == 1 and len(tried) == 3
        monkeypatch.setattr(MailDirectory, "send", hang)
        at += leaked_keys.MAIL_PAUSE_SECONDS_MAX * 1_000_000
        assert leaked_keys.notify_due_owners(plane.database, plane.mail, plane.log, at, lambda: is_over[0]) == 1 and len(sent) == 1
        assert leaked_keys.notify_due_owners(plane.database, plane.mail, plane.log, at, never) == 1 and sorted(sent) == owners

    def test_messages_of_a_report_end_with_their_time(self, control: Running) -> None:
        at, lines = [0.0], list[Mapping[str, object]]()

        class Slow:
            def send(self, message: Message) -> None:
                at[0] += 40.0

        leak = LeakedKey(
            id="leak_1",
            organization_id="org_1",
            key_id="key_1",
            redacted="tw_live_1...",
            source=LeakSource.ADMIN,
            url="",
            action=LeakAction.REVOKED,
            reported_at=0,
        )
        finding = Finding(
            leak, is_first=True, version=None, recipients=tuple(Recipient(f"user_{name}", f"{name}@example.com") for name in "abc")
        )
        leaked_keys.notify_owners(control.plane.database, [finding, None], Slow(), lines.append, clock=lambda: at[0])
        assert at == [80.0] and lines == []


class TestOtherTenants:
    def test_secret_of_another_tenant_answers_as_one_that_never_was(self, control: Running, alice: TenantSetup, bob: TenantSetup) -> None:
        admin = control.client(alice.admin_key)
        theirs, unknown = (
            admin.post("/v1/organization/leaked_keys", json={"secrets": [each]}) for each in (bob.secret, mint(KeyType.LIVE))
        )
        assert theirs.content == unknown.content and theirs.status_code == 200
        assert find_key(control, bob).status_code == 200 and not list_leaks(control, bob)

    def test_operator_reports_secrets_of_all_and_of_the_platform(self, control: Running, tenant: TenantSetup) -> None:
        operator = control.operator()
        secrets = [tenant.secret, control.node_key, mint(KeyType.ADMIN)]
        reported = answered(operator.post("/v1/platform/leaked_keys", json={"secrets": secrets}))["secrets"]
        assert [(each["is_known"], each["action"]) for each in reported] == [(True, "revoked"), (True, None), (False, None)]
        assert reported[0]["organization_id"] == tenant.organization_id
        assert any(line["event"] == "platform_key_leaked" and line["key_type"] == "node" for line in control.lines)
        assert answered(operator.get("/v1/platform/nodes")), "the key of a gateway is not ended"

    @pytest.mark.parametrize(
        "body", [{}, {"secrets": []}, {"secrets": ["x"] * 101}, {"secrets": [1]}, {"secrets": ["x"], "url": "\n"}], ids=str
    )
    def test_bad_reports_are_refused(self, control: Running, alice: TenantSetup, body: dict[str, object]) -> None:
        answer = control.client(alice.admin_key).post("/v1/organization/leaked_keys", json=body)
        assert answer.status_code == 400


def count_mails(control: Running, address: str) -> int:
    mail = control.plane.mail
    assert isinstance(mail, MailDirectory)
    texts = [path.read_text() for path in Path(mail.directory).glob("*.eml")]
    return sum(f"To: {address}\n" in text and "found in public" in text for text in texts)
