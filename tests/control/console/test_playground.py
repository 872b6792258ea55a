"""The playground, and the list of requests that is followed: what people see while something happens elsewhere."""

import base64
import json
import re
from collections.abc import Iterator

import pytest

from tests.control.browsing import Browser, join
from tests.control.console.pages import find_token, root_of
from tests.control.engine_stub import Stub
from tests.control.harness import Running, TenantSetup, answered, make_tenant
from tests.link.samples import NODE, admit, final, frames
from tollway.control.api import places
from tollway.control.console.tenant import playground, requests
from tollway.domain import ids
from tollway.domain.usage import OUTCOME_POLICY_CURRENT

TEXT = "A toll road <b>costs</b> money."
EVENTS = [
    {"choices": [{"delta": {"role": "assistant", "content": TEXT[:12]}}]},
    {"choices": [{"delta": {"content": TEXT[12:]}}]},
    {"choices": [], "usage": {"prompt_tokens": 1_234, "completion_tokens": 7}},
]
STREAM = b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in EVENTS) + b"data: [DONE]\n\n"

PROMPT = "a prompt that nobody keeps"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(playground, "RECEIPT_SECONDS", 0.0)
    monkeypatch.setattr(requests, "FOLLOW_PAUSE_SECONDS", 0.02)


def fill_in(tenant: TenantSetup, **changes: str) -> dict[str, str]:
    return {"project": tenant.project_id, "model": "echo", "system": "", "user": PROMPT, "output_tokens": "16"} | changes


def read_claims(gateway: Stub) -> dict[str, str]:
    """Return the claims of the token that was presented last."""
    _, headers = gateway.asked[-1]
    _, claims, _ = headers["authorization"].removeprefix("Bearer ").split(".")
    read: dict[str, str] = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
    return read


def test_person_sends_a_request_with_a_short_key_of_their_own_and_sees_its_cost(
    control: Running, gateway: Stub, owner: Browser, used: TenantSetup, known: dict[str, str]
) -> None:
    gateway.page, gateway.status, gateway.headers = STREAM, 200, {"x-request-id": known["request_id"]}
    path = f"{root_of(used)}/playground"
    owner.open(path)
    admin = control.client(used.admin_key)
    answered(admin.post("/v1/organization", json={"key_lifetime_seconds_max": 3_600}))
    page = owner.send(path, **fill_in(used, system="Be brief."))
    answered(admin.post("/v1/organization", json={"key_lifetime_seconds_max": None}))
    assert "A toll road &lt;b&gt;costs&lt;/b&gt; money." in page.text
    assert "<dt>Input</dt><dd>1,234</dd>" in page.text and "<dt>Output</dt><dd>7</dd>" in page.text
    assert re.search(r"<dt>Cost</dt><dd>0\.0\d+ EUR</dd>", page.text) is not None
    assert f'href="{root_of(used)}/requests/{known["request_id"]}"' in page.text
    assert gateway.asked[-1][0] == "/v1/chat/completions"
    assert json.loads(gateway.bodies[-1]) == {
        "model": "echo",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPT}],
        "max_tokens": 16,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    keys = answered(control.client(used.admin_key).get(f"/v1/organization/projects/{used.project_id}/api_keys?limit=100"))["data"]
    (key,) = [each for each in keys if each["name"] == playground.KEY_NAME]
    assert read_claims(gateway)["key_id"] == key["id"]
    assert 0 < key["expires_at"] - control.plane.now() // 1_000_000 <= 3_600 < playground.KEY_SECONDS, "no longer than keys may live"
    fields = fill_in(used) | {"form_token": find_token(owner)}
    own = {"origin": control.url, "sec-fetch-site": "same-origin", "accept": playground.NDJSON}
    lines = [json.loads(each) for each in owner.client.post(path, data=fields, headers=own).text.splitlines()]
    assert "".join(each["text"] for each in lines[:-1]) == TEXT
    assert lines[-1]["path"] == f"{root_of(used)}/requests/{known['request_id']}" and ["Input", "1,234"] in lines[-1]["figures"]
    assert read_claims(gateway)["key_id"] == key["id"], "a person has one key for their requests"
    assert PROMPT not in repr(control.lines)
    assert PROMPT not in repr(answered(control.client(used.admin_key).get("/v1/organization/audit_logs?limit=100")))


