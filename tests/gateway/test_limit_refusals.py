"""Every refusal for a limit, by level and by what it counts: what it says, when to come back, and what official SDKs make of it."""

import itertools
import math
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import anthropic
import openai
import pytest

from tests.fakes import Asked, Do, Script, Upstream, until
from tests.gateway.harness import KEY, PEPPER, PROJECT, Answer, Gateway, Served, chat, completion, connect, gateway, message, post, whole
from tollway.domain import keys
from tollway.domain.catalog import Endpoint
from tollway.domain.keys import KeyType
from tollway.domain.limits import CONCURRENT_REQUESTS, DIMENSIONS, UNLIMITED, Dimension, LevelLimits, LimitLevel, Limits, Quantity
from tollway.domain.prices import PriceTerms
from tollway.domain.snapshot import KeyEntry, OrganizationEntry, ProjectEntry, change

PATHS = ("/v1/chat/completions", "/v1/messages")
BODY = chat(max_tokens=100)
INPUT_TOKENS, OUTPUT_TOKENS = 300, 100
"""Tokens that the engine reports of each request: more input than its bytes let one expect."""

SIZES = {Quantity.REQUESTS: 1, Quantity.TOKENS: 350, Quantity.INPUT_TOKENS: 250, Quantity.OUTPUT_TOKENS: 150}
"""Limits that one request fits into and two do not, because the first uses more than it reserved."""

LEVEL_WORDS = {
    LimitLevel.END_USER: "end user",
    LimitLevel.API_KEY: "API key",
    LimitLevel.SERVICE_ACCOUNT: "service account",
    LimitLevel.PROJECT: "project",
    LimitLevel.ORGANIZATION: "organization",
}
SCOPE_WORDS = {"": "", "m": " for model m", "group:open": " for the group of models open"}
"""Scopes of limits, all models together, one model and a group, and how a refusal says each."""
PLACES = [(level, scope) for level in LimitLevel for scope in SCOPE_WORDS]
RATES = [each for each in DIMENSIONS if each.window_ns and each.quantity not in (Quantity.IMAGES, Quantity.AUDIO_SECONDS)]
"""Rates that conversations count in; tests of images and of audio have the others."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """An organization with a project, a service account and a key, one level of which has limits. `text`: how a
    refusal names that level."""

    secret: str
    body: dict[str, Any]
    text: str


_numbers: Iterator[int] = itertools.count(1)


def add_tenant(running: Gateway, level: LimitLevel, scope: str, limits: Limits) -> Tenant:
    """Put a tenant into the gateway's snapshot that nobody has counted before. `scope`: what its limits are on (SCOPE_WORDS)."""
    number = next(_numbers)
    organization, project, key, account = (f"{prefix}_{number:032x}" for prefix in ("org", "proj", "key", "svc"))
    secret = keys.new_key(KeyType.LIVE, number.to_bytes(keys.RANDOM_BYTES, "big")).secret

    def own(at: LimitLevel) -> dict[str, Any]:
        if at is not level:
            return {}
        return {"model_limits": {scope: limits}} if scope else {"limits": limits}

    own_of_account = {f"service_account_{name}": value for name, value in own(LimitLevel.SERVICE_ACCOUNT).items()}
    plane = running.plane
    for entry in (
        OrganizationEntry(id=organization, currency="EUR", terms=(PriceTerms(0, "book_1"),), **own(LimitLevel.ORGANIZATION)),
        ProjectEntry(
            id=project,
            organization_id=organization,
            end_user_limits=limits if level is LimitLevel.END_USER and not scope else UNLIMITED,
            end_user_model_limits={scope: limits} if level is LimitLevel.END_USER and scope else {},
            **own(LimitLevel.PROJECT),
        ),
        KeyEntry(
            id=key,
            digest=keys.digest(PEPPER, secret.encode()),
            type=KeyType.LIVE,
            project_id=project,
            service_account_id=account,
            **own(LimitLevel.API_KEY),
            **own_of_account,
        ),
    ):
        plane.apply(change(plane.version + 1, entry))
    ids = {LimitLevel.ORGANIZATION: organization, LimitLevel.PROJECT: project, LimitLevel.API_KEY: key, LimitLevel.SERVICE_ACCOUNT: account}
    text = f"{LEVEL_WORDS[level]} {ids.get(level, '')}{'' if level is LimitLevel.END_USER else SCOPE_WORDS[scope]}"
    return Tenant(secret, {**BODY, "metadata": {"user_id": "ann"}} if level is LimitLevel.END_USER else BODY, text)


