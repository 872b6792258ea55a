"""Bars: as long as what they stand for, to the right side, and safe to open."""

from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from tollway.cli.catalog.picture import GREEN, RED, Bar, length, svg_bars, text_bars

VALUES = st.lists(st.integers(-(10**24), 10**24), max_size=20)


@given(VALUES, st.integers(1, 60))
def test_a_bar_is_on_its_side_and_never_longer_than_its_columns(values: list[int], columns: int) -> None:
    for value, line in zip(values, text_bars(values, columns, pretty=False), strict=True):
        left, right = line.split("|")
        assert (len(left), "+" in left, "-" in right) == (columns, False, False)
        assert left.count("-") == (length(value, max(map(abs, values)), columns) if value < 0 else 0)
        assert bool(right) == (value > 0)
        assert len(right) <= columns
    if any(values):
        assert max(length(value, max(map(abs, values)), columns) for value in values) == columns


def test_the_largest_fills_its_side_and_the_smallest_is_seen() -> None:
    assert text_bars([10, -5, 0, 1], 10, pretty=False) == [
        "          |++++++++++",
        "     -----|",
        "          |",
        "          |+",
    ]


def test_colours_are_for_terminals() -> None:
    more, less = text_bars([3, -3], 4, pretty=True)
    assert GREEN in more and RED not in more
    assert RED in less and GREEN not in less
    assert not any("\x1b" in line for line in text_bars([3, -3], 4, pretty=False))


@given(VALUES, st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff"), max_size=30))
def test_a_picture_is_a_document_whatever_the_names(values: list[int], name: str) -> None:
    picture = svg_bars(name, name, [Bar(name, value, str(value)) for value in values])
    root = ElementTree.fromstring(picture)
    bars = [each for each in root if each.tag.endswith("rect")][1:]
    assert len(bars) == len(values)
    assert all(int(bar.get("width", "")) == 0 or value for bar, value in zip(bars, values, strict=True))
