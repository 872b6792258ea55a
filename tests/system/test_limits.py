"""Limits end to end: set on the control plane, applied by the gateway, understood by the official client, seen by the tenant."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI

from reliability.processes import WAIT_SECONDS, Demo

pytestmark = pytest.mark.system

MESSAGES: Any = [{"role": "user", "content": "Count the coins."}]

MakeKey = Callable[..., str]


@pytest.fixture(scope="module")
def admin(demo: Demo) -> Iterator[httpx2.Client]:
    headers = {"authorization": f"Bearer {demo.admin_key}"}
    with httpx2.Client(base_url=f"{demo.control_url}/v1", headers=headers, timeout=WAIT_SECONDS, trust_env=False) as http:
        yield http


@pytest.fixture(scope="module")
def project_id(admin: httpx2.Client) -> str:
    (project,) = admin.get("/organization/projects").json()["data"]
    return str(project["id"])


@pytest.fixture
def make_key(admin: httpx2.Client, project_id: str) -> MakeKey:
    """Return a function that makes a key with limits and returns its secret."""

    def make(**limits: int) -> str:
        made = admin.post(f"/organization/projects/{project_id}/api_keys", json={"name": "limited", "limits": limits})
        assert made.status_code == 200, made.text
        return str(made.json()["value"])

    return make


@contextmanager
def client(demo: Demo, key: str, retries: int = 0) -> Iterator[tuple[OpenAI, list[int]]]:
    """The official client, with the statuses that it is answered. It waits until the gateway knows the key."""
    statuses: list[int] = []

    def note(response: httpx2.Response) -> None:
        statuses.append(response.status_code)

    http = httpx2.Client(event_hooks={"response": [note]}, trust_env=False, timeout=WAIT_SECONDS)
    with OpenAI(base_url=f"{demo.gateway_url}/v1", api_key=key, max_retries=retries, http_client=http) as made:
        while http.get(f"{demo.gateway_url}/v1/limits", headers={"authorization": f"Bearer {key}"}).status_code != 200:
            pass
        statuses.clear()
        yield made, statuses


def left(demo: Demo, key: str) -> dict[str, dict[str, Any]]:
    """Return how the limits of the key itself stand, by dimension."""
    with httpx2.Client(trust_env=False, timeout=WAIT_SECONDS) as http:
        listed = http.get(f"{demo.gateway_url}/v1/limits", headers={"authorization": f"Bearer {key}"}).json()["data"]
    return {each["dimension"]: each for each in listed if each["level"] == "api_key"}


def test_tokens_are_settled_on_what_the_client_is_told(demo: Demo, make_key: MakeKey) -> None:
    key = make_key(tokens_per_day=1_000_000, requests_per_day=100)
    with client(demo, key) as (official, _):
        answer = official.chat.completions.with_raw_response.create(model=demo.model, messages=MESSAGES, max_tokens=500)
        usage = answer.parse().usage
        assert usage is not None
        assert answer.headers["x-ratelimit-limit-tokens"] == "1000000"
        assert int(answer.headers["x-ratelimit-remaining-tokens"]) <= 1_000_000 - 500, "reserved when it was admitted"
        assert answer.headers["x-ratelimit-remaining-requests"] == "99"
        stream = official.chat.completions.create(
            model=demo.model, messages=MESSAGES, max_tokens=500, stream=True, stream_options={"include_usage": True}
        )
        streamed = [event.usage for event in stream if event.usage is not None][-1]
        total = usage.total_tokens + streamed.total_tokens
        found = left(demo, key)
        assert found["tokens_per_day"]["reserved"] == 0
        drained = 1_000_000 * WAIT_SECONDS / 86_400 + 1
        assert total - drained <= found["tokens_per_day"]["used"] <= total
        assert found["requests_per_day"]["used"] == 2


def test_refusal_is_retried_by_the_official_client_when_its_time_has_come(demo: Demo, make_key: MakeKey) -> None:
    with client(demo, make_key(requests_per_minute=60), retries=5) as (official, statuses):
        for _ in range(1000):  # as many as the burst and what refills meanwhile: one a second
            official.chat.completions.create(model=demo.model, messages=MESSAGES, max_tokens=5)
            if 429 in statuses:
                break
        assert 429 in statuses and statuses[-1] == 200


def test_refusal_that_no_wait_can_lift_is_not_retried(demo: Demo, make_key: MakeKey) -> None:
    with client(demo, make_key(tokens_per_minute=100), retries=5) as (official, statuses):
        with pytest.raises(openai.RateLimitError) as refused:
            official.chat.completions.create(model=demo.model, messages=MESSAGES, max_tokens=101)
        assert statuses == [429]
        assert (refused.value.type, refused.value.code) == ("tokens", "rate_limit_exceeded")
        assert "the limit of API key key_" in str(refused.value)


def test_requests_beyond_the_limit_are_refused_by_level(demo: Demo, make_key: MakeKey, admin: httpx2.Client, project_id: str) -> None:
    with client(demo, make_key(requests_per_minute=2)) as (official, _):
        for _ in range(2):
            official.chat.completions.create(model=demo.model, messages=MESSAGES, max_tokens=5)
        with pytest.raises(openai.RateLimitError) as refused:
            official.chat.completions.create(model=demo.model, messages=MESSAGES, max_tokens=5)
        assert (refused.value.type, refused.value.response.headers["x-ratelimit-remaining-requests"]) == ("requests", "0")
    keys = admin.get(f"/organization/projects/{project_id}/api_keys", params={"limit": 100, "order": "desc"}).json()["data"]
    query = {"project_id": project_id, "api_key_id": keys[0]["id"]}
    while True:  # the gateway's next report is at most a few seconds away
        answer = admin.get("/organization/limits", params=query).json()
        (own,) = [each for each in answer["data"] if each["level"] == "api_key"]
        if own["used"]:
            break
    assert answer["counted_by"] == "gateways" and own["binds"] and own["used"] + own["remaining"] == 2
