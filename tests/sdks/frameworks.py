"""`python frameworks.py FRAMEWORK URL KEY`: what a program does through a framework, done to a gateway.

Runs under the interpreter of the environment that holds the framework, and uses nothing of ours. Prints one JSON object a row: its name,
and what went wrong or null.
"""

import asyncio
import json
import sys
import traceback
from collections.abc import Callable
from typing import Any

Row = Callable[[], None]
ASK = "Say something."
VECTOR = [0.5, -1.0, 0.25]
TOOL = {"type": "function", "function": {"name": "toll", "parameters": {"type": "object", "properties": {"road": {"type": "string"}}}}}


def list_langchain(url: str, key: str) -> list[Row]:
    """Return the rows of LangChain: its models for OpenAI and Anthropic, and embeddings, which it sends as token ids or text."""
    from langchain_anthropic import ChatAnthropic
    from langchain_openai import ChatOpenAI, OpenAIEmbeddings

    chat = ChatOpenAI(model="m", base_url=f"{url}/v1", api_key=key, max_retries=0)
    claude = ChatAnthropic(model="m", base_url=url, api_key=key, max_retries=0)

    def plain() -> None:
        answer = chat.invoke(ASK)
        assert answer.content == "Hello" and answer.usage_metadata["total_tokens"] == 7

    def stream() -> None:
        assert "".join(part.content for part in chat.stream(ASK)) == "Hello"

    def tools() -> None:
        assert chat.bind_tools([TOOL]).invoke(ASK).tool_calls[0]["args"] == {"road": "A1"}

    def structured() -> None:
        schema = {"title": "toll", "type": "object", "properties": {"road": {"type": "string"}, "cents": {"type": "integer"}}}
        answer = chat.with_structured_output(schema, method="json_schema").invoke(ASK)
        assert answer == {"road": "A1", "cents": 250}

    def responses() -> None:
        answer = ChatOpenAI(model="m", base_url=f"{url}/v1", api_key=key, max_retries=0, use_responses_api=True).invoke(ASK)
        assert answer.text == "Hello" and answer.usage_metadata["total_tokens"] == 7

    def embeddings() -> None:
        model = OpenAIEmbeddings(model="m", base_url=f"{url}/v1", api_key=key, check_embedding_ctx_length=False)
        assert model.embed_documents(["a", "b"]) == [VECTOR, VECTOR]

    def claude_plain() -> None:
        assert claude.invoke(ASK).content == "Hello"

    def claude_stream() -> None:
        assert "".join(part.text for part in claude.stream(ASK)) == "Hello"

    def claude_tools() -> None:
        assert claude.bind_tools([TOOL]).invoke(ASK).tool_calls[0]["args"] == {"road": "A1"}

    return [plain, stream, tools, structured, responses, embeddings, claude_plain, claude_stream, claude_tools]


def list_pydantic_ai(url: str, key: str) -> list[Row]:
    """Return the rows of pydantic-ai: its models for OpenAI's chat and Anthropic."""
    from pydantic_ai import Agent
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
    from pydantic_ai.providers.anthropic import AnthropicProvider
    from pydantic_ai.providers.openai import OpenAIProvider

    chat = Agent(OpenAIChatModel("m", provider=OpenAIProvider(base_url=f"{url}/v1", api_key=key)))

    def plain() -> None:
        assert chat.run_sync(ASK).output == "Hello"

    def stream() -> None:
        async def read() -> str:
            async with chat.run_stream(ASK) as running:
                return str(await running.get_output())

        assert asyncio.run(read()) == "Hello"

    def responses() -> None:
        agent = Agent(OpenAIResponsesModel("m", provider=OpenAIProvider(base_url=f"{url}/v1", api_key=key)))
        assert agent.run_sync(ASK).output == "Hello"

    def claude_plain() -> None:
        from anthropic import AsyncAnthropic

        client = AsyncAnthropic(base_url=url, api_key=key, max_retries=0)
        agent = Agent(AnthropicModel("m", provider=AnthropicProvider(anthropic_client=client)))
        assert agent.run_sync(ASK).output == "Hello"

    return [plain, stream, responses, claude_plain]


def list_llama_index(url: str, key: str) -> list[Row]:
    """Return the rows of LlamaIndex."""
    from llama_index.core.llms import ChatMessage
    from llama_index.embeddings.openai import OpenAIEmbedding
    from llama_index.llms.openai_like import OpenAILike

    settings: dict[str, Any] = {"model": "m", "api_base": f"{url}/v1", "api_key": key, "context_window": 4096, "max_retries": 0}
    model = OpenAILike(**settings, is_chat_model=True)

    def plain() -> None:
        assert model.chat([ChatMessage(role="user", content=ASK)]).message.content == "Hello"

    def stream() -> None:
        *_, last = model.stream_chat([ChatMessage(role="user", content=ASK)])
        assert last.message.content == "Hello"

    def completions() -> None:
        assert OpenAILike(**settings, is_chat_model=False).complete(ASK).text == "Hello"

    def embeddings() -> None:
        embedding = OpenAIEmbedding(model_name="m", api_base=f"{url}/v1", api_key=key)
        assert embedding.get_text_embedding_batch(["a", "b"]) == [VECTOR, VECTOR]

    return [plain, stream, completions, embeddings]


