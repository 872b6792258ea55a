"""The page says what was tried: the newest run of each case, all of them together, failures in bold, and what was not tried."""

from pathlib import Path

import msgspec

from reliability.page import FIGURES, render
from reliability.records import Line, read, record
from reliability.run import PAGE


def line(began: float, n: int, failures: int, results: Path) -> Line:
    return record("R1", case="sqlite", of="kills", n=n, failures=failures, began=began, also={"requests": 3_000}, results=results)


def test_the_page_in_the_tree_is_made_from_the_lines_in_the_tree() -> None:
    assert PAGE.read_text() == render(read()), "run `make docs` and commit docs/reliability.md"


def test_the_newest_run_is_shown_and_an_earlier_failure_is_not_forgotten(tmp_path: Path) -> None:
    page = render([line(1.0, 20, 2, tmp_path), line(2.0, 100, 0, tmp_path)])
    assert "| sqlite | 100 kills | 0 | 0.03 of them | 2 runs: 2 of 120 kills |" in page
    assert "| tried | 100 kills, 3,000 requests |" in page
    assert "| 95 % bound | 0.03 of them (kills); 1 in 1,000 (requests) |" in page


def test_a_failure_stands_out_and_has_no_bound(tmp_path: Path) -> None:
    assert "| sqlite | 20 kills | **2** | – |  |" in render([line(1.0, 20, 2, tmp_path)])


def test_what_was_not_taken_is_named(tmp_path: Path) -> None:
    page = render([line(1.0, 20, 0, tmp_path)])
    _, _, missing = page.partition("## Not taken yet")
    assert all(f"| {name} |" in missing for name in FIGURES if name != "R1") and "| R1 |" not in missing


def test_many_cases_are_one_table(tmp_path: Path) -> None:
    lines = [record("R9", case=f"parser {number}", of="inputs", n=300, failures=0, began=1.0, results=tmp_path) for number in range(6)]
    page = render(lines)
    assert "| parser 5 | 300 | 0 | 0.01 of them |" in page
    assert page.count("| tried |") == 0


def test_a_figure_that_others_take_is_shown(tmp_path: Path) -> None:
    page = render([msgspec.structs.replace(line(1.0, 5_000, 0, tmp_path), figure="R2", of="histories", case="")])
    assert "## R2 Simulated histories" in page and "5,000 histories" in page
