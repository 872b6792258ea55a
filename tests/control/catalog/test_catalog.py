"""The operator's catalog: drafts, prices, publication, upstream addresses."""

import time
from typing import Any

import pytest

from tests.control.harness import Running, answered
from tests.control.test_routes import refused
from tollway.control.catalog.catalog import check_base_url
from tollway.domain.faults import Fault
from tollway.storage import schema

MODELS, PRICES, DEPLOYMENTS = "/v1/platform/models", "/v1/platform/prices", "/v1/platform/deployments"


def make_model(control: Running, name: str) -> dict[str, Any]:
    made: dict[str, Any] = answered(control.operator().post(MODELS, json={"name": name, "endpoints": ["chat/completions"]}))
    return made


def price(model: str, **fields: Any) -> dict[str, Any]:
    return {"model": model, "currency": "EUR", "input": "0.27", "output": "1.1", **fields}


class TestModels:
    def test_begin_as_drafts_and_are_published_with_a_price(self, control: Running) -> None:
        operator = control.operator()
        assert make_model(control, "lab/tiny")["published"] is False
        refused(operator.post(f"{MODELS}/lab/tiny/publish"), 400, "price_missing")
        later = int(time.time()) + 3600
        answered(operator.post(PRICES, json=price("lab/tiny", valid_from=later)))
        refused(operator.post(f"{MODELS}/lab/tiny/publish"), 400, "price_missing")
        answered(operator.post(PRICES, json=price("lab/tiny", currency="USD")))
        assert answered(operator.post(f"{MODELS}/lab/tiny/publish"))["published"]
        assert answered(operator.get(f"{MODELS}/lab%2Ftiny"))["published"]

    def test_change_only_what_is_named(self, control: Running) -> None:
        operator = control.operator()
        made = make_model(control, "changing")
        changed = answered(operator.post(f"{MODELS}/changing", json={"output_tokens_max": 100, "retry_started": False}))
        assert changed == {**made, "output_tokens_max": 100, "retry_started": False}
        assert answered(operator.post(f"{MODELS}/changing", json={"output_tokens_max": None}))["output_tokens_max"] is None
        assert answered(operator.post(f"{MODELS}/changing", json={"context_length": 4096}))["context_length"] == 4096
        assert answered(operator.post(f"{MODELS}/changing", json={"context_length": None}))["context_length"] is None
        refused(operator.post(f"{MODELS}/changing", json={"retry_started": None}), 400, "invalid_value", "retry_started")
        refused(operator.post(f"{MODELS}/changing", json={"name": "other"}), 400, "unknown_parameter", "name")
        refused(operator.post(f"{MODELS}/changing", json={"endpoints": []}), 400, "invalid_value", "endpoints")
        refused(operator.post(f"{MODELS}/changing", json={"endpoints": ["shell"]}), 400, "invalid_value", "endpoints.[0]")

    def test_fall_back_to_other_models_that_are_not_archived(self, control: Running) -> None:
        operator = control.operator()
        for name in ("first", "second", "third"):
            make_model(control, name)
        assert answered(operator.post(f"{MODELS}/first", json={"fallbacks": ["third", "second"]}))["fallbacks"] == ["third", "second"]
        assert answered(operator.post(f"{MODELS}/second", json={"fallbacks": ["first"]}))["fallbacks"] == ["first"]
        answered(operator.post(f"{MODELS}/third/archive"))
        for wrong in (["first"], ["second", "second"], ["nowhere"], ["third"], None):
            refused(operator.post(f"{MODELS}/first", json={"fallbacks": wrong}), 400, "invalid_value", "fallbacks")
        refused(operator.post(f"{MODELS}/first", json={"fallbacks": ["second"] * 5}), 400, "invalid_value", "fallbacks")
        refused(
            operator.post(MODELS, json={"name": "own", "endpoints": ["embeddings"], "fallbacks": ["own"]}),
            400,
            "invalid_value",
            "fallbacks",
        )
        assert answered(operator.get(f"{MODELS}/first"))["fallbacks"] == ["third", "second"]
        assert answered(operator.post(f"{MODELS}/first", json={"fallbacks": []}))["fallbacks"] == []

    def test_hedge_and_have_goals_within_their_bounds(self, control: Running) -> None:
        operator = control.operator()
        made = make_model(control, "quick")
        assert (made["hedge_after_ms"], made["hedge_percent"], made["latency_goal_ms"]) == (None, 5, None)
        stated = {"hedge_after_ms": 900, "hedge_percent": 10, "latency_goal_ms": 2000}
        assert answered(operator.post(f"{MODELS}/quick", json=stated)) == {**made, **stated}
        for field, wrong in (
            ("hedge_after_ms", 0),
            ("hedge_after_ms", 600_001),
            ("hedge_percent", 0),
            ("hedge_percent", 51),
            ("hedge_percent", None),
        ):
            refused(operator.post(f"{MODELS}/quick", json={field: wrong}), 400, "invalid_value", field)
        refused(operator.post(f"{MODELS}/quick", json={"latency_goal_ms": "soon"}), 400, "invalid_value", "latency_goal_ms")
        refused(operator.post(f"{MODELS}/quick", json={"retry_started": False}), 400, "invalid_value", "hedge_after_ms")
        assert answered(operator.get(f"{MODELS}/quick"))["retry_started"] is True
        lifted = answered(operator.post(f"{MODELS}/quick", json={"hedge_after_ms": None, "latency_goal_ms": None, "retry_started": False}))
        assert (lifted["hedge_after_ms"], lifted["latency_goal_ms"]) == (None, None)
        body = {"name": "once", "endpoints": ["embeddings"], "retry_started": False, "hedge_after_ms": 5}
        refused(operator.post(MODELS, json=body), 400, "invalid_value", "hedge_after_ms")

    def test_have_a_guardrail_in_a_mode_and_for_a_part_of_their_traffic(self, control: Running) -> None:
        operator = control.operator()
        made = answered(operator.post(MODELS, json={"name": "guarded", "endpoints": ["chat/completions"]}))
        assert (made["guardrail"], made["guardrail_stages"]) == ("off", "both")
        changed = answered(operator.post(f"{MODELS}/guarded", json={"guardrail": "closed", "guardrail_stages": "request"}))
        assert (changed["guardrail"], changed["guardrail_stages"]) == ("closed", "request")
        assert answered(operator.post(f"{MODELS}/guarded", json={"guardrail": "open"}))["guardrail_stages"] == "request"
        refused(operator.post(f"{MODELS}/guarded", json={"guardrail": "perhaps"}), 400, "invalid_value", "guardrail")
        refused(operator.post(f"{MODELS}/guarded", json={"guardrail": None}), 400, "invalid_value", "guardrail")

    def test_names_stay_unique_after_archiving(self, control: Running) -> None:
        operator = control.operator()
        make_model(control, "once")
        refused(operator.post(MODELS, json={"name": "once", "endpoints": ["embeddings"]}), 409, "conflict", "name")
        assert answered(operator.post(f"{MODELS}/once/archive"))["status"] == "archived"
        refused(operator.post(MODELS, json={"name": "once", "endpoints": ["embeddings"]}), 409, "conflict", "name")
        refused(operator.post(f"{MODELS}/once/publish"), 409, "conflict")

    @pytest.mark.parametrize("name", ["", "a b", "gpt-4\u043e", "x" * 129, "a/publish", "archive", "a//b", "../a", "/a"])
    def test_names_that_could_be_mistaken_are_refused(self, control: Running, name: str) -> None:
        response = control.operator().post(MODELS, json={"name": name, "endpoints": ["embeddings"]})
        refused(response, 400, "invalid_value", "name")

    def test_that_are_unknown_are_not_found(self, control: Running) -> None:
        operator = control.operator()
        refused(operator.get(f"{MODELS}/never"), 404, "model_not_found")
        refused(operator.post(f"{MODELS}/never/publish"), 404, "model_not_found")
        refused(operator.post(PRICES, json=price("never")), 404, "model_not_found", "model")


