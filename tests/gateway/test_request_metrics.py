"""Histograms of requests, as Prometheus sees them."""

import pytest

from tests.fakes import Upstream
from tests.gateway.harness import Served, chat, completion, gateway, healthy, post, whole

LABELS = '{gen_ai_operation_name="chat",gen_ai_request_model="m"}'


@pytest.mark.parametrize(("stream", "counted"), [(True, 1.0), (False, 0.0)])
async def test_time_per_output_token_is_of_streams_alone_because_other_answers_come_at_once(stream: bool, counted: float) -> None:
    upstream = Upstream(healthy("Hello", " world") if stream else [whole(completion())])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running:
        assert (await post(running.port, chat(stream=stream))).status == 200
        page = running.plane.metrics.render().decode()
    assert f"gen_ai_server_request_duration_seconds_count{LABELS} 1.0" in page
    assert f"gen_ai_server_time_per_output_token_seconds_count{LABELS} {counted}" in page
