"""Sums by key, in order of the keys, however many there are: what does not fit into memory waits in temporary files.

Sums are added to a dictionary. When that has KEYS_MAX keys it is written out in order, and begun anew; at the end all parts are merged,
and what has one key is added up.
"""

import heapq
import pickle
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import groupby
from operator import itemgetter
from types import TracebackType
from typing import IO, Any, Generic, Protocol, Self, TypeVar

KEYS_MAX = 100_000
"""Held in memory: about 60 MB of rollups."""


class Summable(Protocol):
    """Sums that can take up others of their kind."""

    def add(self, other: Any) -> None:
        """Add what has nothing in common with this."""


Key = TypeVar("Key", bound=tuple[Any, ...])
Value = TypeVar("Value", bound=Summable)


class OrderedSums(Generic[Key, Value]):
    """Sums by key. Use as a context manager: its end removes the files. `keys_max`: when to write out."""

    def __init__(self, make: Callable[[], Value], keys_max: int = KEYS_MAX) -> None:
        self._make = make
        self._keys_max = keys_max
        self._held: dict[Key, Value] = {}
        self._parts: list[IO[bytes]] = []
        self._files = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._files.close()

    def add(self, key: Key, sums: Value) -> None:
        """Add to what is under `key`. Raises OSError if a file cannot be written."""
        held = self._held.get(key)
        if held is None:
            held = self._held[key] = self._make()
        held.add(sums)
        if len(self._held) >= self._keys_max:
            self._write_out(self._files.enter_context(_make_file()))

    def _write_out(self, part: IO[bytes]) -> None:
        for item in self._sorted():
            pickle.dump(item, part)
        self._parts.append(part)
        self._held.clear()

    def _sorted(self) -> list[tuple[Key, Value]]:
        return sorted(self._held.items(), key=itemgetter(0))

    def items(self) -> Iterator[tuple[Key, Value]]:
        """Each key once, in order. May be called again when the iteration before has ended."""
        parts = [*map(self._read, self._parts), iter(self._sorted())]
        for key, group in groupby(heapq.merge(*parts, key=itemgetter(0)), key=itemgetter(0)):
            sums = self._make()
            for _, each in group:
                sums.add(each)
            yield key, sums

    @staticmethod
    def _read(part: IO[bytes]) -> Iterator[tuple[Key, Value]]:
        part.seek(0)
        while True:
            try:
                yield pickle.load(part)  # written above, into a file without a name
            except EOFError:
                return


def _make_file() -> IO[bytes]:
    return tempfile.TemporaryFile(prefix="tollway-verify-")
