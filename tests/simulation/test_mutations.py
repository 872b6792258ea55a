"""Bugs planted by hand are noticed: the checks of the spool, its recovery, the shipper, the collector and rating can fail."""

import pytest

from tests.simulation.mutations import MUTATIONS, Mutation, run


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name.replace(" ", "-"))
def test_it_is_noticed(mutation: Mutation) -> None:
    result = run(mutation)
    assert result.is_noticed, f"nothing notices: {mutation.breaks}\n{result.said}"


def test_names_are_unique() -> None:
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)
