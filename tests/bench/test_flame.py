"""Flame graphs: widths are shares, names are escaped, and what was written is read back."""

from xml.etree import ElementTree

from bench.flame import by_file, read_folded, render, write_folded

SAMPLES = {("a/x.py:f",): 1, ("a/x.py:f", "b/y.py:<lambda>"): 3}


def test_a_bar_is_as_wide_as_its_share() -> None:
    root = ElementTree.fromstring(render(SAMPLES, "a & b"))
    widths = {
        group.findtext("{*}title"): float(bar.attrib["width"])
        for group in root.findall("{*}g")
        if (bar := group.find("{*}rect")) is not None
    }
    assert widths == {"a/x.py:f: 100.0%": 1180.0, "b/y.py:<lambda>: 75.0%": 885.0}


def test_shares_are_of_the_innermost_function_s_file() -> None:
    assert by_file(SAMPLES) == {"b/y.py": 0.75, "a/x.py": 0.25}


def test_folded_stacks_are_read_back() -> None:
    assert read_folded(write_folded(SAMPLES)) == SAMPLES
