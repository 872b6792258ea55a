"""Lists, a page at a time: by key, not by offset, so that the last page of a long list costs what the first one does."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import sqlalchemy as sa

from tollway.storage.database import Transaction

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Window:
    """Which part of a list: at most `limit` items that follow the id `after`, oldest first unless `descending`.

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


def fetch_page(tx: Transaction, query: sa.Select[Any], id_column: sa.Column[str], window: Window, read: Callable[[Any], T]) -> Page[T]:
    """The window of `query`, ordered by `id_column`, each row turned into a value by `read`."""
    if window.after is not None:
        query = query.where(id_column < window.after if window.descending else id_column > window.after)
    query = query.order_by(id_column.desc() if window.descending else id_column.asc()).limit(window.limit + 1)
    rows = tx.connection.execute(query).all()
    return Page([read(row) for row in rows[: window.limit]], len(rows) > window.limit)
