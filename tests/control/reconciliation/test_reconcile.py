"""Reconciliation as it runs: engines are read for what they say, hours are compared, drift is shown and told of once."""

import asyncio
import ipaddress
import json
import secrets
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.control.engine_stub import Stub, stub
from tests.control.harness import NO_TLS, Running, TenantSetup, answered, make_tenant
from tests.link.samples import EPOCH, NODE, admit, final, frames, request_id
from tests.simulator.running import simulator
from tollway.cli.app import run
from tollway.control.reconciliation import reconcile
from tollway.control.reconciliation.engine_answers import ANSWER_BYTES_MAX, open_client
from tollway.control.reconciliation.reconcile import ReconcileOptions
from tollway.control.verification.verify import verify
from tollway.domain import addresses
from tollway.domain.billing_classes import Quantities
from tollway.domain.reconciliation import HOUR_US, HourState, Tolerance, hour_of, sum_usage
from tollway.domain.usage import Anomaly, Record
from tollway.serve import control as serve_control
from tollway.storage import reconcile as stored
from tollway.storage.record_archive import Archive

HOUR = hour_of(serve_control.now()) - 3 * HOUR_US
"""An hour that is long over."""

OPTIONS = ReconcileOptions(timeout_seconds=2.0)


def deploy(control: Running, url: str, model: str = "m", **changes: Any) -> str:
    """A deployment of `model`, made with it if need be; returns its id."""
    operator = control.operator()
    made = operator.post("/v1/platform/models", json={"name": model, "endpoints": ["chat/completions"]})
    assert made.status_code in (200, 409), made.text
    body = {"model": model, "base_url": url, "engine": "vllm", "upstream_model": model} | changes
    deployment_id: str = answered(operator.post("/v1/platform/deployments", json=body))["id"]
    return deployment_id


def observe(control: Running, at: int) -> dict[str, str]:
    """One round of readings at instant `at`."""
    plane = control.plane

    async def once() -> dict[str, str]:
        async with open_client() as client:
            return await reconcile.observe(plane.database, plane.vault, client, OPTIONS, lambda: at)

    return asyncio.run(once())


def use(control: Running, deployment_id: str, prompt: int, output: int, at: int = HOUR + 1, model: str = "m") -> None:
    """The collector's side: a request that this deployment served."""
    ended = final(admit(1, model=model), deployment_id=deployment_id, used=Quantities(prompt, 0, output), first_token_at=at, ended_at=at)
    with control.plane.database.platform() as tx:
        stored.add_usage(tx, sum_usage([ended]))


