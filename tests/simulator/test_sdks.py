"""The official SDKs against the simulator: what they accept here, they accept from vLLM."""

from collections.abc import AsyncIterator

import anthropic
import openai
import pytest

from tests.simulator.running import Running

PROMPT = "Say something, please."


@pytest.fixture
async def client(sim: Running) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{sim.url}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture
async def claude(sim: Running) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=sim.url, api_key="any", max_retries=0) as claude:
        yield claude


async def test_openai_chat(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="sim-small", messages=[{"role": "user", "content": PROMPT}], max_tokens=6)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 6
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 0


async def test_openai_chat_stream(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="sim-echo",
        messages=[{"role": "user", "content": PROMPT}],
        stream=True,
        stream_options={"include_usage": True},
    )
    text, usage = "", None
    async for chunk in stream:
        usage = chunk.usage or usage
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
    assert text == PROMPT
    assert usage is not None
    assert usage.completion_tokens == -(-len(PROMPT) // 4)


async def test_openai_completions_embeddings_models(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(model="sim-small", prompt=PROMPT, max_tokens=3)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3
    coded = await client.embeddings.create(model="sim-small", input=[PROMPT, "x"])  # base64 on the wire
    plain = await client.embeddings.create(model="sim-small", input=[PROMPT, "x"], encoding_format="float")
    assert [item.embedding for item in coded.data] == [item.embedding for item in plain.data]
    assert [model.id async for model in client.models.list()] == ["sim-small", "sim-echo"]


async def test_openai_errors(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        await client.chat.completions.create(model="nope", messages=[{"role": "user", "content": PROMPT}])
    with pytest.raises(openai.RateLimitError):
        await client.chat.completions.create(model="sim-small!status@429", messages=[{"role": "user", "content": PROMPT}])
    stream = await client.chat.completions.create(model="sim-small!error@2", messages=[{"role": "user", "content": PROMPT}], stream=True)
    with pytest.raises(openai.APIError, match="EngineCore"):
        async for _ in stream:
            pass


async def test_openai_sees_a_cut(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(model="sim-small!cut@2:fin", messages=[{"role": "user", "content": PROMPT}], stream=True)
    with pytest.raises(openai.APIConnectionError):
        async for _ in stream:
            pass


async def test_anthropic_messages(claude: anthropic.AsyncAnthropic) -> None:
    answer = await claude.messages.create(model="sim-echo", max_tokens=100, messages=[{"role": "user", "content": PROMPT}], system="Brief.")
    (block,) = answer.content
    assert block.type == "text"
    assert block.text == PROMPT
    assert answer.stop_reason == "end_turn"
    counted = await claude.messages.count_tokens(model="sim-echo", messages=[{"role": "user", "content": PROMPT}], system="Brief.")
    assert counted.input_tokens == answer.usage.input_tokens


async def test_anthropic_stream(claude: anthropic.AsyncAnthropic) -> None:
    async with claude.messages.stream(
        model="sim-echo!reasoning@2", max_tokens=100, messages=[{"role": "user", "content": PROMPT}]
    ) as stream:
        text = "".join([piece async for piece in stream.text_stream])
        final = await stream.get_final_message()
    assert text == PROMPT
    assert [block.type for block in final.content] == ["thinking", "text"]
    assert final.usage.output_tokens == 2 + -(-len(PROMPT) // 4)


async def test_anthropic_errors(claude: anthropic.AsyncAnthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="does not exist"):
        await claude.messages.create(model="nope", max_tokens=1, messages=[{"role": "user", "content": PROMPT}])
    with pytest.raises(anthropic.APIStatusError, match="EngineCore"):
        async with claude.messages.stream(
            model="sim-small!error@2", max_tokens=9, messages=[{"role": "user", "content": PROMPT}]
        ) as stream:
            await stream.get_final_message()