class TestPrices:
    def test_default_to_the_nearest_class_and_come_back_exactly(self, control: Running) -> None:
        make_model(control, "priced")
        made = answered(control.operator().post(PRICES, json=price("priced", input="0.270000", request="0.000000000001")))
        assert {name: made[name] for name in ("input", "cached_input", "output", "reasoning", "request")} == {
            "input": "0.27",
            "cached_input": "0.27",
            "output": "1.1",
            "reasoning": "1.1",
            "request": "0.000000000001",
        }
        told = {name: made.pop(name) for name in ("holds_from", "holds_by", "pending_nodes")}
        assert answered(control.operator().get(f"{PRICES}/{made['id']}")) == made
        assert told["pending_nodes"] == [] and told["holds_from"] <= told["holds_by"]
        assert made in answered(control.operator().get(PRICES, params={"model": "priced"}))["data"]

    def test_follow_each_other_and_are_never_retroactive(self, control: Running) -> None:
        operator = control.operator()
        make_model(control, "moving")
        now = int(time.time())
        answered(operator.post(PRICES, json=price("moving", valid_from=now)))
        answered(operator.post(PRICES, json=price("moving", valid_from=now + 1000)))
        refused(operator.post(PRICES, json=price("moving", valid_from=now + 1000)), 400, "invalid_price", "valid_from")
        refused(operator.post(PRICES, json=price("moving", valid_from=now + 500)), 400, "invalid_price", "valid_from")
        refused(operator.post(PRICES, json=price("moving")), 400, "invalid_price", "valid_from")
        refused(operator.post(PRICES, json=price("moving", currency="USD", valid_from=now - 3600)), 400, "invalid_price", "valid_from")
        answered(operator.post(PRICES, json=price("moving", currency="USD")))

    @pytest.mark.parametrize("text", ["-1", "1e3", "0.0000001", "1,5", " 1", "", "1" * 33, "1000001", "NaN"])
    def test_that_are_no_plain_decimals_are_refused(self, control: Running, text: str) -> None:
        refused(control.operator().post(PRICES, json=price("any", input=text)), 400, "invalid_value", "input")

    def test_as_numbers_are_refused(self, control: Running) -> None:
        refused(control.operator().post(PRICES, json=price("any", input=0.27)), 400, "invalid_value", "input")

    def test_cannot_be_changed_or_deleted(self, control: Running) -> None:
        make_model(control, "fixed")
        made = answered(control.operator().post(PRICES, json=price("fixed")))
        for method in ("PUT", "PATCH", "DELETE", "POST"):
            refused(control.operator().request(method, f"{PRICES}/{made['id']}", json={}), 405, "method_not_allowed")


