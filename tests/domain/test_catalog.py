"""Groups of models: which models a limit or a budget on a group applies to."""

import pytest

from tollway.domain.catalog import MODEL_NAME, covers_model, find_group


@pytest.mark.parametrize(
    ("scope", "covered"),
    [
        ("", True),
        ("llama", True),
        ("group:large", True),
        ("group:open", True),
        ("mistral", False),
        ("large", False),
        ("group:", False),
        ("group:llama", False),
    ],
)
def test_scope_covers_a_model_by_its_name_or_by_a_group_that_it_is_in(scope: str, covered: bool) -> None:
    assert covers_model(scope, "llama", ("large", "open")) is covered


def test_group_is_told_from_a_model_by_its_prefix_alone() -> None:
    assert find_group("group:large") == "large"
    assert find_group("a/group:large") is None
    assert MODEL_NAME.fullmatch("group:large"), "so that one parameter can name either"