def test_playground_says_why_a_request_was_refused(gateway: Stub, owner: Browser, used: TenantSetup) -> None:
    path = f"{root_of(used)}/playground"
    owner.open(path)
    gateway.status, gateway.headers, gateway.page = 429, {}, b'{"error": {"message": "A budget is spent.", "code": "x"}}'
    page = owner.send(path, **fill_in(used))
    assert "A budget is spent." in page.text and "<dt>Status</dt><dd>429</dd>" in page.text and PROMPT in page.text
    for status, answer, said in (
        (200, b"data: no json\n\n", "The answer cannot be read."),
        (502, b"<html>", "The answer cannot be read."),
        (200, b'data: {"error": {"message": "The engine failed."}}\n\n', "The engine failed."),
    ):
        gateway.status, gateway.page = status, answer
        assert said in owner.send(path, **fill_in(used)).text
    asked = len(gateway.asked)
    for changes in ({"user": " "}, *({"output_tokens": wrong} for wrong in ("0", "x", "9" * 30, "000000001999999"))):
        assert "That was refused." in owner.send(path, 400, **fill_in(used, **changes)).text
    assert len(gateway.asked) == asked


def test_173_no_request_is_sent_with_a_permission_that_its_sender_does_not_have(
    control: Running, gateway: Stub, owner: Browser, member: Browser, used: TenantSetup
) -> None:
    viewer = join(control, control.client(used.admin_key), "viewer@example.com", "reader")
    other = make_tenant(control, "another organization")
    path = f"{root_of(used)}/playground"
    asked = len(gateway.asked)
    assert "You have it in none." in viewer.open(path).text
    token = find_token(viewer)
    assert viewer.post(path, fill_in(used) | {"form_token": token}).status_code == 403
    assert viewer.post(path, fill_in(used)).status_code == 403
    owner.open(path)
    assert owner.post(path, fill_in(other) | {"form_token": find_token(owner)}).status_code == 404
    assert owner.post(f"{root_of(other)}/playground", fill_in(other) | {"form_token": find_token(owner)}).status_code == 404
    assert len(gateway.asked) == asked


# ---- The list that is followed ------------------------------------------------------------------------------------------


def read_events(lines: Iterator[str]) -> Iterator[tuple[str, str]]:
    """Yield events by name and data, without heartbeats."""
    name, data = "", list[str]()
    for line in lines:
        if line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            data.append(line[6:])
        elif not line and name:
            yield name, "\n".join(data)
            name, data = "", []


def count_reads(control: Running, tenant: TenantSetup) -> int:
    """Return how often the audit trail says that the list was read."""
    query = {"event_types": "request_log.read", "limit": 100}
    return len(answered(control.client(tenant.admin_key).get("/v1/organization/audit_logs", params=query))["data"])


def ingest(control: Running, tenant: TenantSetup, number: int) -> str:
    """Let a gateway hand in a request that ended now. Return its id."""
    at = control.plane.now()
    price = answered(control.operator().get("/v1/platform/prices"))["data"][0]["id"]
    of = admit(
        number,
        request_id=ids.new_id(ids.REQUEST, at, number),
        admitted_at=at,
        organization_id=tenant.organization_id,
        project_id=tenant.project_id,
        key_id=tenant.key_id,
        price_version=price,
        outcome_policy=OUTCOME_POLICY_CURRENT,
    )
    answered(control.node(NODE).put(f"/v1/link/records/{NODE}/{at}/1", content=b"".join(frames([of, final(of)], NODE, at))))
    return of.request_id


def test_followed_list_gets_new_requests_and_ends_with_the_session(
    control: Running, used: TenantSetup, known: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "FOLLOWED_MAX", 1)
    admin = control.client(used.admin_key)
    viewer = join(control, admin, "follower@example.com", "owner")
    path = f"{root_of(used)}/requests"
    assert f'data-live="{path}/live"' in viewer.open(path).text and "data-live" not in viewer.open(f"{path}?day=2026-01-01").text
    assert viewer.client.get(f"{path}/live?day=2026-01-01").status_code == 400
    before = count_reads(control, used)
    with viewer.client.stream("GET", f"{path}/live?model=echo") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = read_events(answer.iter_lines())
        name, rows = next(events)
        assert name == "all" and known["request_id"] in rows and "<script>" not in rows
        made = ingest(control, used, 77_000)
        name, rows = next(events)
        assert name == "new" and re.findall(r"/requests/(req_\w+)", rows) == [made]
        assert viewer.client.get(f"{path}/live").status_code == 429
        assert viewer.open(path).status_code == 200, "a stream holds up no page"
        viewer.send("/sign-out")
        assert next(events) == ("end", "")
        assert list(events) == []
    assert count_reads(control, used) == before + 2, "the stream and the page"
