"""Realtime sessions of the simulator, by the official client: what it says, what it counts, and that the truth log has each response."""

from pathlib import Path

import openai
import pytest
from openai.types.realtime import RealtimeServerEvent

from tests.simulator.running import Running, simulator
from tollway.simulator import truth


async def converse(sim: Running, model: str, *texts: str) -> list[RealtimeServerEvent]:
    """The events of a session in which these texts are said and one response is asked for."""
    found: list[RealtimeServerEvent] = []
    client = openai.AsyncOpenAI(base_url=f"{sim.url}/v1", websocket_base_url=f"{sim.url.replace('http', 'ws', 1)}/v1", api_key="any")
    async with client, client.realtime.connect(model=model) as connection:
        for text in texts:
            item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
            await connection.conversation.item.create(item=item)  # type: ignore[arg-type]
        await connection.input_audio_buffer.append(audio="AAAA")
        await connection.input_audio_buffer.commit()
        await connection.response.create(response={"max_output_tokens": 3})
        async for event in connection:
            found.append(event)
            if event.type in ("response.done", "error"):
                break
    return found


async def test_official_client_gets_a_response_that_stands_in_the_truth_log(tmp_path: Path) -> None:
    with simulator(tmp_path / "truth") as sim:
        events = await converse(sim, "sim-small", "Hello")
        done = events[-1]
        assert done.type == "response.done" and done.response.status == "completed" and done.response.usage is not None
        deltas = [event for event in events if event.type == "response.output_text.delta"]
        assert len(deltas) == 3 == done.response.usage.output_tokens
    (record,) = truth.read(tmp_path / "truth")
    assert (record.completion_tokens, record.prompt_tokens) == (3, done.response.usage.input_tokens)


async def test_plan_of_faults_breaks_the_connection(tmp_path: Path) -> None:
    with simulator(tmp_path / "truth") as sim, pytest.raises(Exception, match=r"close|received"):
        await converse(sim, "sim-small!cut@1", "Hello")