class TestDeployments:
    def test_are_made_changed_drained_and_archived(self, control: Running) -> None:
        operator = control.operator()
        make_model(control, "served")
        body = {"model": "served", "base_url": "http://engine-0.engines:8000/", "engine": "vllm", "upstream_model": "org/name"}
        made = answered(operator.post(DEPLOYMENTS, json={**body, "credential": "secret-0123456789"}))
        assert made["base_url"] == "http://engine-0.engines:8000"
        assert made["has_credential"]
        path = f"{DEPLOYMENTS}/{made['id']}"
        assert answered(operator.post(path, json={"weight": 0, "tier": 2})) == {**made, "weight": 0, "tier": 2}
        assert answered(operator.post(path, json={"credential": None}))["has_credential"] is False
        wrong_engine = {**body, "engine": "abacus"}
        refused(operator.post(DEPLOYMENTS, json=wrong_engine), 400, "invalid_value", "engine")
        refused(operator.post(DEPLOYMENTS, json={**body, "engine": "llamacpp", "priorities": True}), 400, "invalid_value", "priorities")
        for engine in ("anthropic", "triton"):
            answered(operator.post(MODELS, json={"name": f"of-{engine}", "endpoints": ["messages"]}))
            there = {**body, "model": f"of-{engine}", "engine": engine}
            answered(operator.post(DEPLOYMENTS, json=there))
            wrong = ["chat/completions" if engine == "anthropic" else "rerank", "messages"]
            refused(operator.post(f"{MODELS}/of-{engine}", json={"endpoints": wrong}), 400, "invalid_value", "endpoints")
        refused(operator.post(DEPLOYMENTS, json={**body, "engine": "anthropic"}), 400, "invalid_value", "engine")
        assert (made["priorities"], made["relative_cost"]) == (False, None)
        assert answered(operator.post(path, json={"relative_cost": 7}))["relative_cost"] == 7
        assert answered(operator.post(path, json={"relative_cost": None}))["relative_cost"] is None
        refused(operator.post(path, json={"relative_cost": 0}), 400, "invalid_value", "relative_cost")
        assert made["pooling"] is True
        assert answered(operator.post(path, json={"pooling": False}))["pooling"] is False
        refused(operator.post(path, json={"pooling": "off"}), 400, "invalid_value", "pooling")
        assert made["translated_endpoints"] == []
        changed = answered(operator.post(path, json={"translated_endpoints": ["responses", "messages"]}))
        assert changed["translated_endpoints"] == answered(operator.get(path))["translated_endpoints"] == ["messages", "responses"]
        for wrong, param in ((["embeddings"], ".[0]"), (["other"], ".[0]"), (["messages"] * 3, ""), (None, "")):
            refused(operator.post(path, json={"translated_endpoints": wrong}), 400, "invalid_value", f"translated_endpoints{param}")
        assert made["test"] is False
        assert answered(operator.post(path, json={"test": True}))["test"] is True
        assert made["cache_isolation"] == "engine"
        assert answered(operator.post(path, json={"cache_isolation": "dedicated"}))["cache_isolation"] == "dedicated"
        refused(operator.post(path, json={"cache_isolation": "other"}), 400, "invalid_value", "cache_isolation")
        refused(operator.post(path, json={"model": "other"}), 400, "unknown_parameter", "model")
        refused(operator.post(path, json={"weight": None}), 400, "invalid_value", "weight")
        assert answered(operator.post(f"{path}/archive"))["status"] == "archived"
        refused(operator.post(path, json={"weight": 1}), 409, "conflict")
        assert answered(operator.get(DEPLOYMENTS, params={"model": "served"}))["data"] == []
        assert len(answered(operator.get(DEPLOYMENTS, params={"model": "served", "include_archived": True}))["data"]) == 1

    def test_that_an_earlier_version_allowed_can_still_be_drained(self, control: Running) -> None:
        operator = control.operator()
        answered(operator.post(MODELS, json={"name": "allowed", "endpoints": ["messages"]}))
        body = {"model": "allowed", "base_url": "http://10.1.2.3", "engine": "anthropic", "upstream_model": "m"}
        path = f"{DEPLOYMENTS}/{answered(operator.post(DEPLOYMENTS, json=body))['id']}"
        with control.plane.database.platform() as tx:
            widened = schema.models.update().where(schema.models.c.name == "allowed").values(endpoints='["chat/completions"]')
            tx.connection.execute(widened)
        assert answered(operator.post(path, json={"weight": 0, "base_url": "http://10.1.2.4"}))["weight"] == 0
        refused(operator.post(path, json={"translated_endpoints": ["messages"]}), 400, "invalid_value", "translated_endpoints")

    def test_132_credential_is_not_sent_to_another_address_than_it_was_given_for(self, control: Running) -> None:
        operator = control.operator()
        make_model(control, "with-a-credential")
        body = {"model": "with-a-credential", "base_url": "https://engine.example/a", "engine": "vllm", "upstream_model": "m"}
        path = f"{DEPLOYMENTS}/{answered(operator.post(DEPLOYMENTS, json={**body, 'credential': 'c' * 20}))['id']}"
        for other in ("https://evil.example/a", "http://engine.example/a", "https://engine.example:8443/a", "https://[::1]/a"):
            refused(operator.post(path, json={"base_url": other, "weight": 3}), 400, "invalid_value", "credential")
        refused(operator.post(path, json={"grpc_port": 8001, "weight": 3}), 400, "invalid_value", "credential")
        assert answered(operator.get(path))["weight"] == 1
        assert answered(operator.post(path, json={"grpc_port": 444}))["has_credential"]  # where it is sent without this port too
        same = answered(operator.post(path, json={"base_url": "https://ENGINE.example:443/b/"}))
        assert (same["base_url"], same["has_credential"]) == ("https://ENGINE.example:443/b", True)
        moved = answered(operator.post(path, json={"base_url": "https://other.example", "credential": "d" * 20}))
        assert (moved["base_url"], moved["has_credential"]) == ("https://other.example", True)
        assert not answered(operator.post(path, json={"base_url": "https://third.example", "credential": None}))["has_credential"]

    def test_go_with_their_model(self, control: Running) -> None:
        operator = control.operator()
        make_model(control, "leaving")
        body = {"model": "leaving", "base_url": "http://10.1.2.3", "engine": "sim", "upstream_model": "m", "credential": "c" * 20}
        made = answered(operator.post(DEPLOYMENTS, json=body))
        answered(operator.post(f"{MODELS}/leaving/archive"))
        left = answered(operator.get(f"{DEPLOYMENTS}/{made['id']}"))
        assert (left["status"], left["has_credential"]) == ("archived", False)
        refused(operator.post(DEPLOYMENTS, json=body), 409, "conflict")


