"""The Open Inference Protocol as Triton's vLLM backend serves it: a text in, a text out, as tensors in JSON.

A request is an exchange like any other, a completion of its text: it queues, takes its time, fails by the same plans and stands in the
truth log. What the exchange writes is rendered as tensors here. Counts of tokens are among them only where a request asks for them, as
there.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import unquote

import msgspec

from tollway.simulator.dialects import JSON
from tollway.simulator.outlet import Line, content_type, head
from tollway.simulator.requests import bad_request

BASE: Final = b"/v2"
_MODEL: Final = re.compile(rb"/v2/models/([^/]+)((?:/versions/[^/]+)?)(/ready|/infer)?")
TEXT: Final = "text_input"
OUTPUTS: Final = ({"name": "text_output", "datatype": "BYTES", "shape": [-1]},)
INPUTS: Final = (
    {"name": TEXT, "datatype": "BYTES", "shape": [1]},
    {"name": "max_tokens", "datatype": "INT32", "shape": [1]},
    {"name": "return_num_input_tokens", "datatype": "BOOL", "shape": [1]},
    {"name": "return_num_output_tokens", "datatype": "BOOL", "shape": [1]},
)
_DATATYPES: Final = {str(each["name"]): each["datatype"] for each in INPUTS}


@dataclass(frozen=True, slots=True)
class TensorRequest:
    """A request as the backend reads it. `model`, `id`: as asked. `counts_input`, `counts_output`: whether it asks for counts of tokens."""

    model: str
    id: str
    text: str
    tokens_max: int | None
    counts_input: bool
    counts_output: bool

    def as_completion(self, request: Any, *, stream: bool = False) -> Any:
        """Return the request for a completion that stands for it."""
        asked: dict[str, object] = {"model": self.model, "prompt": self.text, "max_tokens": self.tokens_max or 16}
        if stream:
            asked |= {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
        return replace(request, body=msgspec.json.encode(asked))


def is_inference(path: bytes) -> bool:
    """Return whether requests to a path are for a model."""
    found = _MODEL.fullmatch(path)
    return found is not None and found[3] == b"/infer"


def describe(path: bytes, models: Sequence[str], *, is_draining: bool) -> tuple[int, bytes, bytes] | None:
    """Return status, content type and body of a GET; None for a path that there is not."""
    if path == b"/v2/health/live":
        return 200, b"", b""
    if path == b"/v2/health/ready":
        return 400 if is_draining else 200, b"", b""
    if path == BASE:
        return 200, JSON, b'{"name":"triton","version":"2.0-sim","extensions":["model_repository"]}'
    found = _MODEL.fullmatch(path)
    if found is None:
        return None
    name = unquote(found[1].decode("latin-1"))
    if name.partition("!")[0] not in models:
        return 400, JSON, render_error(f"Request for unknown model: '{name}' is not found")
    if found[3] is not None:
        return 400 if is_draining else 200, b"", b""
    described = {"name": name, "versions": ["1"], "platform": "vllm", "inputs": INPUTS, "outputs": OUTPUTS}
    return 200, JSON, msgspec.json.encode(described)


def read_request(path: bytes, body: bytes) -> TensorRequest:
    """Return the request in a body of JSON. Raises Refused."""
    found = _MODEL.fullmatch(path)
    assert found is not None
    try:
        asked = msgspec.json.decode(body)
        tensors = {each["name"]: (each["datatype"], each["shape"], each["data"]) for each in asked["inputs"]}
        id = str(asked.get("id", ""))
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError):
        raise bad_request("failed to parse the request JSON buffer") from None
    return make_request(unquote(found[1].decode("latin-1")), id, tensors)


def make_request(model: str, id: str, tensors: dict[str, tuple[str, Sequence[int], Sequence[Any]]]) -> TensorRequest:
    """Return the request that named tensors make: datatype, shape and elements of each. Raises Refused."""
    values: dict[str, Any] = {}
    for name, (datatype, shape, data) in tensors.items():
        if name not in _DATATYPES:
            raise bad_request(f"unexpected inference input '{name}' for model '{model}'")
        if datatype != _DATATYPES[name]:
            raise bad_request(f"inference input '{name}' data-type is '{datatype}', expected '{_DATATYPES[name]}'")
        while len(data) == 1 and isinstance(data[0], list):
            data = data[0]
        if len(data) != 1:
            raise bad_request(f"unexpected shape for input '{name}' for model '{model}'. Expected [1], got {list(shape)}")
        values[name] = data[0]
    if TEXT not in values:
        raise bad_request(f"expected 1 inputs but got {len(values)} inputs for model '{model}'")
    counts = bool(values.get("return_num_input_tokens")), bool(values.get("return_num_output_tokens"))
    return TensorRequest(model, id, str(values[TEXT]), values.get("max_tokens"), *counts)


def list_outputs(asked: TensorRequest, text: str, prompt_tokens: int, output_tokens: int) -> list[tuple[str, str, object]]:
    """Return the output tensors of one answer, one element each: name, datatype and element."""
    outputs: list[tuple[str, str, object]] = [("text_output", "BYTES", text)]
    if asked.counts_input:
        outputs.append(("num_input_tokens", "UINT32", prompt_tokens))
    if asked.counts_output:
        outputs.append(("num_output_tokens", "UINT32", output_tokens))
    return outputs


def render_error(message: str) -> bytes:
    """Return an error as the protocol has it."""
    return msgspec.json.encode({"error": message})


class TensorLine:
    """The connection of one exchange: takes the answer to a completion, and renders it as tensors once it is whole. What is broken off is
    passed on as far as it came, which no client can take for an answer."""

    paused = False
    chunked = True

    def __init__(self, line: Line, asked: TensorRequest) -> None:
        self._line = line
        self._asked = asked
        self._bytes = b""

    def write(self, data: bytes) -> None:
        """Take bytes of the answer."""
        self._bytes += data

    def answered(self, stale_seconds: float | None, *, close: bool) -> None:
        """The answer is complete."""
        self._line.write(self._tell(*self._bytes.partition(b"\r\n\r\n")[::2]))
        self._line.answered(stale_seconds, close=close)

    def hang_up(self, *, reset: bool) -> None:
        """The plan of the exchange breaks the connection."""
        if self._bytes:
            self._line.write(self._bytes)
        self._line.hang_up(reset=reset)

    def _tell(self, lines: bytes, body: bytes) -> bytes:
        status = int(lines[9:12])
        try:
            answer = msgspec.json.decode(body)
            if status != 200:
                told = render_error(str(answer["error"]["message"] if isinstance(answer["error"], dict) else answer["error"]))
            else:
                usage = answer.get("usage") or {"prompt_tokens": 0, "completion_tokens": 0}
                outputs = list_outputs(self._asked, answer["choices"][0]["text"], usage["prompt_tokens"], usage["completion_tokens"])
                told = msgspec.json.encode(
                    {
                        "id": self._asked.id,
                        "model_name": self._asked.model,
                        "model_version": "1",
                        "outputs": [{"name": name, "datatype": kind, "shape": [1], "data": [value]} for name, kind, value in outputs],
                    }
                )
        except (msgspec.DecodeError, KeyError, TypeError):
            return lines + b"\r\n\r\n" + body  # a plan has spoiled it
        return head(status, content_type(JSON), len(told), 0) + told