def body_of(tenant: Tenant, path: str) -> dict[str, Any]:
    """Return the tenant's request in the shape of an API, which decides where an end user stands."""
    if "metadata" in tenant.body and path == PATHS[0]:
        return {**BODY, "user": "ann"}
    return tenant.body


def served_by(upstream: Upstream) -> Served:
    """Return what serves both APIs from one engine: it is asked for chat completions."""
    return Served([upstream.url], translated_endpoints=(Endpoint.MESSAGES,), groups=("open",))


def script_of(asked: Asked) -> Script:
    return [whole(completion(prompt=INPUT_TOKENS, completion=OUTPUT_TOKENS))]


@pytest.fixture
async def running() -> AsyncIterator[Gateway]:
    upstream = Upstream(script_of)
    async with upstream.listening(), gateway({"m": served_by(upstream)}) as made:
        yield made


def read_error(answer: Answer, path: str, type: str) -> str:
    """Check the shape of a refusal, and return its text. `type`: OpenAI's."""
    assert answer.status == 429, answer
    if path == PATHS[0]:
        assert (answer.error["code"], answer.error["type"], answer.error["param"]) == ("rate_limit_exceeded", type, None)
        return str(answer.error["message"])
    body = answer.json()
    assert (body["type"], body["error"]["type"], set(body)) == ("error", "rate_limit_error", {"type", "error", "request_id"})
    return str(body["error"]["message"])


def check_retry(answer: Answer, seconds_max: float) -> None:
    """Check that a refusal says when to come back: after a time that both headers have, and no later than `seconds_max`."""
    milliseconds = int(answer.headers["retry-after-ms"])
    assert 1 <= milliseconds <= seconds_max * 1000
    assert int(answer.headers["retry-after"]) == math.ceil(milliseconds / 1000)
    assert "x-should-retry" not in answer.headers


def check_left(answer: Answer, path: str, dimension: Dimension, size: int, remaining: int | None) -> None:
    """Check the headers that say what is left of a limit. `remaining`: None if that depends on the time."""
    kind = "requests" if dimension.quantity is Quantity.REQUESTS else "tokens"
    names = {"limit": f"x-ratelimit-limit-{kind}", "remaining": f"x-ratelimit-remaining-{kind}"}
    assert int(answer.headers[names["limit"]]) == size
    left = int(answer.headers[names["remaining"]])
    assert 0 <= left <= size if remaining is None else left == remaining
    assert answer.headers[f"x-ratelimit-reset-{kind}"][-1] == "s"
    if path == PATHS[1]:
        assert answer.headers[f"anthropic-ratelimit-{kind}-limit"] == str(size)
        assert answer.headers[f"anthropic-ratelimit-{kind}-remaining"] == str(left)
        assert answer.headers[f"anthropic-ratelimit-{kind}-reset"].endswith("Z")


@pytest.mark.parametrize("path", PATHS)
async def test_refusal_for_any_rate_at_any_level_names_it_its_size_and_when_it_admits_the_request(running: Gateway, path: str) -> None:
    for (level, scope), dimension in itertools.product(PLACES, RATES):
        size = SIZES[dimension.quantity]
        tenant = add_tenant(running, level, scope, Limits(**{dimension.name: size}))
        assert (await post(running.port, body_of(tenant, path), path, key=tenant.secret)).status == 200
        answer = await post(running.port, body_of(tenant, path), path, key=tenant.secret)
        text = read_error(answer, path, "requests" if dimension.quantity is Quantity.REQUESTS else "tokens")
        assert text.startswith(f"Rate limit reached for {dimension.words} of {tenant.text}"), (text, tenant)
        assert f": limit {size}, used " in text and "requested " in text and "Try again in " in text
        check_retry(answer, 2 * dimension.window_ns / 1e9)
        check_left(answer, path, dimension, size, None)


