"""Prefixes of prompts that engines say they hold: an index of their events about blocks of their caches.

An engine names a block by a hash of token ids, which a gateway has not got. So each request carries a *tag* to the engine, as the session
that the engine repeats in the events of the blocks that it stores for it: the checksums of the prompt's prefixes
(`gateway.prefix_routing.hash_prefixes`). Every gateway that follows the events of an engine so learns which prefixes it holds, whichever
gateway sent them, and when it drops them.

A prefix is held while the block is in which it ends. Engines drop the end of a prompt before its begin, so those before it are there too.
Where a prefix ends is estimated by the bytes of a token that the model's requests had so far; the tag itself names no lengths.

Pure. What is remembered is bounded: BLOCKS_MAX blocks of each engine, the ones stored first are forgotten first. A prefix that is
forgotten or was never reported is not known to be held, which costs nothing but its place in the choice.
"""

from collections.abc import Callable, Sequence

from tollway.gateway.prefix_routing import HeldPrefixes, Load

TAG_BEGIN = "tw1"
LEVELS_MAX = 16
"""Prefixes that a tag may name. A longer one is not ours."""
BLOCKS_MAX = 65_536
"""Blocks remembered of one engine: a million tokens in blocks of 16. About 150 bytes each."""


def format_tag(prefixes: Sequence[int], key: int) -> bytes:
    """Return the tag of a prompt with these checksums. `key`: of its model, so that the adapters of one engine differ."""
    return b"tw1" + b"".join(b".%x" % (prefix ^ key) for prefix in prefixes)


def read_tag(tag: str) -> list[int]:
    """Return the checksums that a tag names, each with the key of its model; none if it is not a tag of a gateway."""
    begin, *fields = tag.split(".")
    if begin != TAG_BEGIN or len(fields) > LEVELS_MAX:
        return []
    try:
        found = [int(field, 16) for field in fields]
    except ValueError:
        return []
    return found if all(0 <= each < 1 << 32 for each in found) else []


class EngineCache:
    """Blocks in the prefix cache of one engine, as its events report it. Its load is followed (`Load.is_followed`) from the first event on
    that repeats a tag: an engine that repeats none says nothing of use."""

    __slots__ = ("_blocks", "_ends", "_held", "_load")

    def __init__(self, held: HeldPrefixes, load: Load) -> None:
        self._held = held
        self._load = load
        self._blocks: dict[int | bytes, int] = {}  # tokens from the begin of the prompt to the end of the block
        self._ends: dict[int | bytes, list[int]] = {}  # the prefixes that end in a block

    def __len__(self) -> int:
        return len(self._blocks)

    def store(
        self,
        hashes: Sequence[int | bytes],
        parent: int | bytes | None,
        block_tokens: int,
        tag: str,
        boundary_tokens: Callable[[int], Sequence[int]],
    ) -> None:
        """The engine stored these blocks, one after the other, behind `parent` (None: at the begin of a prompt).

        `block_tokens`: of each, positive. `boundary_tokens`: returns at how many tokens each of so many prefixes of a prompt ends, in
        ascending order.
        """
        if parent is None:
            start = 0
        else:
            known = self._blocks.get(parent)
            if known is None:
                return  # stored before its events were followed, or forgotten
            start = known
        position = start
        for each in hashes:
            position += block_tokens
            self._blocks.pop(each, None)
            self._blocks[each] = position
        prefixes = read_tag(tag)
        if prefixes:
            self._load.is_followed = True
            for prefix, tokens in zip(prefixes, boundary_tokens(len(prefixes)), strict=True):
                if start < tokens <= position:
                    self._end(hashes[(tokens - start - 1) // block_tokens], prefix)
        while len(self._blocks) > BLOCKS_MAX:
            self._forget(next(iter(self._blocks)))

    def remove(self, hashes: Sequence[int | bytes]) -> None:
        """The engine dropped these blocks."""
        for each in hashes:
            self._forget(each)

    def clear(self) -> None:
        """Forget everything: the engine dropped all, or what it dropped is not known."""
        for prefixes in self._ends.values():
            for prefix in prefixes:
                self._held.remove(prefix, self._load)
        self._blocks.clear()
        self._ends.clear()

    def leave(self) -> None:
        """The engine is followed no more: its cache is estimated again."""
        self.clear()
        self._load.is_followed = False

    def _end(self, block: int | bytes, prefix: int) -> None:
        prefixes = self._ends.setdefault(block, [])
        if prefix not in prefixes and len(prefixes) < LEVELS_MAX:
            prefixes.append(prefix)
            self._held.add(prefix, self._load)

    def _forget(self, block: int | bytes) -> None:
        if self._blocks.pop(block, None) is not None:
            for prefix in self._ends.pop(block, ()):
                self._held.remove(prefix, self._load)
