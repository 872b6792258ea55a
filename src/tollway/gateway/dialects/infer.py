"""The Open Inference Protocol (KServe's second, REST): POST /v2/models/{model}/infer, tensors in and tensors out.

The path names the model, so the gateway sets it as the first member of the body (`begin_body`), from where every phase reads it as in any
other API; an engine gets it in the path again. A version of a model (`/v2/models/{model}/versions/{version}`) is a model of the catalog
whose name ends so: what has a price and what a key may use is never decided by an engine.

Tensors are read as far as bounds and bills need it. A request costs its own price, and tokens where outputs say how many there were: the
tensors `num_input_tokens` and `num_output_tokens` of Triton's vLLM backend, or parameters of the same names.

What is refused beside tensors whose data do not fit their shape: data in shared memory, which is the engine's host's; sequences, whose ids
would be shared by tenants; priorities and timeouts of the engine's queue; and binary data, which the gRPC port takes.
"""

import re
from collections.abc import Mapping
from math import prod
from typing import Any, Final
from urllib.parse import unquote_to_bytes

import msgspec

from tollway.domain import faults
from tollway.domain.billing_classes import Quantities
from tollway.domain.catalog import Endpoint
from tollway.domain.faults import Fault
from tollway.domain.usage import TOKENS_MAX
from tollway.gateway.dialects import fields
from tollway.gateway.dialects.answers import Answer, AnswerContext, Measure, UsageReport
from tollway.gateway.dialects.dialect import PLAIN_PROMPT_TOKENS_ADDED, Dialect
from tollway.gateway.dialects.engine_errors import check_no_error
from tollway.gateway.dialects.engine_json import ABSENT, decode, is_absent
from tollway.gateway.dialects.engine_usage import check_report
from tollway.gateway.dialects.fields import Check
from tollway.gateway.dialects.openai_stream import OpenAIStream
from tollway.gateway.media.bounds import MediaBounds
from tollway.wire import bodies

BASE: Final = b"/v2"
MODELS: Final = b"/v2/models/"
PATH: Final = re.compile(rb"/v2/models/([^?]+?)(/infer|/ready)?")
"""Paths of one model: its metadata, or what follows its name."""

TENSORS_MAX: Final = 256
"""Inputs or outputs of one request. Models have a few; backends of language models about thirty."""
DIMENSIONS_MAX: Final = 16
NAME_CHARACTERS_MAX: Final = 256
DATATYPES: Final[Mapping[str, int]] = {
    "BOOL": 1, "UINT8": 1, "UINT16": 2, "UINT32": 4, "UINT64": 8, "INT8": 1, "INT16": 2, "INT32": 4, "INT64": 8,
    "FP16": 2, "BF16": 2, "FP32": 4, "FP64": 8, "BYTES": 0,
}  # fmt: skip
"""Bytes of an element by datatype; 0 for those that state their own length."""
INPUT_TOKENS: Final = "num_input_tokens"
OUTPUT_TOKENS: Final = "num_output_tokens"
OUTPUT_TOKENS_MAX: Final = 131_072
"""Most output tokens of a request, whose own bound stands in tensors that each backend names otherwise."""
OUTPUT_TOKENS_TYPICAL: Final = 256
"""Output tokens that limits expect before a request has ended."""

_BLANKS: Final = b" \t\r\n"
_REFUSED: Final = ("shared_memory_", "sequence_", "binary_data", "triton_")
_REFUSED_NAMES: Final = frozenset({"priority", "timeout"})


def begin_body(path: bytes) -> bytes:
    """Return what the body of a request to a path of PATH begins with in place of its first brace: the model that the path names."""
    found = PATH.fullmatch(path)
    name = b"" if found is None else unquote_to_bytes(found[1])
    return b'{"model":' + msgspec.json.encode(name.decode("utf-8", "replace")) + b","


def name_model(body: bytes, beginning: bytes) -> bytes:
    """Return a body, or its first piece, with this beginning; unchanged if it begins as no object does, which is refused as it is."""
    start = body.find(b"{")
    if start < 0 or body[:start].strip(_BLANKS):
        return body
    rest = body[start + 1 :].lstrip(_BLANKS)
    return (beginning[:-1] if rest.startswith(b"}") else beginning) + rest


def is_refused_parameter(name: str) -> bool:
    """Return whether a parameter of a request or a tensor changes whose memory, sequence or turn it is, or how it is written."""
    return name.startswith(_REFUSED) or name in _REFUSED_NAMES


def find_elements(shape: Any) -> int | None:
    """Return how many elements a tensor of this shape has; None if it is no shape."""
    if type(shape) is not list or len(shape) > DIMENSIONS_MAX or not all(type(size) is int and 0 <= size <= TOKENS_MAX for size in shape):
        return None
    return prod(shape)


def _are_parameters(value: Any) -> bool:
    return value is None or (
        type(value) is dict
        and len(value) <= TENSORS_MAX
        and not any(is_refused_parameter(name) and not (each is False and name.startswith("binary_data")) for name, each in value.items())
        and not any(type(each) in (dict, list) for each in value.values())
    )