@pytest.mark.parametrize("path", PATHS)
async def test_refusal_that_waiting_cannot_help_says_so_at_any_level(running: Gateway, path: str) -> None:
    rates = [each for each in RATES if each.quantity is not Quantity.REQUESTS]
    for (level, scope), dimension in itertools.product(PLACES, rates):
        tenant = add_tenant(running, level, scope, Limits(**{dimension.name: 5}))
        answer = await post(running.port, body_of(tenant, path), path, key=tenant.secret)
        text = read_error(answer, path, "tokens")
        assert text.startswith("Request too large: it asks for ") and f" {dimension.words}, and the limit of {tenant.text}" in text
        assert " is 5. Trying again cannot help" in text
        assert answer.headers["x-should-retry"] == "false" and not {"retry-after", "retry-after-ms"} & answer.headers.keys()
        check_left(answer, path, dimension, 5, 5)


@pytest.mark.parametrize("path", PATHS)
async def test_refusal_for_concurrency_at_any_level_names_it_its_size_and_when_to_come_back(path: str) -> None:
    upstream = Upstream([Do.GATE, whole(completion())])
    async with upstream.listening(), gateway({"m": served_by(upstream)}) as running, connect(running.port) as held:
        for level, scope in PLACES:
            upstream.gate.clear()
            tenant = add_tenant(running, level, scope, Limits(**{CONCURRENT_REQUESTS.name: 1}))
            asked = len(upstream.asked)
            held.send(message(body_of(tenant, path), path, tenant.secret))
            await until(lambda asked=asked: len(upstream.asked) > asked)  # type: ignore[misc]
            answer = await post(running.port, body_of(tenant, path), path, key=tenant.secret)
            text = read_error(answer, path, "requests")
            assert text.startswith(f"Too many concurrent requests: {tenant.text}") and " may run 1 at a time. Try again in " in text
            check_retry(answer, 30.0)
            upstream.gate.set()
            assert (await held.answer()).status == 200


def overdraw(running: Gateway, seconds: float) -> None:
    """Charge the limit on tokens of the harness's project, of 60,000 a minute, so that it admits nothing for so long."""
    counters, now_ns = running.plane.counters, time.monotonic_ns()
    bound = counters.bind("", [LevelLimits(LimitLevel.PROJECT, PROJECT, Limits(tokens_per_minute=60_000))], now_ns)
    hold = counters.reserve(bound, (1, 1, 0, 1, 0, 0), now_ns)
    assert hold.is_admitted
    hold.settle((1, 60_000 + int(seconds * 1000), 0, 0, 0, 0), now_ns)


CLIENTS = {
    "openai": lambda running: openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key=KEY, max_retries=1, timeout=60.0),
    "anthropic": lambda running: anthropic.AsyncAnthropic(base_url=running.url, api_key=KEY, max_retries=1, timeout=60.0),
}


async def ask(client: Any, max_tokens: int) -> None:
    messages = [{"role": "user", "content": "hi"}]
    if isinstance(client, openai.AsyncOpenAI):
        await client.chat.completions.create(model="m", messages=messages, max_tokens=max_tokens)
    else:
        await client.messages.create(model="m", messages=messages, max_tokens=max_tokens)


@pytest.mark.parametrize("sdk", CLIENTS)
async def test_official_sdk_comes_back_when_it_is_told_to_and_not_where_that_cannot_help(sdk: str) -> None:
    upstream = Upstream(script_of)
    limits = Limits(tokens_per_minute=60_000)
    async with upstream.listening(), gateway({"m": served_by(upstream)}, limits=limits) as running, CLIENTS[sdk](running) as client:
        began = time.monotonic()
        overdraw(running, 2.0)
        await ask(client, 10)
        assert time.monotonic() - began > 2.0, "it was refused, and waited as long as it was told to"
        with pytest.raises((openai.RateLimitError, anthropic.RateLimitError)) as refused:
            await ask(client, 60_001)
        assert refused.value.response.headers["x-should-retry"] == "false"
        assert refused.value.response.headers["x-ratelimit-limit-tokens"] == "60000"
        assert len(upstream.asked) == 1
    assert sum(line.count(b'"status":429') for line in running.log.text.splitlines()) == 2, "one of them was sent twice"
