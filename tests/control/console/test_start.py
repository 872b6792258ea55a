"""The first steps: an operator of an empty platform is led to an engine, a price, an organization and a key."""

import asyncio
import json
import re

import pytest

from tests.control.browsing import Browser
from tests.control.engine_stub import Stub, stub
from tests.control.harness import Running, answered
from tollway.cli.app import run
from tollway.control.reconciliation import engine_model_names
from tollway.control.reconciliation.engine_answers import Unreadable, open_client
from tollway.domain.catalog import Engine

START = "/console/platform/start"

LISTED = json.dumps({"object": "list", "data": [{"id": "meta/llama"}, {"id": "bad\nname"}, {"id": "meta/llama"}, {"id": "other"}]}).encode()


def test_operator_of_an_empty_platform_is_led_to_a_first_key(
    control: Running, operator: Browser, auditor: Browser, capsys: pytest.CaptureFixture[str]
) -> None:
    assert auditor.open("/console").url.path == "/console/platform" and auditor.open(START).status_code == 403
    assert operator.open("/console").url.path == START
    with stub() as engine:
        engine.page = LISTED
        page = operator.send(f"{START}/engine", base_url=engine.url, engine="vllm", credential="engine-secret")
        assert re.findall(r"<option>(meta/llama|other)</option>", page.text) == ["meta/llama", "other"]
        assert "engine-secret" not in page.text and "once more" in page.text
        assert engine.asked[-1][1]["authorization"] == "Bearer engine-secret"
        operator.send(f"{START}/deployment", upstream_model="meta/llama", model="llama", credential="engine-secret")
        engine.status = 503
        refused = operator.send(f"{START}/engine", 400, base_url=engine.url, engine="vllm")
        assert "answered 503" in refused.text
        engine.status = 200
        where = ["--control-url", control.url, "--key", control.platform_key]
        assert run(["deployments", "check", "--base-url", engine.url, "--engine", "vllm", *where]) == 0
        assert capsys.readouterr().out.split() == ["meta/llama", "other"]
    client = control.operator()
    for base_url in ("http://169.254.169.254", "ftp://engine", "http://127.0.0.1:1"):
        answer = client.post("/v1/platform/engine_checks", json={"base_url": base_url, "engine": "vllm"})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "base_url", base_url
    (deployment,) = answered(client.get("/v1/platform/deployments"))["data"]
    assert (deployment["model"], deployment["upstream_model"], deployment["has_credential"]) == ("llama", "meta/llama", True)

    assert operator.send(f"{START}/price", 400, model="llama", currency="EUR", input="-1", output="2").status_code == 400
    operator.send(f"{START}/price", model="llama", currency="EUR", input="1", output="2")
    assert "Offered: llama" in operator.page.text
    bad = {"name": "Acme", "currency": "EUR", "time_zone": "UTC", "key": "first"}
    operator.send(f"{START}/organization", 400, project="", **bad)
    assert answered(client.get("/v1/platform/organizations"))["data"] == []
    page = operator.send(f"{START}/organization", project="first", **bad)
    key = re.search(r"tw_live_\w+", page.text)
    assert key is not None and page.text.count(key.group()) == 2 and "tw_admin_" in page.text
    assert operator.open("/console").url.path == "/console/platform" and key.group() not in operator.open(START).text


def ask(engine: Stub, kind: Engine, credential: str | None = None) -> list[str]:
    async def once() -> list[str]:
        async with open_client() as client:
            return await engine_model_names.list_served_models(client, kind, engine.url, credential)

    return asyncio.run(once())


def test_engine_is_asked_with_its_header_and_only_a_list_of_models_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with stub() as engine:
        engine.page = LISTED
        assert ask(engine, Engine.ANTHROPIC, "secret") == ["meta/llama", "other"]
        path, headers = engine.asked[-1]
        assert (path, headers["x-api-key"], headers["accept-encoding"]) == ("/v1/models", "secret", "identity")
        for page in (b"", b"<html>", b'{"data": [{"id": 7}]}', b'{"models": []}'):
            engine.page = page
            with pytest.raises(Unreadable, match="list of models"):
                ask(engine, Engine.VLLM)
        with pytest.raises(Unreadable, match="has no list"):
            ask(engine, Engine.TRITON)
        engine.silence.clear()
        monkeypatch.setattr(engine_model_names, "ANSWER_SECONDS_MAX", 0.2)
        with pytest.raises(Unreadable, match="did not answer"):
            ask(engine, Engine.VLLM)
