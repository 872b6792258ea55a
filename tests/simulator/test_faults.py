"""Fault specs: the table in the module is the documentation, so it has to be true."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollway.simulator import faults
from tollway.simulator.faults import HEALTHY, RULES, parse
from tollway.simulator.settings import SimulatorSettings


def test_the_table_names_every_fault_and_no_other() -> None:
    table = (faults.__doc__ or "").partition("Before the answer")[2]
    named = re.findall(r"^([a-z][a-z0-9-]*)(?:[@:\[]\S*)? {2}", table, re.MULTILINE)
    assert set(named) == set(RULES)


def test_no_spec_is_healthy() -> None:
    assert parse("") is HEALTHY


def test_faults_combine_and_the_later_counts() -> None:
    plan = parse("cut@5:fin+drip@3+ttft@200+cut@7")
    assert (plan.halt, plan.halt_at, plan.cut_fin, plan.drip_bytes, plan.ttft_seconds) == ("cut", 7, False, 3, 0.2)


def test_a_status_knows_its_body_and_its_retry_after() -> None:
    plan = parse("status@429:flat:retry-after=7")
    assert (plan.status, plan.status_body, plan.retry_after_seconds) == (429, "flat", "7")


@pytest.mark.parametrize(
    "spec",
    ["what", "cut", "cut@x", "cut@1:maybe", "status", "status@99", "status@600", "status@500:round", "usage", "usage:some",
     "hang@1", "length:wide", "batch@1", "abort@0", "error@1:two", "utf8@0", "drip@0", "no-done:x", "+", "cut@1++", "x" * 300],
)  # fmt: skip
def test_a_spec_that_means_nothing_is_refused(spec: str) -> None:
    with pytest.raises(ValueError, match="fault spec"):
        parse(spec)


@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyz-@:+=0123456789", max_size=60))
def test_any_text_is_a_plan_or_refused(spec: str) -> None:
    try:
        parse(spec)
    except ValueError as error:
        assert str(error).startswith("fault spec")


@pytest.mark.parametrize(
    "settings",
    [{"models": ()}, {"models": ("a!b",)}, {"jitter_fraction": 1.5}, {"running_max": 0}, {"queued_max": -1},
     {"output_tokens_max": 1}, {"keep_alive_seconds": 0}, {"fault_rates": (("nope", 0.5),)},
     {"fault_rates": (("hang", 0.6), ("no-done", 0.6))}, {"fault_rates": (("hang", -0.1),)}],
)  # fmt: skip
def test_settings_outside_their_range_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r".+: "):
        SimulatorSettings(**settings)  # type: ignore[arg-type]
