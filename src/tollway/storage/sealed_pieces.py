"""Content of any length, sealed in pieces, so that neither sealing nor opening holds all of it.

Each piece is its length (4 bytes) and a sealed secret (`storage.vault`) whose context is that of the whole, the number of the piece, and
for the last one that it is the last. So pieces cannot be left out, added, repeated, or moved, and content that ends early is seen to."""

import struct
from collections.abc import Iterable, Iterator
from typing import BinaryIO, Final, Protocol

from tollway.storage.vault import LocalVault

PIECE_BYTES: Final = 256 * 1024
"""Bytes of a piece before it is sealed; the last one has fewer."""
_LENGTH: Final = struct.Struct(">I")
_SEALED_BYTES_MAX: Final = PIECE_BYTES + 4_096


class ByteSource(Protocol):
    """Source of sealed content."""

    def read(self, size: int, /) -> bytes:
        """Return the next bytes, so many unless it ends before."""
        ...


def write_pieces(target: BinaryIO, vault: LocalVault, context: str, content: Iterable[bytes]) -> None:
    """Seal `content` for `context`, piece by piece."""
    for part in seal_pieces(vault, context, content):
        target.write(part)


def seal_pieces(vault: LocalVault, context: str, content: Iterable[bytes]) -> Iterator[bytes]:
    """Yield what `read_pieces` reads: `content` sealed for `context`, piece by piece."""
    number, held = 0, bytearray()
    for part in content:
        held += part
        while len(held) > PIECE_BYTES:  # what is held in the end is the last piece
            yield _seal(vault, f"{context}:{number}", bytes(held[:PIECE_BYTES]))
            del held[:PIECE_BYTES]
            number += 1
    yield _seal(vault, f"{context}:{number}:last", bytes(held))


def read_pieces(source: ByteSource, vault: LocalVault, context: str) -> Iterator[bytes]:
    """Yield what was sealed. Raises ValueError or struct.error for content that was altered or is not whole."""
    number, length = 0, source.read(_LENGTH.size)
    while True:
        size = _LENGTH.unpack(length)[0]
        if size > _SEALED_BYTES_MAX:
            raise ValueError("a piece that is too long")
        sealed = source.read(size)
        length = source.read(_LENGTH.size)
        yield vault.unseal_bytes(sealed, context=f"{context}:{number}" if length else f"{context}:{number}:last")
        if not length:
            return
        number += 1


def _seal(vault: LocalVault, context: str, piece: bytes) -> bytes:
    sealed = vault.seal_bytes(piece, context=context)
    return _LENGTH.pack(len(sealed)) + sealed
