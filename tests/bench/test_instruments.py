"""Output of strace and perf becomes numbers: the parsers, on text as the tools write it."""

import pytest

from bench.instruments import parse_callgrind, parse_perf, parse_strace

STRACE = """\
    calls syscall
--------- ----------------
     4000 read
     4002 write
      120 epoll_pwait
        1 clock_nanosleep
--------- ----------------
     8123 total
"""

PERF = """
    61.20%  [kernel.kallsyms]
    30.05%  libpython3.11.so.1.0
     1.10%  [kernel.vmlinux]
     0.65%  [vdso]

"""


def test_calls_are_counted_by_name_without_the_total() -> None:
    assert parse_strace(STRACE) == {"read": 4000, "write": 4002, "epoll_pwait": 120, "clock_nanosleep": 1}


def test_no_calls_at_all_is_an_empty_count() -> None:
    assert parse_strace("") == {}


def test_the_parts_of_the_kernel_are_one_share() -> None:
    shares = parse_perf(PERF)
    assert shares["kernel"] == pytest.approx(0.623)
    assert shares["libpython3.11.so.1.0"] == pytest.approx(0.3005)
    assert set(shares) == {"kernel", "libpython3.11.so.1.0", "[vdso]"}


def test_instructions_are_the_total_of_the_part_that_was_collected() -> None:
    assert parse_callgrind("events: Ir\nfn=(1)\n1 2\ntotals: 509751377\n") == 509_751_377
    with pytest.raises(ValueError, match="total"):
        parse_callgrind("events: Ir\nsummary: 0\ntotals: 0\n")
