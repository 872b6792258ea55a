"""Gateways as the control plane knows them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SeenNode:
    """A gateway as of its latest message: the snapshot version that it has applied, and the instants (UTC microseconds) of its first and
    latest messages."""

    id: str
    acked_version: int
    first_seen_at: int
    seen_at: int