def _count(data: Any) -> int:
    """Return how many elements nested arrays hold."""
    return sum(map(_count, data)) if type(data) is list and data and type(data[0]) is list else len(data) if type(data) is list else 1


def _is_input(value: Any) -> bool:
    return (
        _is_output(value)
        and type(value.get("datatype")) is str
        and value["datatype"] in DATATYPES
        and type(value.get("data")) is list
        and find_elements(value.get("shape")) == _count(value["data"])
    )


def _is_output(value: Any) -> bool:
    return (
        type(value) is dict
        and type(value.get("name")) is str
        and 0 < len(value["name"]) <= NAME_CHARACTERS_MAX
        and _are_parameters(value.get("parameters"))
    )


_PARAMETERS = "Shared memory, sequences, priorities, timeouts and binary data are not taken here; the gRPC port takes binary data."

FIELDS: dict[str, Check] = {
    "model": Check(fields.text.allows),  # no body is plain: tensors are compared with their shapes
    "id": Check(fields.nullable(fields.text_up_to(NAME_CHARACTERS_MAX)).allows),
    "parameters": Check(_are_parameters, None, _PARAMETERS),
    "inputs": Check(
        lambda value: type(value) is list and 0 < len(value) <= TENSORS_MAX and all(map(_is_input, value)),
        None,
        f"Each input has a name, a shape, a datatype and as many elements of data as its shape says. {_PARAMETERS}",
    ),
    "outputs": Check(
        lambda value: value is None or (type(value) is list and len(value) <= TENSORS_MAX and all(map(_is_output, value))),
        None,
        f"Each output has a name. {_PARAMETERS}",
    ),
}


class _Output(msgspec.Struct):
    name: str = ""
    data: msgspec.Raw = ABSENT


class _Answer(msgspec.Struct):
    outputs: list[_Output] | None = None
    parameters: msgspec.Raw = ABSENT
    error: msgspec.Raw = ABSENT
    object: msgspec.Raw = ABSENT


_answer = msgspec.json.Decoder(_Answer)
_scalars = msgspec.json.Decoder(dict[str, msgspec.Raw])


def report_usage(input_tokens: int | None, output_tokens: int | None) -> UsageReport:
    """Return what an answer says of its tokens; nothing is wrong with one that says nothing."""
    used = Quantities(input_tokens or 0, 0, output_tokens or 0)
    return UsageReport(used, None, has_input=input_tokens is not None, has_output=output_tokens is not None)


def _read_count(raw: msgspec.Raw | bytes) -> int | None:
    """Return the sum of a count, or of an array of counts however nested; None if it is none."""
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        return None
    counts = [value]
    while counts and type(counts[0]) is list:
        counts = [each for part in counts if type(part) is list for each in part]
    if not counts or not all(type(each) is int and 0 <= each <= TOKENS_MAX for each in counts):
        return None
    total: int = sum(counts)
    return total


def _find_count(answer: _Answer, parameters: Mapping[str, msgspec.Raw], name: str) -> int | None:
    for output in answer.outputs or ():
        if output.name == name and not is_absent(output.data):
            return _read_count(output.data)
    return _read_count(parameters[name]) if name in parameters else None


def read_answer(body: bytes, context: AnswerContext) -> Answer:
    """Read a body of status 200. Raises Fault if it has no outputs."""
    answer = decode(_answer, body, "answer")
    check_no_error(body, answer.error, answer.object, context.engine)
    if answer.outputs is None:
        raise Fault(faults.UPSTREAM_INVALID, detail="answer without outputs")
    try:
        parameters = {} if is_absent(answer.parameters) else _scalars.decode(answer.parameters)
    except msgspec.DecodeError:
        parameters = {}
    report = report_usage(_find_count(answer, parameters, INPUT_TOKENS), _find_count(answer, parameters, OUTPUT_TOKENS))
    used, anomaly = check_report(report, context)
    members: dict[str, Any] = dict(bodies.members(body))
    members["model_name"] = msgspec.json.encode(context.public_model)
    return Answer(bodies.join(members), used or Quantities(), anomaly)


def measure(asked: Mapping[str, Any], bounds: MediaBounds) -> Measure:
    """Return what a request can use: its input is bounded by its bytes."""
    return Measure(output_tokens=OUTPUT_TOKENS_TYPICAL, output_tokens_max=OUTPUT_TOKENS_MAX)


def render_error(fault: Fault, request_id: str | None = None) -> bytes:
    """Return a fault as the protocol has errors: one text; the code and the parameter stand beside it."""
    message = f"{fault.message} (request id: {request_id})" if request_id else fault.message
    return msgspec.json.encode({"error": message, "code": fault.kind.code, "param": fault.param})


DIALECT: Dialect = Dialect(
    endpoint=Endpoint.INFER,
    base=BASE,
    engine_path="/v2/models/{model}/infer",
    fields=FIELDS,
    required=("model", "inputs"),
    read_answer=read_answer,
    new_stream=OpenAIStream,
    render_error=render_error,
    not_forwarded=frozenset({"model"}),
    measure=measure,
    prompt_tokens_added=PLAIN_PROMPT_TOKENS_ADDED,
)
