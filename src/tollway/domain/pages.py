"""Pages of a list, by key and not by offset, so that the last page of a long list costs what the first one does."""

from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PageWindow:
    """A part of a list: at most `limit` items that follow the id `after`, oldest first unless `descending`.

    Ids sort by time of creation. `after` need not exist any more: a list survives the deletion of its cursor.
    """

    after: str | None = None
    limit: int = 20
    descending: bool = False


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """The items of a window, and whether more follow."""

    items: list[T]
    has_more: bool
