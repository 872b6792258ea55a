"""The limit on open files of a process (RLIMIT_NOFILE): raised at its start, and shared out among what needs descriptors.

Each connection of a client may need one to an engine beside it. A process whose clients held all descriptors could open neither, nor a
segment of the spool, a file of the archive or a connection to control; so connections are bounded below the limit.
"""

import resource
from typing import NamedTuple

DESCRIPTORS_MAX = 1 << 20
"""Most descriptors asked for, as many as Linux allows by default. Container runtimes set the hard limit to 2^30, which
programs that look at each descriptor up to the limit take minutes for."""

RESERVE = 128
"""Descriptors kept for everything that is no connection of a client: listening sockets, the event loop, logs, the spool's and the archive's
files, the copy of the snapshot, the link, the database's connections. The most that a process with a full pool had open was 60."""


class Share(NamedTuple):
    """Connections that a limit allows. `connections`: the bound that holds. `missing`: descriptors that the configured bound needs
    beyond the limit, 0 if it fits."""

    connections: int
    missing: int


def raise_limit() -> int:
    """Raise the soft limit of this process to its hard limit, at most DESCRIPTORS_MAX; return the limit that holds. Children inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS_MAX if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS_MAX)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return max(wanted, soft)


def share_out(limit: int, connections_max: int, *, for_each: int, reserve: int) -> Share:
    """Return how many connections a limit allows, of `connections_max` at most. `for_each`: descriptors that one connection may need;
    `reserve`: those for everything else."""
    possible = max(1, (limit - reserve) // for_each)
    return Share(min(connections_max, possible), max(0, connections_max * for_each + reserve - limit))


def describe_shortage(limit: int, share: Share, bound: str, remedy: str = "") -> str:
    """Return what is too low, by how much, and what to do, for operators. `bound`: what was configured; `remedy`: what else may be done."""
    return (
        f"The limit on open files is {limit}, {share.missing} too low for {bound}: at most {share.connections} connections are served."
        f" Raise the hard limit (ulimit -Hn, LimitNOFILE= of systemd, --ulimit nofile= of a container) to {limit + share.missing}{remedy}."
    )