def rows(control: Running, start_at: int = HOUR, hours: int = 1, **query: Any) -> list[dict[str, Any]]:
    """Return what the API says of these hours."""
    query |= {"start_time": start_at // 1_000_000, "end_time": start_at // 1_000_000 + hours * 3600}
    found: list[dict[str, Any]] = answered(control.operator().get("/v1/platform/reconciliation", params=query))["data"]
    return found


def observe_hour(control: Running, engine: Stub, before: tuple[int, int], after: tuple[int, int]) -> None:
    """Readings at both ends of HOUR."""
    engine.counts(*before)
    assert observe(control, HOUR) == {}
    engine.counts(*after)
    assert observe(control, HOUR + HOUR_US) == {}


class TestEngines:
    def test_what_a_simulated_engine_did_is_what_is_counted(self, fresh_control: Running, tmp_path: Path) -> None:
        with simulator(tmp_path / "truth.jsonl") as sim:
            deploy(fresh_control, sim.url, engine="sim")
            assert observe(fresh_control, HOUR) == {}
            with httpx2.Client(base_url=sim.url, timeout=30, verify=NO_TLS) as client:
                body = {"model": client.get("/v1/models").json()["data"][0]["id"], "max_tokens": 7}
                for number in range(5):
                    asked = body | {"messages": [{"role": "user", "content": f"hello {number}"}]}
                    assert client.post("/v1/chat/completions", json=asked).status_code == 200
            assert observe(fresh_control, HOUR + HOUR_US) == {}
            records = sim.records()
        (row,) = rows(fresh_control)
        assert len(records) == 5
        assert row["prompt"]["engine"] == sum(record.prompt_tokens for record in records)
        assert row["output"]["engine"] == sum(record.completion_tokens for record in records)
        assert row["engines"][0]["covered_seconds"] == 3600

    def test_one_that_started_anew_counts_from_zero_and_says_so(self, fresh_control: Running) -> None:
        with stub() as engine:
            deployment_id = deploy(fresh_control, engine.url)
            engine.counts(1_000_000, 500_000)
            observe(fresh_control, HOUR)
            for minute, counts in enumerate([(1_004_000, 502_000), (3_000, 1_000), (9_000, 4_000)], 1):
                engine.counts(*counts)
                observe(fresh_control, HOUR + minute * 60_000_000)
            observe(fresh_control, HOUR + HOUR_US)
            use(fresh_control, deployment_id, 13_000, 6_000)
        (row,) = rows(fresh_control)
        assert (row["prompt"]["engine"], row["output"]["engine"], row["engines"][0]["resets"]) == (13_000, 6_000, 1)
        assert row["state"] == "ok"

    def test_one_that_is_out_of_reach_is_not_observed_and_never_a_zero(self, fresh_control: Running) -> None:
        deployment_id = deploy(fresh_control, "http://127.0.0.1:9")
        for at in (HOUR, HOUR + HOUR_US):
            assert list(observe(fresh_control, at)) == ["http://127.0.0.1:9"]
        use(fresh_control, deployment_id, 900_000, 900_000)
        (row,) = rows(fresh_control)
        assert row["state"] == "not_observed"
        assert row["prompt"] == {"ledger": 900_000, "engine": None, "drift": None, "drift_percent": None}
        assert row["engines"][0]["failures"] == 1, "the look at the start of the hour ended the hour before"

    def test_one_that_has_no_counters_is_not_asked(self, fresh_control: Running) -> None:
        with stub() as engine:
            deployment_id = deploy(fresh_control, engine.url, engine="openai")
            assert observe(fresh_control, HOUR) == {}
            assert engine.asked == []
            use(fresh_control, deployment_id, 5_000, 5_000)
        (row,) = rows(fresh_control)
        assert row["state"] == "not_observed" and row["engines"][0]["addresses"] == []

    def test_two_deployments_at_one_address_are_one_engine(self, fresh_control: Running) -> None:
        with stub() as engine:
            ids = [deploy(fresh_control, engine.url, model=model) for model in ("m", "n")]
            observe_hour(fresh_control, engine, (0, 0), (10_000, 20_000))
            assert len(engine.asked) == 2
            use(fresh_control, ids[0], 4_000, 8_000)
            use(fresh_control, ids[1], 6_000, 12_000, model="n")
        (row,) = rows(fresh_control, model="n")
        assert row["models"] == ["m", "n"] and row["state"] == "ok" and row["prompt"]["drift"] == row["output"]["drift"] == 0

    def test_the_credential_goes_to_the_engine_and_to_nobody_it_redirects_to(self, fresh_control: Running) -> None:
        secret = secrets.token_hex(16)
        with stub() as engine, stub() as thief:
            deploy(fresh_control, engine.url, credential=secret)
            engine.status, engine.headers = 302, {"location": thief.url + "/metrics"}
            assert "302" in observe(fresh_control, HOUR)[engine.url]
            assert thief.asked == []
            ((path, headers),) = engine.asked
        assert path == "/metrics" and headers["authorization"] == f"Bearer {secret}" and headers["accept-encoding"] == "identity"

    def test_79_name_that_resolves_to_a_forbidden_address_gets_no_credential(
        self, fresh_control: Running, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with stub() as engine:
            deploy(fresh_control, engine.url.replace("127.0.0.1", "localhost"), credential="secret")
            monkeypatch.setattr(addresses, "_METADATA", (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128")))
            (failed,) = observe(fresh_control, HOUR).values()
            assert "never connected to" in failed and engine.asked == []
            monkeypatch.undo()
            engine.counts(1, 1)
            assert observe(fresh_control, HOUR + 1) == {} and len(engine.asked) == 1

    @pytest.mark.parametrize("answer", ["error", "other", "nonsense", "huge", "silent", "gone"])
    def test_what_is_no_page_of_counters_is_a_failure(self, control: Running, answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            "tests.control.reconciliation.test_reconcile.OPTIONS", ReconcileOptions(timeout_seconds=0.2 if answer == "silent" else 5.0)
        )
        with stub() as engine:
            deployment_id = deploy(control, engine.url, model=f"bad-{answer}")
            engine.counts(5, 5)
            match answer:
                case "error":
                    engine.status = 500
                case "other":
                    engine.page = b"sglang:prompt_tokens_total 5\n"
                case "nonsense":
                    engine.page = b"vllm:prompt_tokens_total NaN\n"
                case "huge":
                    engine.page += b"#" * (ANSWER_BYTES_MAX + 1)
                case "silent":
                    engine.silence.clear()
                case "gone":
                    engine.headers = {"content-length": "9999"}
            failed = observe(control, HOUR)
            answered(control.operator().post(f"/v1/platform/deployments/{deployment_id}/archive"))
        assert list(failed) == [engine.url]


class TestReadings:
    def test_the_last_one_outlives_the_process_that_took_it(self, fresh_control: Running) -> None:
        """Nothing is kept in memory: each `observe` here is as good as a new process."""
        with stub() as engine:
            deploy(fresh_control, engine.url)
            observe_hour(fresh_control, engine, (100, 100), (150, 170))
        (row,) = rows(fresh_control)
        assert (row["prompt"]["engine"], row["output"]["engine"]) == (50, 70)

    def test_one_that_is_late_is_dropped_and_not_taken_for_a_start(self, fresh_control: Running) -> None:
        with stub() as engine:
            deploy(fresh_control, engine.url)
            observe_hour(fresh_control, engine, (100, 100), (150, 170))
            engine.counts(120, 120)
            observe(fresh_control, HOUR + HOUR_US // 2)
        (row,) = rows(fresh_control)
        assert (row["prompt"]["engine"], row["engines"][0]["resets"], row["engines"][0]["covered_seconds"]) == (50, 0, 3600)


class TestDrift:
    def test_is_shown_told_of_once_and_in_the_metrics(self, fresh_control: Running, capsys: pytest.CaptureFixture[str]) -> None:
        plane, now = fresh_control.plane, HOUR + HOUR_US + 301 * 1_000_000
        with stub() as engine:
            deployment_id = deploy(fresh_control, engine.url)
            observe_hour(fresh_control, engine, (0, 0), (2_000_000, 1_000_000))
            use(fresh_control, deployment_id, 2_000_000, 997_000)
        (row,) = rows(fresh_control)
        assert row["state"] == "drift"
        assert row["output"] == {"ledger": 997_000, "engine": 1_000_000, "drift": 3_000, "drift_percent": 0.3}
        told: list[Any] = []
        for _ in range(3):
            reconcile.warn(plane.database, reconcile.compare_hours(plane.database, plane.reconciliation, now), told.append, now)
        (line,) = told
        assert line["event"] == "reconciliation_drift" and line["deployments"] == [deployment_id] and line["hour"] == HOUR // 1_000_000
        page = fresh_control.node().get("/metrics").text
        assert 'tollway_reconciliation_models{state="drift"} 1.0' in page
        assert 'tollway_reconciliation_drift_tokens{counter="output",model="m"} 3000.0' in page
        assert 'tollway_reconciliation_drift_ratio{counter="output",model="m"} 0.003' in page
        where = ["--control-url", fresh_control.url, "--key", fresh_control.platform_key]
        assert run(["reconcile", "--engines", *where]) == 1
        table = capsys.readouterr().out
        assert "drift" in table and "997000" in table and engine.url in table
        assert run(["reconcile", "--since", "400d", "-o", "json", *where]) == 1
        assert json.loads(capsys.readouterr().out)[-1] == row

    def test_within_what_the_settings_allow_is_none(self, fresh_control: Running) -> None:
        fresh_control.plane.reconciliation.tolerance = Tolerance(percent=0.5, tokens=0)
        with stub() as engine:
            deployment_id = deploy(fresh_control, engine.url)
            observe_hour(fresh_control, engine, (0, 0), (1_000, 1_000))
            use(fresh_control, deployment_id, 1_005, 995)
        assert rows(fresh_control)[0]["state"] == "ok"
        assert run(["reconcile", "--control-url", fresh_control.url, "--key", fresh_control.platform_key]) == 0

    def test_that_late_records_mend_is_gone(self, fresh_control: Running) -> None:
        plane = fresh_control.plane
        with stub() as engine:
            deployment_id = deploy(fresh_control, engine.url)
            observe_hour(fresh_control, engine, (0, 0), (50_000, 50_000))
        now = HOUR + 2 * HOUR_US
        assert [row.state for row in reconcile.compare_hours(plane.database, plane.reconciliation, now)] == [HourState.DRIFT]
        use(fresh_control, deployment_id, 50_000, 50_000)
        assert reconcile.compare_hours(plane.database, plane.reconciliation, now) == []

    def test_nothing_at_all_is_a_list_of_nothing(self, fresh_control: Running) -> None:
        assert rows(fresh_control) == []


class TestDoor:
    @pytest.mark.parametrize(
        "query", ["start_time=7200&end_time=3600", "start_time=0&end_time=700000", "start_time=x", "model=%20", "what=1"]
    )
    def test_what_makes_no_sense_is_refused(self, control: Running, query: str) -> None:
        assert control.operator().get(f"/v1/platform/reconciliation?{query}").status_code == 400

    def test_tenants_do_not_see_engines(self, control: Running, alice: TenantSetup) -> None:
        assert control.client(alice.admin_key).get("/v1/platform/reconciliation").status_code == 403


class TestCollector:
    def test_adds_each_request_once_however_often_its_record_comes(self, fresh_control: Running) -> None:
        tenant, operator = make_tenant(fresh_control, "carol"), fresh_control.operator()
        answered(operator.post("/v1/platform/models", json={"name": "echo", "endpoints": ["chat/completions"]}))
        price = {"model": "echo", "currency": "EUR", "input": "1", "cached_input": "1", "output": "1"}
        with fresh_control.clock.set_to(EPOCH):
            price_id = answered(operator.post("/v1/platform/prices", json=price))["id"]
        fresh_control.prove_prices()
        records: list[Record] = []
        for number in range(6):
            of = admit(
                number, organization_id=tenant.organization_id, project_id=tenant.project_id, key_id=tenant.key_id, price_version=price_id
            )
            records += [of, final(of, anomaly=list(Anomaly)[number] if number < 4 else None)]
        body = b"".join(frames(records))
        for _ in range(3):
            answered(fresh_control.node(NODE).put(f"/v1/link/records/{NODE}/{EPOCH}/1", content=body))
        (row,) = rows(fresh_control, hour_of(EPOCH))
        assert (row["requests"]["requests"], row["prompt"]["ledger"], row["output"]["ledger"]) == (6, 6 * 120, 6 * 34)
        assert row["requests"]["anomalous"] == 4
        assert verify(fresh_control.plane.database, Archive(fresh_control.plane.archive_directory)).is_right
        page = answered(operator.get("/v1/platform/anomalies"))
        assert [each["anomaly"] for each in page["data"]] == list(Anomaly)
        only = {"kind": "usage_inflated", "deployment_id": page["data"][0]["deployment_id"]}
        (found,) = answered(operator.get("/v1/platform/anomalies", params=only))["data"]
        assert (found["id"], found["input_tokens"], found["output_tokens"]) == (request_id(2), 120, 34)
        assert operator.get("/v1/platform/anomalies", params={"kind": "other"}).status_code == 400
        assert fresh_control.client(tenant.admin_key).get("/v1/platform/anomalies").status_code == 403
