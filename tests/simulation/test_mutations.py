"""Bugs planted by hand are noticed: the checks of the spool, its recovery, the shipper, the collector and rating can fail."""

from pathlib import Path

import pytest

import tollway
from tests.simulation.mutations import MUTATIONS, OTHER_PACKAGE, Mutation, is_of_copy, run


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name.replace(" ", "-"))
def test_it_is_noticed(mutation: Mutation) -> None:
    result = run(mutation)
    assert result.is_noticed, f"nothing notices: {mutation.breaks}\n{result.said}"


def test_names_are_unique() -> None:
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)


def test_the_text_of_each_mutation_occurs_once_in_the_source() -> None:
    source = Path(tollway.__file__).parent
    assert not [each.name for each in MUTATIONS if (source / each.file).read_text().count(each.old) != 1]


def test_a_check_over_another_package_than_the_copy_is_not_taken_for_one_that_noticed() -> None:
    copy = Path("/copy")
    assert is_of_copy("/copy/tollway/__init__.py", copy) and OTHER_PACKAGE != 1
    assert not is_of_copy("/source/tollway/__init__.py", copy) and not is_of_copy(None, copy)
