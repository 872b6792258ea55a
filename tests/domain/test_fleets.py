"""Reports of the sources of a fleet that may be true, and what follows for the deployments of a model."""

from typing import Any

import msgspec
import pytest

from tollway.domain.catalog import Engine
from tollway.domain.fleets import DNS_GRACE_SECONDS, EndpointSlices, FleetSource, SourceState, plan_fleet, read_targets


def source(**fields: Any) -> FleetSource:
    return FleetSource(engine=Engine.VLLM, upstream_model="m", **(fields or {"file": "targets.json"}))


def reported(*urls: str, **fields: Any) -> SourceState:
    state = SourceState(source(**fields))
    state.report(urls, 0.0)
    return state


def slice(name: str, *addresses: str, port: int = 8000, **conditions: bool) -> dict[str, Any]:
    endpoints = [{"addresses": [address], "conditions": conditions} for address in addresses]
    return {"metadata": {"name": name, "resourceVersion": "1"}, "ports": [{"name": "http", "port": port}], "endpoints": endpoints}


def test_targets_of_a_file_are_those_of_prometheus() -> None:
    content = b'[{"targets": ["10.0.0.1:8000", "engine-2.local:80"], "labels": {"zone": "a"}}, {"targets": ["[fd00::1]:9"]}]'
    assert read_targets(content, "http") == ["http://10.0.0.1:8000", "http://engine-2.local:80", "http://[fd00::1]:9"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"{}",
        b'["10.0.0.1:8000"]',
        b'[{"targets": ["10.0.0.1"]}]',
        b'[{"targets": ["10.0.0.1:0"]}]',
        b'[{"targets": ["10.0.0.1:99999"]}]',
        b'[{"targets": ["http://10.0.0.1:80"]}]',
        b'[{"targets": ["10.0.0.1:80/x"]}]',
        b'[{"targets": ["10.0.0.1:80", "169.254.169.254:80"]}]',
        b'[{"targets": ["10.0.0.1:80", "1.1.1.1:80"]}]',
        b'[{"targets": ["[::ffff:169.254.169.254]:80"]}]',
    ],
)
def test_list_of_targets_that_cannot_be_true_is_refused_as_a_whole(content: bytes) -> None:
    with pytest.raises(ValueError):
        read_targets(content, "http")


def test_fleet_becomes_what_the_sources_report_and_a_drained_deployment_stays_as_it_is() -> None:
    change = plan_fleet(
        [reported("http://a:1", "http://b:1"), reported("http://c:1")], {"http://b:1": "dep_b", "http://gone:1": "dep_gone"}
    )
    assert change is not None and list(change.added) == ["http://a:1", "http://c:1"] and change.archived == ["dep_gone"]


def test_last_good_fleet_is_kept_while_a_source_fails_or_reports_nothing() -> None:
    state = reported("http://a:1")
    state.report([], 1.0)
    assert "no deployment" in state.problem and plan_fleet([state], {"http://a:1": "dep_a"}) is None
    state.fail("broken")
    assert plan_fleet([state, reported("http://b:1")], {}) is None
    assert plan_fleet([SourceState(source())], {"http://a:1": "dep_a"}) is None
    state.report(["http://a:1"], 2.0)
    assert plan_fleet([state], {"http://a:1": "dep_a"}) == plan_fleet([reported("http://a:1")], {"http://a:1": "dep_a"})
    state.report([f"http://a:{port}" for port in range(1, 1002)], 3.0)
    assert "more than" in state.problem


def test_address_that_an_answer_of_dns_leaves_out_stays_for_a_while() -> None:
    state = reported("http://10.0.0.1:80", "http://10.0.0.2:80", dns="engines:80")
    state.report(["http://10.0.0.2:80"], 1.0)
    assert len(state.list_base_urls()) == 2
    state.report(["http://10.0.0.2:80"], DNS_GRACE_SECONDS)
    assert state.list_base_urls() == ["http://10.0.0.2:80"]


def test_endpoint_slices_follow_a_list_and_the_events_of_a_watch() -> None:
    slices = EndpointSlices()
    slices.replace_all([slice("a", "10.0.0.1", "10.0.0.2"), slice("b", "fd00::1", ready=True)])
    assert slices.list_base_urls("http", "http") == ["http://10.0.0.1:8000", "http://10.0.0.2:8000", "http://[fd00::1]:8000"]
    slices.apply("MODIFIED", slice("a", "10.0.0.2"))
    slices.apply("ADDED", slice("c", "10.0.0.3", ready=False))
    slices.apply("ADDED", slice("d", "10.0.0.4", ready=True, terminating=True))
    slices.apply("DELETED", slice("b"))
    slices.apply("DELETED", slice("never"))
    assert slices.list_base_urls("http", "") == ["http://10.0.0.2:8000"]


@pytest.mark.parametrize("wrong", [slice("a", "10.0.0.1", port=8000) | {"ports": []}, slice("a", "169.254.169.254"), {"endpoints": []}])
def test_endpoint_slices_that_cannot_be_true_are_refused(wrong: dict[str, Any]) -> None:
    slices = EndpointSlices()
    with pytest.raises(ValueError):
        slices.replace_all([slice("b", "10.0.0.9"), wrong])
        slices.list_base_urls("http", "http")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"file": "a", "dns": "b:1"},
        {"dns": "no-port"},
        {"dns": "engines:80", "scheme": "https"},
        {"srv": "x", "resolver": "nowhere"},
        {"file": "a", "colour": "red"},
        {"file": "a", "scheme": "ftp"},
    ],
)
def test_source_that_is_none_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"engine": "vllm", "upstream_model": "m", **fields}, FleetSource)
