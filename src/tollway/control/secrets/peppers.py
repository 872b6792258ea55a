"""Peppers: the keys of the digests of secrets, two live at most, and the move from one to the next.

Theory of operation. A digest cannot be made again without its secret. So a secret that control itself is shown (keys of admins, operators
and nodes) moves to the current pepper at its next use, and the keys of the settings at the next start. Keys for inference are shown to
gateways only: they move with their rotation. Until then both peppers stay known to every process, and `list_uses` says what still needs the
old one.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from tollway.domain import keys as domain
from tollway.storage import keys as storage
from tollway.storage.database import PlatformTx
from tollway.storage.keys import Digest

IDS_MAX = 100
"""Keys that are named for one pepper; how many there are is counted in full."""


@dataclass(frozen=True, slots=True)
class PepperState:
    """State of one pepper. `is_known`: whether this process has it; `is_current`: whether new digests are made with it. `keys`, `tokens`,
    `invites`: live keys, join tokens and invitations that need it. `key_ids`: of the first of these keys, IDS_MAX at most."""

    version: int
    is_known: bool
    is_current: bool
    keys: int
    tokens: int
    invites: int
    key_ids: tuple[str, ...]


def list_uses(tx: PlatformTx, peppers: Mapping[int, bytes], current: int, now: int) -> list[PepperState]:
    """Return the state of each pepper that is known or that a live secret needs, the latest first."""
    states = []
    for version in sorted({*peppers, *storage.list_pepper_versions(tx)}, reverse=True):
        use = storage.find_pepper_use(tx, version, now, IDS_MAX)
        if version in peppers or use.keys or use.tokens or use.invites:
            known, key_ids = version in peppers, tuple(use.key_ids)
            states.append(PepperState(version, known, version == current, use.keys, use.tokens, use.invites, key_ids))
    return states


def move_secret(tx: PlatformTx, secret: bytes, peppers: Mapping[int, bytes], current: int) -> None:
    """Store the digest of `secret` under the current pepper in place of one under another, whether its key is valid or revoked."""
    new = Digest(current, domain.digest(peppers[current], secret))
    for version, pepper in peppers.items():
        if version != current:
            storage.move_digest(tx, domain.digest(pepper, secret), new)