class TestUpstreamAddresses:
    @pytest.mark.parametrize(
        "url",
        [
            "http://localhost:8000",
            "http://127.0.0.1:8000/engine",
            "https://10.0.0.7",
            "http://192.168.1.5:1",
            "http://[fd12::1]:8000",
            "http://[::1]:8000",
            "https://models.example.com/a/b",
            "http://engine_0:8000",
        ],
    )
    def test_where_an_engine_may_live_are_taken(self, url: str) -> None:
        check_base_url(url)

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "engine:8000",
            "ftp://engine",
            "file:///etc/passwd",
            "http://",
            "http://user:pass@engine",
            "http://engine?x=1",
            "http://engine#x",
            "http://engine/ x",
            "http://engine\\@evil",
            "http://engine/v1",
            "http://engine/v1/",
            "http://engine:0",
            "http://engine:99999",
            "http://engine:x",
            "http://rack..lan:8000",
            "https://.engine",
            f"http://{'a' * 64}.lan",
            "http://169.254.169.254",
            "http://168.63.129.16",
            "http://169.254.169.254./latest",
            "http://[fe80::1]",
            "http://[::ffff:169.254.169.254]",
            "http://[64:ff9b::a9fe:a9fe]",
            "http://[2002:a9fe:a9fe::]",
            "http://[::169.254.169.254]",
            "http://[fd00:ec2::254]",
            "http://100.100.100.200",
            "http://metadata.google.internal",
            "http://metadata.google.internal.",
            "http://2852039166",
            "http://0xa9fea9fe",
            "http://0251.0376.0251.0376",
            "http://169.254.43518",
            "http://0.0.0.0",
            "http://[::]",
            "http://224.0.0.1",
            "http://engine\n",
        ],
    )
    def test_where_none_can_be_are_refused(self, url: str) -> None:
        with pytest.raises(Fault) as refusal:
            check_base_url(url)
        assert refusal.value.param == "base_url"
