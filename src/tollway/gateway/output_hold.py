"""The reservation that budgets hold for the output of a stream, as relay knows it. It is not compiled, as `budgets` derives from it."""

from collections.abc import Callable


class OutputHold:
    """The reservation that budgets hold for the output of a stream: its first `covered_tokens`, which is all that may be relayed."""

    __slots__ = ("covered_tokens",)

    def __init__(self, covered_tokens: int) -> None:
        self.covered_tokens = covered_tokens

    def extend(self, tokens: int, decided: Callable[[bool], None]) -> bool:
        """Return whether the first `tokens` are covered now. Where they are not, `decided` is called later, from a callback of the loop,
        with whether they are then."""
        raise NotImplementedError

    def abandon(self) -> None:
        """Let no `decided` be called any more."""
        raise NotImplementedError
