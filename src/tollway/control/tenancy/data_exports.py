"""Exports for data protection: everything about an organization, or about one person in it, as one archive of JSON lines.

    export                  format, organization, person, instant
    row ...                 by table and key, those that belong to a row after it: all, without digests, sealed texts, parts of secrets
    content ...             logged content of requests, opened; of an organization alone
    response ...            stored responses, opened; of an organization alone
    manifest                how many lines of each kind and table stand before it, and SHA-256 over them: without it, the archive is cut

Instants are integers of UTC microseconds, amounts integers of 10^-12 of the currency. Each page is read in a transaction of its own, so
that a slow reader holds up nothing; what changes meanwhile may be in the archive as it was before or after.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec

from tollway.control.tenancy import content_logs, stored_responses
from tollway.control.tenancy.content_logs import Vaults
from tollway.domain.faults import RESOURCE_UNKNOWN, Fault
from tollway.storage import data_exports as storage
from tollway.storage.database import TenantTx

FORMAT = "tollway-data-1"
"""Name of the format."""

Open = Callable[[], AbstractContextManager[TenantTx]]
"""Begins a reading transaction of the organization."""


@dataclass(slots=True)
class _Lines:
    """Encodes lines, and counts and hashes them."""

    counts: Counter[str] = field(default_factory=Counter)
    digest: Any = field(default_factory=hashlib.sha256)

    def encode(self, kind: str, fields: dict[str, Any], name: str | None = None) -> bytes:
        """Return a line. `name`: under which it is counted."""
        line = msgspec.json.encode({"type": kind, **fields}) + b"\n"
        self.counts[name or kind] += 1
        self.digest.update(line)
        return line


def export(open_tx: Open, vaults: Callable[[], Vaults], user_id: str | None, now: int) -> Iterator[bytes]:
    """The lines of an export, of a person (`user_id`) or of the whole organization. `vaults`: opens what content is sealed with; it is
    called where there is content. Raises RESOURCE_UNKNOWN for a person whom the organization never had, before the first line."""
    with open_tx() as tx:
        organization_id = tx.organization_id
        if user_id is not None and not storage.has_person(tx, user_id):
            raise Fault(RESOURCE_UNKNOWN)
    return _export(open_tx, vaults, organization_id, user_id, now)


def _export(open_tx: Open, vaults: Callable[[], Vaults], organization_id: str, user_id: str | None, now: int) -> Iterator[bytes]:
    lines = _Lines()
    head = {"format": FORMAT, "organization_id": organization_id, "user_id": user_id, "exported_at": now}
    yield lines.encode("export", head)
    for table in storage.list_tables():
        if user_id is not None and not storage.names_people(table):
            continue
        for rows in _read_pages(open_tx, table, partial(_read_own, table, user_id)):
            yield from _encode_rows(lines, table, rows)
            children = storage.CHILDREN.get(table.name, ()) if rows and user_id is None else ()
            parents = [storage.find_key(table, row) for row in rows]
            for child in children:
                for named in _read_pages(open_tx, child.table, partial(_read_children, child, parents)):
                    yield from _encode_rows(lines, child.table, named)
    if user_id is None:
        yield from _export_content(open_tx, vaults, lines, now)
    manifest = {"lines": dict(sorted(lines.counts.items())), "sha256": lines.digest.hexdigest()}
    yield lines.encode("manifest", manifest)


Read = Callable[[TenantTx, tuple[Any, ...] | None], list[storage.Row]]
"""Reads a page of rows after the place of one."""


def _read_own(table: storage.Table, user_id: str | None, tx: TenantTx, after: tuple[Any, ...] | None) -> list[storage.Row]:
    return storage.read_page(tx, table, user_id, after)


def _read_children(
    child: storage.Child, parents: Sequence[tuple[Any, ...]], tx: TenantTx, after: tuple[Any, ...] | None
) -> list[storage.Row]:
    return storage.read_children(tx, child, parents, after)


def _read_pages(open_tx: Open, table: storage.Table, read: Read) -> Iterator[list[storage.Row]]:
    after = None
    while True:
        with open_tx() as tx:
            rows = read(tx, after)
        yield rows
        if len(rows) < storage.PAGE_ROWS:
            return
        after = storage.find_place(table, rows[-1])


def _encode_rows(lines: _Lines, table: storage.Table, rows: Sequence[storage.Row]) -> Iterator[bytes]:
    for row in rows:
        yield lines.encode("row", {"table": str(table.name), "fields": storage.show_row(table, row)}, str(table.name))


def _export_content(open_tx: Open, vaults: Callable[[], Vaults], lines: _Lines, now: int) -> Iterator[bytes]:
    opened: Vaults | None = None
    after = None
    while True:
        with open_tx() as tx:
            sealed = content_logs.list_sealed(tx, after, now)
        for each in sealed:
            opened = opened or vaults()
            try:
                content = content_logs.unseal(each, opened)
            except ValueError:
                yield lines.encode("content", {"id": each.record.id, "is_readable": False})
                continue
            said = content.request.decode("utf-8", "replace")
            answer = None if content.answer is None else content.answer.decode("utf-8", "replace")
            yield lines.encode("content", {"id": each.record.id, "is_readable": True, "request": said, "answer": answer})
        if not sealed:
            break
        after = sealed[-1].record.id
    after = None
    while True:
        with open_tx() as tx:
            responses = stored_responses.list_sealed(tx, after, now)
        for stored in responses:
            opened = opened or vaults()
            try:
                text = stored_responses.unseal(stored, opened.inner).decode("utf-8", "replace")
            except ValueError:
                text = None
            yield lines.encode("response", {"id": stored.id, "is_readable": text is not None, "response": text})
        if not responses:
            return
        after = responses[-1].id
