"""Conditions on the requests of an organization that a list shows."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RequestFilter:
    """Conditions on an organization's requests, which must meet all: admitted from `since` to before `until` (microseconds), and one of the
    values of each other field that has any."""

    since: int
    until: int
    project_ids: tuple[str, ...] = ()
    key_ids: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    endpoints: tuple[str, ...] = ()
    outcomes: tuple[str, ...] = ()