def list_instructor(url: str, key: str) -> list[Row]:
    """Return the rows of instructor: answers of a given type, by a schema."""
    import instructor
    import openai
    from pydantic import BaseModel

    class Toll(BaseModel):
        road: str
        cents: int = 0

    wanted = {"road": "A1", "cents": 250}
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
    ask: Any = [{"role": "user", "content": ASK}]

    def by_schema() -> None:
        made = instructor.from_openai(client, mode=instructor.Mode.JSON_SCHEMA)
        assert made.chat.completions.create(model="m", response_model=Toll, messages=ask, max_retries=0).model_dump() == wanted

    def by_json() -> None:
        made = instructor.from_openai(client, mode=instructor.Mode.JSON)
        assert made.chat.completions.create(model="m", response_model=Toll, messages=ask, max_retries=0).model_dump() == wanted

    return [by_schema, by_json]


def list_litellm(url: str, key: str) -> list[Row]:
    """Return the rows of litellm as a client of OpenAI's and Anthropic's APIs."""
    import litellm

    litellm.suppress_debug_info = True  # it would be printed between the rows
    ask: Any = [{"role": "user", "content": ASK}]
    openai: dict[str, Any] = {"model": "openai/m", "api_base": f"{url}/v1", "api_key": key, "num_retries": 0}
    claude: dict[str, Any] = {"model": "anthropic/m", "api_base": url, "api_key": key, "num_retries": 0, "max_tokens": 9}

    def plain() -> None:
        answer = litellm.completion(messages=ask, **openai)
        assert answer.choices[0].message.content == "Hello" and answer.usage.total_tokens == 7

    def stream() -> None:
        parts = litellm.completion(messages=ask, stream=True, **openai)
        assert "".join(part.choices[0].delta.content or "" for part in parts) == "Hello"

    def tools() -> None:
        call = litellm.completion(messages=ask, tools=[TOOL], **openai).choices[0].message.tool_calls[0]
        assert json.loads(call.function.arguments) == {"road": "A1"}

    def embeddings() -> None:
        answer = litellm.embedding(input=["a", "b"], encoding_format="float", **openai)
        assert [each["embedding"] for each in answer.data] == [VECTOR, VECTOR]

    def errors() -> None:
        try:
            litellm.completion(messages=ask, **(openai | {"model": "openai/absent"}))
        except litellm.NotFoundError:
            return
        raise AssertionError("no NotFoundError")

    def claude_plain() -> None:
        assert litellm.completion(messages=ask, **claude).choices[0].message.content == "Hello"

    def claude_stream() -> None:
        parts = litellm.completion(messages=ask, stream=True, **claude)
        assert "".join(part.choices[0].delta.content or "" for part in parts) == "Hello"

    return [plain, stream, tools, embeddings, errors, claude_plain, claude_stream]


def list_agents(url: str, key: str) -> list[Row]:
    """Return the rows of OpenAI's Agents SDK, whose default is the responses API."""
    from agents import Agent, OpenAIResponsesModel, RunConfig, Runner, function_tool
    from openai import AsyncOpenAI

    config = RunConfig(tracing_disabled=True)

    def new_agent(**more: Any) -> Any:  # each run has an event loop of its own, and so a client
        model = OpenAIResponsesModel("m", AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0))
        return Agent(name="a", instructions="Be brief.", model=model, **more)

    def plain() -> None:
        assert Runner.run_sync(new_agent(), ASK, run_config=config).final_output == "Hello"

    def stream() -> None:
        async def read() -> str:
            running = Runner.run_streamed(new_agent(), ASK, run_config=config)
            async for _ in running.stream_events():
                pass
            return str(running.final_output)

        assert asyncio.run(read()) == "Hello"

    def tools() -> None:
        roads = []

        @function_tool
        def toll(road: str) -> str:
            """Return the toll of a road."""
            roads.append(road)
            return "250"

        agent = new_agent(tools=[toll], tool_use_behavior="stop_on_first_tool")
        assert Runner.run_sync(agent, ASK, run_config=config).final_output == "250"
        assert roads == ["A1"]

    return [plain, stream, tools]


FRAMEWORKS: dict[str, Callable[[str, str], list[Row]]] = {
    "agents": list_agents,
    "langchain": list_langchain,
    "pydantic-ai": list_pydantic_ai,
    "llama-index": list_llama_index,
    "instructor": list_instructor,
    "litellm": list_litellm,
}


def main(framework: str, url: str, key: str) -> None:
    """Do every row of a framework."""
    for row in FRAMEWORKS[framework](url, key):
        try:
            row()
            wrong = None
        except Exception:  # whatever a framework raises is the answer of this row
            wrong = traceback.format_exc(limit=-3)
        print(json.dumps({"row": row.__name__, "wrong": wrong}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
