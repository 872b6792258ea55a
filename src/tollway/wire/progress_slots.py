"""Layout of a slot of the progress table: the counts of a running request, in memory that outlives the process.

A slot is SLOT_WORDS words of 64 bits in native byte order. Word 0 belongs to the spool (the sequence of the slot's ADMIT, 0 for a free
slot). The quantity classes follow in the order of the table of billing classes, then the instant of the first token, then the number of
retries before the attempt that the counts are of.
"""

import array
import struct
from typing import Final

from tollway.domain.billing_classes import QUANTITY_CLASSES, TEXT_CLASSES, BillingClass, Quantities
from tollway.domain.usage import TOKENS_MAX

SLOT_WORDS: Final = 16
"""A slot fills two cache lines."""

TRAILER_BYTES: Final = 16
"""Bytes behind the last slot, so that the size of a table shows its layout: before there was a class of pixels they were eight, and none
while a slot had eight words."""

OUTPUT_WORD: Final = 1 + QUANTITY_CLASSES.index(BillingClass.OUTPUT)
"""Word of the class that grows with every chunk of a stream: it is stored alone."""

FIRST_TOKEN_WORD: Final = 1 + len(QUANTITY_CLASSES)
"""Word of the instant of the first token in UTC microseconds; 0 while there is none."""

RETRIES_WORD: Final = FIRST_TOKEN_WORD + 1
"""Word of the number of upstreams that were asked before the one whose counts these are."""

assert RETRIES_WORD < SLOT_WORDS, "a slot has a word for each quantity class; a larger slot needs a trailer of another size"

_pack_text: Final = struct.Struct(f"@{len(TEXT_CLASSES)}Q").pack_into
_pack_all: Final = struct.Struct(f"@{len(QUANTITY_CLASSES)}Q").pack_into


def write_quantities(table: memoryview, slot: int, used: Quantities, before: Quantities) -> None:
    """Store the counts of a request in its slot, in one call: a process that is killed between two words would leave a mixture of two
    reports, which bills a token in both of its classes. `before`: the counts that the slot holds."""
    at = (slot * SLOT_WORDS + 1) * 8
    if used.other is None and before.other is None:
        _pack_text(table, at, used.input, used.cached_input, used.output, used.reasoning)
    else:
        _pack_all(table, at, *used.quantities())


def read_quantities(table: "memoryview | array.array[int]", slot: int) -> Quantities:
    """Return the counts in a slot. A value above TOKENS_MAX, which no request can reach, is reduced to it."""
    at = slot * SLOT_WORDS + 1
    return Quantities.from_values((*(min(value, TOKENS_MAX) for value in table[at : at + len(QUANTITY_CLASSES)]), 0))
