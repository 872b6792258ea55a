"""An engine's answer as the dialects see it: what reading it needs to know of the request, the answer as read, and its usage report."""

from collections.abc import Mapping
from typing import Any

import msgspec

from tollway.domain.billing_classes import NOTHING, Quantities
from tollway.domain.faults import Fault
from tollway.domain.usage import Anomaly, UsageSource
from tollway.engines.profile import EngineProfile
from tollway.gateway.dialects.conversation import Conversation


class Measure(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Quantities that a request with media is expected to use, and the most that it can, as far as its body shows.

    `characters`: of text to be spoken, exactly. `seconds`: of sound, begun ones included. `file_bytes`: of its files. `answers_text`: its
    answer is plain text rather than JSON. `pixels`: of all images that it asks for together; 0 if it does not state their size.
    """

    input_tokens: int = 0
    input_tokens_max: int = 0
    output_tokens: int = 0
    output_tokens_max: int = 0
    characters: int = 0
    seconds: int = 0
    seconds_max: int = 0
    file_bytes: int = 0
    answers_text: bool = False
    pixels: int = 0


class AnswerContext(msgspec.Struct, frozen=True, gc=False):
    """Properties of a request that are needed to read its answer.

    `engine`: profile of the engine that answers. `prompts`: how many it was asked; `sequences`: how many outputs it generates; of several,
    running totals are those of one each. `upstream_model`: its name of the model, which becomes `public_model`. `input_tokens_max`,
    `output_tokens_max`: most tokens of all prompts and of all sequences together; None if nothing bounds the output. `hide_usage`: the
    client did not ask for usage at the end of its stream; `hide_continuous`: nor for a running one. `counting`: the engine was not asked
    for running usage. `repeated`: fields of the request that a translated answer repeats. `measure`: of a request with media, else None.
    `conversation`: that of a response that is stored or continues a stored one.
    """

    engine: EngineProfile
    upstream_model: str
    public_model: str
    input_tokens_max: int
    output_tokens_max: int | None
    prompts: int
    sequences: int
    hide_usage: bool
    hide_continuous: bool
    counting: bool
    repeated: Mapping[str, Any] | None = None
    measure: Measure | None = None
    conversation: Conversation | None = None


class Answer(msgspec.Struct, frozen=True):
    """A whole (non-streaming) answer of status 200. `body`: what to send. `used`: None if the engine did not report it. `anomaly`: what was
    wrong with its report, None for nothing. `source`: where `used` comes from. `content_type`: of an answer that is not JSON, else
    empty. `checked`: what a guardrail is shown in place of a body that encodes its text, else empty. `fault`: what the client receives in
    place of a body that is of no use to it; what was used is billed as that of an answer that a guardrail denied."""

    body: bytes
    used: Quantities | None
    anomaly: Anomaly | None
    source: UsageSource = UsageSource.ENGINE_FINAL
    content_type: bytes = b""
    checked: bytes = b""
    fault: Fault | None = None


class UsageReport(msgspec.Struct, frozen=True, gc=False):
    """A usage report as far as it can be believed.

    `used`: disjoint quantities, 0 where there is nothing to believe. `anomaly`: INVALID if some of it cannot be true, else None.
    `has_input`, `has_output`: whether the tokens of the prompt and of the answer were reported believably; if not, what else is known of
    them stands.
    """

    used: Quantities
    anomaly: Anomaly | None = None
    has_input: bool = True
    has_output: bool = True


UNBELIEVABLE = UsageReport(NOTHING, Anomaly.INVALID, has_input=False, has_output=False)
"""A report of which nothing can be believed."""
