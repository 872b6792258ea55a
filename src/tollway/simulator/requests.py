"""Reading of request bodies: vLLM's request shapes, read leniently (unknown fields are ignored, as vLLM does), into one
`Order`.
"""

from dataclasses import dataclass
from typing import Literal

import msgspec

from tollway.simulator.tokens import TOKEN_BYTES, Prompt, chat_prompt, prompt_of_ids, prompt_of_text

Endpoint = Literal["chat", "completions", "embeddings", "messages", "rerank", "responses", "score"]

# vLLM has no such bound (or a very high one); here it keeps one request from asking for more events than a test
# would survive.
_CHOICES_MAX = 128


class Refused(Exception):
    """A request that vLLM answers with an error before it reaches the engine."""

    def __init__(self, status: int, kind: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message
        self.param = param


def bad_request(message: str, param: str | None = None) -> Refused:
    """Refusal of a request, vLLM's 400."""
    return Refused(400, "BadRequestError", message, param)


@dataclass(frozen=True, slots=True)
class Order:
    """Work that one request asks of the engine, whatever API it came through."""

    endpoint: Endpoint
    model: str | None  # as asked, with its fault suffix; None means the default model
    prompts: tuple[Prompt, ...]  # several only for completions, embeddings, reranking and scoring
    choices: int  # answers per prompt
    tokens_max: int | None
    ignore_eos: bool
    stream: bool
    include_usage: bool
    continuous_usage: bool
    cache_salt: str
    last_text: str  # what the echo model answers
    base64_floats: bool
    dimensions: int | None  # of embeddings; of a reranking, how many results are wanted
    prompt_tokens: int  # of all prompts


def read_order(endpoint: Endpoint, body: bytes) -> Order:
    """Parses a body. Raises Refused (400) for what vLLM would refuse."""
    try:
        if endpoint == "chat":
            return _chat(_CHAT.decode(body))
        if endpoint == "completions":
            return _completions(_COMPLETIONS.decode(body))
        if endpoint == "embeddings":
            return _embeddings(_EMBEDDINGS.decode(body))
        if endpoint == "rerank":
            return _pairs(endpoint, _RERANK.decode(body))
        if endpoint == "score":
            return _pairs(endpoint, _SCORE.decode(body))
        if endpoint == "responses":
            return _responses(_RESPONSES.decode(body))
        return _messages(_MESSAGES.decode(body))
    except msgspec.ValidationError as error:
        raise Refused(400, "Bad Request", str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refused(400, "Bad Request", f"JSON decode error: {error}") from None


def read_count_tokens(body: bytes) -> tuple[str, Prompt]:
    """The model and the prompt of a /v1/messages/count_tokens body. Raises Refused (400)."""
    try:
        asked = _MESSAGES.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refused(400, "Bad Request", str(error)) from None
    return asked.model, chat_prompt(_turns_of_messages(asked), _present(asked.tools))


def read_input_tokens(body: bytes) -> tuple[str, Prompt]:
    """The model and the prompt of a /v1/responses/input_tokens body. Raises Refused (400)."""
    try:
        asked = _RESPONSES.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refused(400, "Bad Request", str(error)) from None
    return asked.model or "", chat_prompt(_turns_of_responses(asked), _present(asked.tools))


def read_tokenize(body: bytes) -> Prompt:
    """The prompt of a /tokenize body: `{"prompt"}` or `{"messages"}`. Raises Refused (400)."""
    try:
        asked = _TOKENIZE.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refused(400, "Bad Request", str(error)) from None
    if asked.prompt is not None:
        return prompt_of_text(asked.prompt)
    if asked.messages is not None:
        return chat_prompt(((turn.role, _text(turn.content)) for turn in asked.messages), _present(asked.tools))
    raise bad_request("either prompt or messages is needed")


class _Part(msgspec.Struct):
    """One part of a message. All that is not text costs its placeholder."""

    type: str
    text: str | None = None


class _Turn(msgspec.Struct):
    role: str
    content: str | list[_Part] | None = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class _Chat(msgspec.Struct):
    messages: list[_Turn]
    model: str | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = 1
    stream: bool | None = False
    stream_options: _StreamOptions | None = None
    ignore_eos: bool = False
    cache_salt: str | None = None
    tools: msgspec.Raw = msgspec.Raw(b"null")


class _Completions(msgspec.Struct):
    prompt: str | list[str | int | list[int]]
    model: str | None = None
    max_tokens: int | None = 16  # the completions API's own default, unlike chat
    n: int | None = 1
    stream: bool | None = False
    stream_options: _StreamOptions | None = None
    ignore_eos: bool = False
    cache_salt: str | None = None


class _Embeddings(msgspec.Struct):
    input: str | list[str | int | list[int]]
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    cache_salt: str | None = None


class _Messages(msgspec.Struct):
    messages: list[_Turn]
    model: str
    max_tokens: int | None = None  # required, but not by count_tokens
    system: str | list[_Part] | None = None
    stream: bool | None = False
    tools: msgspec.Raw = msgspec.Raw(b"null")
    cache_salt: str | None = None


class _Item(msgspec.Struct):
    """One item of a conversation. All that is not a message costs its type, and the text that it carries."""

    type: str = "message"
    role: str = "tool"
    content: str | list[_Part] | None = None
    output: str | list[_Part] | None = None
    arguments: str | None = None


class _Responses(msgspec.Struct):
    input: str | list[_Item]
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    stream: bool | None = False
    store: bool | None = True
    tools: msgspec.Raw = msgspec.Raw(b"null")
    cache_salt: str | None = None


class _Document(msgspec.Struct):
    text: str


class _Rerank(msgspec.Struct):
    query: str
    documents: list[str | _Document]
    model: str | None = None
    top_n: int | None = None
    cache_salt: str | None = None


class _Score(msgspec.Struct):
    query: str = msgspec.field(name="text_1")
    documents: str | list[str] = msgspec.field(name="text_2")
    model: str | None = None
    top_n: int | None = None
    cache_salt: str | None = None


class _Tokenize(msgspec.Struct):
    prompt: str | None = None
    messages: list[_Turn] | None = None
    tools: msgspec.Raw = msgspec.Raw(b"null")


_CHAT = msgspec.json.Decoder(_Chat)
_COMPLETIONS = msgspec.json.Decoder(_Completions)
_EMBEDDINGS = msgspec.json.Decoder(_Embeddings)
_MESSAGES = msgspec.json.Decoder(_Messages)
_RERANK = msgspec.json.Decoder(_Rerank)
_SCORE = msgspec.json.Decoder(_Score)
_RESPONSES = msgspec.json.Decoder(_Responses)
_TOKENIZE = msgspec.json.Decoder(_Tokenize)


def _text(content: str | list[_Part] | None) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    return "".join(part.text if part.text is not None else f"<|{part.type}|>" for part in content)


def _present(tools: msgspec.Raw) -> bytes:
    data = bytes(tools)
    return b"" if data == b"null" else data


def _chat(body: _Chat) -> Order:
    if not body.messages:
        raise bad_request("messages must not be empty", "messages")
    limit = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    usage, continuous = _usage_wanted(body.stream, body.stream_options)
    turns = [(turn.role, _text(turn.content)) for turn in body.messages]
    prompt = chat_prompt(turns, _present(body.tools))
    return Order(
        endpoint="chat",
        model=body.model,
        prompts=(prompt,),
        prompt_tokens=prompt.tokens,
        choices=_choices(body.n),
        tokens_max=_tokens_max(limit),
        ignore_eos=body.ignore_eos,
        stream=bool(body.stream),
        include_usage=usage,
        continuous_usage=continuous,
        cache_salt=body.cache_salt or "",
        last_text=turns[-1][1],
        base64_floats=False,
        dimensions=None,
    )


def _completions(body: _Completions) -> Order:
    prompts, last_text = _prompts(body.prompt, "prompt")
    usage, continuous = _usage_wanted(body.stream, body.stream_options)
    return Order(
        endpoint="completions",
        model=body.model,
        prompts=prompts,
        prompt_tokens=sum(prompt.tokens for prompt in prompts),
        choices=_choices(body.n),
        tokens_max=_tokens_max(body.max_tokens),
        ignore_eos=body.ignore_eos,
        stream=bool(body.stream),
        include_usage=usage,
        continuous_usage=continuous,
        cache_salt=body.cache_salt or "",
        last_text=last_text,
        base64_floats=False,
        dimensions=None,
    )


def _embeddings(body: _Embeddings) -> Order:
    prompts, _ = _prompts(body.input, "input")
    if body.dimensions is not None and not 1 <= body.dimensions <= 4096:
        raise bad_request("dimensions must be between 1 and 4096", "dimensions")
    return Order(
        endpoint="embeddings",
        model=body.model,
        prompts=prompts,
        prompt_tokens=sum(prompt.tokens for prompt in prompts),
        choices=1,
        tokens_max=None,
        ignore_eos=False,
        stream=False,
        include_usage=True,
        continuous_usage=False,
        cache_salt=body.cache_salt or "",
        last_text="",
        base64_floats=body.encoding_format == "base64",
        dimensions=body.dimensions,
    )


def _messages(body: _Messages) -> Order:
    if not body.messages:
        raise bad_request("messages must not be empty", "messages")
    if body.max_tokens is None:
        raise bad_request("max_tokens is required", "max_tokens")
    turns = _turns_of_messages(body)
    prompt = chat_prompt(turns, _present(body.tools))
    return Order(
        endpoint="messages",
        model=body.model,
        prompts=(prompt,),
        prompt_tokens=prompt.tokens,
        choices=1,
        tokens_max=_tokens_max(body.max_tokens),
        ignore_eos=False,
        stream=bool(body.stream),
        include_usage=True,  # vLLM turns both on inside for this API
        continuous_usage=True,
        cache_salt=body.cache_salt or "",
        last_text=turns[-1][1],
        base64_floats=False,
        dimensions=None,
    )


def _pairs(endpoint: Endpoint, body: _Rerank | _Score) -> Order:
    """Return the order of a request that reads each of its documents together with one text."""
    documents = [body.documents] if isinstance(body.documents, str) else body.documents
    if not documents:
        raise bad_request("documents must not be empty", "documents")
    texts = [document if isinstance(document, str) else document.text for document in documents]
    prompts = tuple(prompt_of_text(body.query + text) for text in texts)
    return Order(
        endpoint=endpoint,
        model=body.model,
        prompts=prompts,
        prompt_tokens=sum(prompt.tokens for prompt in prompts),
        choices=1,
        tokens_max=None,
        ignore_eos=False,
        stream=False,
        include_usage=True,
        continuous_usage=False,
        cache_salt=body.cache_salt or "",
        last_text="",
        base64_floats=False,
        dimensions=body.top_n,
    )


def _turns_of_responses(body: _Responses) -> list[tuple[str, str]]:
    turns = [] if body.instructions is None else [("system", body.instructions)]
    if isinstance(body.input, str):
        turns.append(("user", body.input))
    else:
        turns += [(item.role, _text(item.content) + _text(item.output) + (item.arguments or "")) for item in body.input]
    return turns


def _responses(body: _Responses) -> Order:
    if not body.input:
        raise bad_request("input must not be empty", "input")
    if body.store:
        raise bad_request("This engine stores no responses.", "store")  # stricter than vLLM, so that tests see what is asked for
    turns = _turns_of_responses(body)
    prompt = chat_prompt(turns, _present(body.tools))
    return Order(
        endpoint="responses",
        model=body.model,
        prompts=(prompt,),
        prompt_tokens=prompt.tokens,
        choices=1,
        tokens_max=_tokens_max(body.max_output_tokens),
        ignore_eos=False,
        stream=bool(body.stream),
        include_usage=True,  # in the last event
        continuous_usage=False,
        cache_salt=body.cache_salt or "",
        last_text=turns[-1][1],
        base64_floats=False,
        dimensions=None,
    )


def _turns_of_messages(body: _Messages) -> list[tuple[str, str]]:
    system = [] if body.system is None else [("system", _text(body.system))]
    return system + [(turn.role, _text(turn.content)) for turn in body.messages]


def _prompts(asked: str | list[str | int | list[int]], param: str) -> tuple[tuple[Prompt, ...], str]:
    """All prompts, and the text of the last one. A list of numbers is one prompt of token ids."""
    if isinstance(asked, str):
        return (prompt_of_text(asked),), asked
    if not asked:
        raise bad_request(f"{param} must not be empty", param)
    if isinstance(asked[0], int):
        ids = [item for item in asked if isinstance(item, int)]
        if len(ids) != len(asked):
            raise bad_request(f"{param} must not mix token ids with other things", param)
        return (prompt_of_ids(ids),), ""
    prompts: list[Prompt] = []
    for item in asked:
        if isinstance(item, int) or item == []:
            raise bad_request(f"{param} must not mix token ids with other things", param)
        prompts.append(prompt_of_text(item) if isinstance(item, str) else prompt_of_ids(item))
    last = asked[-1]
    return tuple(prompts), last if isinstance(last, str) else ""


def _usage_wanted(stream: bool | None, options: _StreamOptions | None) -> tuple[bool, bool]:
    if options is None:
        return not stream, False
    if not stream:
        raise bad_request("Stream options can only be defined when `stream=True`.", "stream_options")
    return bool(options.include_usage), bool(options.include_usage and options.continuous_usage_stats)


def _choices(n: int | None) -> int:
    if n is None:
        return 1
    if not 1 <= n <= _CHOICES_MAX:
        raise bad_request(f"n must be between 1 and {_CHOICES_MAX}, got {n}.", "n")
    return n


def _tokens_max(limit: int | None) -> int | None:
    if limit is not None and limit < 1:
        raise bad_request(f"max_tokens must be at least 1, got {limit}.", "max_tokens")
    return limit


def echo_of(order: Order) -> bytes:
    """Return what the echo model says: the last message, or a word if there is none."""
    return order.last_text.encode("utf-8", "replace") or b"echo"


def ids_of(prompt: Prompt) -> list[int]:
    """The token ids of a prompt, as /tokenize shows them: the value of each token's bytes."""
    data = prompt.data
    return [int.from_bytes(data[i : i + TOKEN_BYTES], "little") for i in range(0, max(1, len(data)), TOKEN_BYTES)]
