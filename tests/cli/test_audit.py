"""Events of the audit trail as lines of CEF."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import tollway
from tollway.cli.app import run
from tollway.cli.operation import audit
from tollway.cli.operation.audit import format_cef

EVENT: dict[str, Any] = {
    "id": "audit_1",
    "type": "api_key.deleted",
    "effective_at": 1_790_000_000,
    "actor": {"type": "api_key", "api_key": {"id": "key_1", "type": "user"}},
    "project": None,
    "record": {
        "sequence": 7,
        "operation": "delete_project_key",
        "actor_kind": "admin_key",
        "address": "192.0.2.7",
        "request_id": "req_1",
        "target_kind": "api_key",
        "target_id": "key_2",
        "changes": [{"kind": "api_key", "id": "key_2", "before": {"name": "a=b\\c|d\nsrc=10.0.0.1"}, "after": {}}],
        "omitted": 0,
        "hash": "ab" * 32,
    },
}


def test_event_in_cef_has_header_and_fields() -> None:
    line = format_cef(EVENT)
    assert line.startswith(f"CEF:0|Tollway|Tollway|{tollway.__version__}|api_key.deleted|delete_project_key|6|rt=1790000000000 ")
    assert " externalId=audit_1 suser=key_1 spriv=admin_key src=192.0.2.7 " in line
    assert "cs3" not in line, "an event without a project has no such field"
    assert " cs2Label=target cs2=api_key:key_2 " in line
    record = {**EVENT["record"], "target_kind": "", "target_id": ""}
    assert "cs2" not in format_cef({**EVENT, "record": record}), "a read of a list has no target"


def test_text_of_a_tenant_in_cef_adds_no_line_and_no_field() -> None:
    line = format_cef(EVENT)
    assert "\n" not in line
    message = line[line.index("msg=") :]
    assert "a\\=b" in message and "src\\=10.0.0.1" in message and " src=10" not in line


def test_separator_in_the_header_of_cef_is_escaped() -> None:
    assert "|a\\|b\\\\|" in format_cef({**EVENT, "type": "a|b\\"})


class Trail:
    """A control plane with records of these sequence numbers, as `_iterate_newer` asks for them."""

    def __init__(self, *sequences: int) -> None:
        self.sequences = list(sequences)

    def get(self, path: str) -> dict[str, Any]:
        after = int(path.partition("after_sequence=")[2])
        newer = [each for each in self.sequences if each > after]
        return {"data": [{**EVENT, "record": {**EVENT["record"], "sequence": each}} for each in newer[:2]], "has_more": len(newer) > 2}


@contextmanager
def connected(trail: Trail) -> Iterator[tuple[Trail, str]]:
    yield trail, "/organization/audit_logs"


def test_export_with_a_cursor_writes_what_is_new_oldest_first_and_says_what_was_removed_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trail = Trail(1, 2, 3, 4, 5)
    monkeypatch.setattr(audit, "_connect", lambda *_: connected(trail))
    cursor, lines = tmp_path / "cursor", tmp_path / "lines"

    def export() -> list[int]:
        assert run(["audit", "export", "--cursor", str(cursor), "-f", str(lines)]) == 0
        return [json.loads(line)["record"]["sequence"] for line in lines.read_text().splitlines()]

    assert (export(), export()) == ([1, 2, 3, 4, 5], [])
    trail.sequences = [6]
    assert export() == [6] and not capsys.readouterr().err
    trail.sequences = [9, 10]
    assert export() == [9, 10] and "records 7 to 8 were removed" in capsys.readouterr().err
    cursor.write_text("nonsense")
    assert run(["audit", "export", "--cursor", str(cursor)]) == 2
