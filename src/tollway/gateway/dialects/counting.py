"""Translation of an API that counts the tokens of a request to tokenize, for engines whose tokenize applies the chat template (vLLM). The
request becomes a chat completion first, so that what is counted is the prompt of that.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

import msgspec

from tollway.domain import faults
from tollway.domain.billing_classes import Quantities
from tollway.domain.faults import Fault
from tollway.gateway.dialects import tokenize
from tollway.gateway.dialects.answers import Answer, AnswerContext
from tollway.gateway.dialects.dialect import Translation
from tollway.gateway.dialects.engine_json import decode
from tollway.gateway.dialects.openai_stream import OpenAIStream

TranslateRequest = Callable[[Mapping[str, Any], Collection[str]], dict[str, Any]]
"""Makes the body of a chat completion, as `Translation.translate` does."""

_PROMPT_FIELDS: Final = ("model", "messages", "tools")
"""Fields of a chat completion that its prompt is made of, as tokenize has them."""


class _Count(msgspec.Struct):
    count: int


_count = msgspec.json.Decoder(_Count)


def count_as_tokenize(translate: TranslateRequest, render_count: Callable[[int], bytes]) -> Translation:
    """Return the translation of an API whose requests `translate` makes chat completions of. `render_count`: the body of its answer."""

    def translate_to_tokenize(asked: Mapping[str, Any], dropped: Collection[str]) -> dict[str, Any]:
        chat = translate(asked, dropped)
        return {name: chat[name] for name in _PROMPT_FIELDS if name in chat} | {"add_generation_prompt": True}

    def read_answer(body: bytes, context: AnswerContext) -> Answer:
        counted = decode(_count, tokenize.read_answer(body, context).body, "answer").count
        if counted < 0:
            raise Fault(faults.UPSTREAM_INVALID, detail="a count below zero")
        return Answer(render_count(counted), Quantities(), None)

    return Translation(target=tokenize.TOKENIZE, translate=translate_to_tokenize, read_answer=read_answer, new_stream=OpenAIStream)
