"""Lists, a page at a time: by key, not by offset, so that the last page of a long list costs what the first one does."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import sqlalchemy as sa

from tollway.domain.pages import Page, PageWindow
from tollway.storage.database import Transaction

T = TypeVar("T")


def fetch_page(tx: Transaction, query: sa.Select[Any], id_column: sa.Column[str], window: PageWindow, read: Callable[[Any], T]) -> Page[T]:
    """The window of `query`, ordered by `id_column`, each row turned into a value by `read`."""
    rows = tx.connection.execute(limit_to_window(query, id_column, window)).all()
    return Page([read(row) for row in rows[: window.limit]], len(rows) > window.limit)


def limit_to_window(query: sa.Select[Any], id_column: sa.Column[str], window: PageWindow) -> sa.Select[Any]:
    """Return `query` for the rows of the window in order of `id_column`, and one more, which shows whether there are others."""
    if window.after is not None:
        query = query.where(id_column < window.after if window.descending else id_column > window.after)
    return query.order_by(id_column.desc() if window.descending else id_column.asc()).limit(window.limit + 1)


IDS_MAX = 500
"""Ids named in one query. SQLite allows 32,766 parameters; plans stay sensible far below."""


def split_ids(ids: Iterable[str]) -> Iterator[list[str]]:
    """Yield `ids` in order, IDS_MAX at a time, as many as one query may name."""
    ordered = sorted(ids)
    for start in range(0, len(ordered), IDS_MAX):
        yield ordered[start : start + IDS_MAX]
