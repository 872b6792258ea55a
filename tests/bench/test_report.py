"""The page says what was measured: medians, ratios within a round, the newest run of each figure, and its doubts."""

from bench import run
from bench.records import COMPILED, Results, Run, Sample, Subject, read
from bench.report import CHUNK_RATIO, REQUEST_RATIO, REQUEST_US, cell, render, spread


def results(*samples: Sample, started_at: str = "2026-11-22T00:00:00Z") -> Results:
    header = Run(started_at=started_at, command="python -m bench", rounds=3, machine={"CPU": "two"})
    return Results(header, [Subject(name="nginx", version="1.22.1", command="nginx")], list(samples))


def request_sample(target: str, round_: int, us_per_request: float, errors: float = 0) -> Sample:
    values = {"us_per_request": us_per_request, "requests": 10.0, "seconds": 1.0, "cpu_seconds": 0.5, "errors": errors}
    return Sample(figure="request", scenario="saturated", target=target, round=round_, values=values)


def row_of(page: str, target: str) -> list[str]:
    line = next(line for line in page.splitlines() if line.startswith(f"| {target} |"))
    return [text.strip() for text in line.strip("|").split("|")]


def test_a_ratio_is_formed_within_its_round() -> None:
    # The machine was twice as slow in round 1. Dividing the extremes of both columns would say 0.5 to 8.
    samples = [
        request_sample(target, round_, cost)
        for round_, (nginx, tollway) in enumerate([(10, 20), (20, 40), (10, 80)])
        for target, cost in (("nginx", nginx), ("tollway", tollway))
    ]
    assert spread(REQUEST_RATIO, samples, "tollway") == [2, 2, 8]
    assert row_of(render([results(*samples)]), "tollway")[1:3] == ["40.0 [20.0–80.0]", "2.00 [2.00–8.00]"]


def test_a_round_without_its_yardstick_gives_no_ratio() -> None:
    samples = [request_sample("nginx", 0, 10), request_sample("tollway", 0, 20), request_sample("tollway", 1, 90)]
    assert spread(REQUEST_RATIO, samples, "tollway") == [2]
    assert spread(REQUEST_US, samples, "tollway") == [20, 90]


def test_a_value_that_was_not_measured_is_no_zero() -> None:
    assert spread(CHUNK_RATIO, [request_sample("nginx", 0, 10)], "nginx") == []
    assert cell([], 1) == "–"


def test_one_number_stands_where_all_rounds_agree() -> None:
    assert cell([1.04, 1.01, 1.02], 1) == "1.0"
    assert cell([1.0, 3.0, 2.0], 1) == "2.0 [1.0–3.0]"


def test_an_aim_is_held_up_to_its_number_and_missed_above() -> None:
    held = results(request_sample("nginx", 0, 10), request_sample(COMPILED, 0, 40))
    missed = results(request_sample("nginx", 0, 10), request_sample(COMPILED, 0, 40.1))
    assert row_of(render([held]), "CPU per request, compiled, × nginx")[-1] == "yes"
    assert row_of(render([missed]), "CPU per request, compiled, × nginx")[-1] == "**no**"


def test_each_figure_comes_from_the_newest_run_that_has_it() -> None:
    old = results(request_sample("nginx", 0, 11), started_at="2026-01-01T00:00:00Z")
    new = results(request_sample("nginx", 0, 22), started_at="2026-02-02T00:00:00Z")
    other = Sample(figure="syscalls", scenario="request", target="nginx", round=0, values={"all": 7, "read": 3, "write": 4})
    newest = results(other, started_at="2026-03-03T00:00:00Z")
    page = render([old, new, newest])
    assert row_of(page, "nginx")[1] == "22.0"
    assert "2026-02-02" in page and "2026-03-03" in page and "2026-01-01" not in page
    assert "| nginx | 7.00 | write 4.00, read 3.00 |" in page


def test_a_scenario_that_a_later_run_left_out_stays_with_the_number_of_its_run() -> None:
    def peer(scenario: str) -> Sample:
        return Sample(figure="peers", scenario=scenario, target="nginx", round=0, values={"us_per_request": 10})

    whole = results(peer("saturated"), peer("8 connections"), started_at="2026-01-01T00:00:00Z")
    page = render([whole, results(peer("saturated"), started_at="2026-02-02T00:00:00Z")])
    assert "(Runs 1, 2.)" in page and "JSON, 32 connections (run 1):" in page and "JSON, 8 connections (run 2):" in page
    assert page.count("## Run ") == 2


def test_wrong_answers_taint_the_figure() -> None:
    assert "not to be trusted" in render([results(request_sample("nginx", 0, 10, errors=2))])
    assert "not to be trusted" not in render([results(request_sample("nginx", 0, 10))])


def test_the_page_in_docs_is_rendered_from_the_kept_results() -> None:
    kept = [read(path) for path in sorted(run.RESULTS.glob("*.jsonl"))]
    assert run.PAGE.read_text() == render(kept), "render it again: make docs"
