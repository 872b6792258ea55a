"""The navigation: which pages there are, and the operation without which each is not offered."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tollway.control.api.auditing import audit_logs
from tollway.control.api.gateways import nodes
from tollway.control.api.metering import reconciliation, request_log, usage
from tollway.control.api.money import periods
from tollway.control.api.tenancy import organizations, projects
from tollway.control.console.texts import mark


@dataclass(frozen=True, slots=True)
class Entry:
    """A page that is offered to whoever may call `operation`, or to everybody where that is None. `path`: below the root."""

    title: str
    path: str
    operation: Callable[..., Any] | None = None


@dataclass(frozen=True, slots=True)
class Section:
    """Entries under one heading."""

    title: str
    entries: tuple[Entry, ...]


TENANT: tuple[Section, ...] = (
    Section("", (Entry(mark("Overview"), ""),)),
    Section(
        mark("Use"),
        (
            Entry(mark("Usage"), "/usage", usage.list_completions),
            Entry(mark("Requests"), "/requests", request_log.list_requests),
        ),
    ),
    Section(mark("Access"), (Entry(mark("Projects"), "/projects", projects.list_projects),)),
)

PLATFORM: tuple[Section, ...] = (
    Section("", (Entry(mark("Organizations"), "", organizations.list_organizations), Entry(mark("Fleet"), "/fleet", nodes.list_nodes))),
    Section(
        mark("Money"),
        (
            Entry(mark("Billing periods"), "/periods", periods.list_periods),
            Entry(mark("Reconciliation"), "/reconciliation", reconciliation.list_reconciliation),
        ),
    ),
    Section(mark("Records"), (Entry(mark("Audit trail"), "/audit", audit_logs.list_platform_audit_logs),)),
)


def list_sections(sections: Iterable[Section], allows: Callable[[Callable[..., Any]], bool]) -> list[Section]:
    """Return what of a navigation a viewer may open. `allows`: whether they may call an operation."""
    shown = []
    for section in sections:
        entries = tuple(each for each in section.entries if each.operation is None or allows(each.operation))
        if entries:
            shown.append(Section(section.title, entries))
    return shown
