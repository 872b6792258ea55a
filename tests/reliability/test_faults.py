"""The table of faults names tests that exist, and what pytest reports is read as it is meant."""

import pytest

from reliability.faults import FAULTS, find_nodes, read_report

REPORT = """<testsuites><testsuite>
<testcase classname="tests.link.test_spool.TestEnds" name="test_one[a]" time="0.5"/>
<testcase classname="tests.gateway.test_flood" name="test_two" time="0.5">
  <properties><property name="tried" value="('inputs, some (odd)', 3000)"/><property name="other" value="('x', 1)"/></properties>
</testcase>
<testcase classname="tests.gateway.test_flood" name="test_three"><failure message="no"/></testcase>
<testcase classname="tests.gateway.test_flood" name="test_four"><skipped message="later"/></testcase>
</testsuite></testsuites>"""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_has_its_tests(fault: str) -> None:
    assert all(find_nodes(spec) for spec in FAULTS[fault]), f"{fault}: no such test; name the one that took its place"


def test_a_report_is_read_by_name_whatever_class_a_test_is_in() -> None:
    report = read_report(REPORT)
    assert report.of("link/test_spool.py::test_one[a") == ["passed"]
    assert report.of("gateway/test_flood.py::test_") == ["passed", "failed", "skipped"]
    assert report.tried == [("inputs, some (odd)", 3000)]
