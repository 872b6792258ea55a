"""Events of the audit trail as lines of CEF."""

from typing import Any

import tollway
from tollway.cli.audit import format_cef

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
