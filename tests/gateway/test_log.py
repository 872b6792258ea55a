"""The log line of a completed request says what any request's line says, under the same names."""

import msgspec

from tollway.domain.usage import Outcome, Quantities, UsageSource
from tollway.telemetry import RequestLine, completed_line, json_members, timestamp

MEMBERS = {"organization_id": "org_1", "project_id": "proj_1", "key_id": "key_1", "endpoint": "chat/completions", "model": 'a"\\é'}


def test_a_completed_request_s_line_is_the_line_of_its_fields() -> None:
    line = completed_line(
        received_at=1_795_000_000_123_456,
        request_id="req_1",
        trace_id="f" * 32,
        duration_seconds=0.0123456,
        members=json_members(MEMBERS),
        deployment_id="dep_1",
        attempts=2,
        outcome=Outcome.COMPLETED,
        first_token_seconds=0.005,
        used=Quantities(1, 2, 3, 4),
        cost_pico=5,
        stream=True,
        usage_source=UsageSource.ENGINE_FINAL,
    )
    assert msgspec.json.decode(line, type=RequestLine, strict=True) == RequestLine(
        ts=timestamp(1_795_000_000_123_456),
        level="info",
        event="request",
        request_id="req_1",
        trace_id="f" * 32,
        status=200,
        duration_ms=12.346,
        upstream="dep_1",
        attempts=2,
        outcome="completed",
        ttft_ms=5.0,
        input_tokens=1,
        cached_input_tokens=2,
        output_tokens=3,
        reasoning_tokens=4,
        cost_pico=5,
        stream=True,
        usage_source="engine_final",
        **MEMBERS,
    )
