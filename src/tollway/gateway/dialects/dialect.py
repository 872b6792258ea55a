"""The type of an API's description: what its bodies may hold, how its answers are read, how its errors look."""

import hashlib
from collections.abc import Callable, Collection, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from tollway.domain.billing_classes import Quantities
from tollway.domain.catalog import Endpoint
from tollway.domain.faults import Fault
from tollway.domain.usage import Anomaly, ServiceTier, UsageSource
from tollway.gateway.dialects.answers import Answer, AnswerContext, Measure
from tollway.gateway.dialects.fields import Check, Shape, new_plain_reader, plain_shape
from tollway.gateway.dialects.usage_options import UsageOptions
from tollway.gateway.media.bounds import MediaBounds
from tollway.native import EventTemplate, PlainReader
from tollway.wire.forms import FormKind

END_USER_CHARS_MAX = 512
"""Longest name of an end user that is kept as it stands."""


class AnswerStream(Protocol):
    """Reads the events of one stream. Attributes: see `openai_stream.OpenAIStream`."""

    output: int
    source: UsageSource
    anomaly: Anomaly | None
    terminated: bool
    terminator: bytes
    template: EventTemplate | None
    """A template that the next events are compared with, once regular events were seen. What it relays is not in `output` until the stream
    reads another event or is asked for `used`."""

    @property
    def used(self) -> Quantities | None:
        """The best knowledge of what was used so far."""
        ...

    def read(self, event: bytes) -> bytes | None:
        """Return what to relay of an event, or None for nothing. Raises Fault."""
        ...

    def read_regular(self, data: bytes, start: int, end: int) -> bytes | None:
        """Return what to relay of data[start:end] if that is one regular event, or None if `read` must look at it."""
        ...


class BoundedStream(AnswerStream, Protocol):
    """A stream whose output the gateway can bound while it runs, and which it can end before its engine does: that of an API with
    `usage_options`."""

    def bound_output(self, tokens: int) -> None:
        """Call no event regular any more that brings the output above `tokens`."""
        ...

    def end_early(self, relayed: bytes, used: Quantities) -> bytes:
        """Return what ends the stream in place of events that are not delivered, as if its length were reached, terminator included.

        `relayed`: what `read` returned of these events, all of them since the last one that was delivered. `used`: what was used up to
        that one.
        """
        ...


class MeasuredStream(AnswerStream, Protocol):
    """The answer to a request that is measured (`Dialect.measure`) while it is sent: that of a dialect with `sends_media`, or a stream of
    events."""

    def find_used_if_cut(self) -> Quantities:
        """Return what is used of the request if its answer ends here: as far as it was delivered, and no more than was generated."""
        ...


class NewStream(Protocol):
    """Constructor of an `AnswerStream`."""

    def __call__(self, context: AnswerContext) -> AnswerStream: ...


REQUEST_ID_HEADERS = b"x-request-id: %b\r\n"

TEMPLATE_TOKENS_MAX = 4096
"""Tokens that a chat template may add to the messages: default system prompts and instructions for tools. The longest published templates
add about 1,500; the names and marks of each message are shorter than the JSON around it, which is counted in bytes."""
PLAIN_PROMPT_TOKENS_ADDED = 64
"""Tokens that an engine may add to a prompt without a template: marks of its beginning and end, and an embedding model's instruction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """One API as the gateway speaks it.

    Requests: `fields` are the API's own, with their checks; `required` must be there; `not_forwarded` are accepted and withheld from the
    engine; `allows_unknown_fields`: the API's contract asks gateways to forward fields that they do not know. `output_caps`: fields that
    bound an answer's tokens, the first of which is set where a model has a cap and the client named none; empty for answers without
    tokens of their own. `prompts_field`: the field that may hold several prompts; empty if a body is one prompt. `items_field`: the field
    that holds the conversation as items; empty where it is made of messages. `constants`: fields that are set for every engine, as JSON,
    whatever the client sent. `prompt_tokens_added`:
    most tokens that an engine adds to each prompt, such as the text of its chat template. `service_tiers`: what the values of that field
    mean. `usage_options`: how a stream is asked for its usage; None if the API always reports it. `counts_images`:
    each output is an image, billed as one. `form_kinds`: a body is a form, and these of its fields are no texts; None for JSON. `measure`:
    what a checked body with media, or one that asks for them, can use; None for a body of text. `salt_prompt`: puts a salt before the
    prompt, in raw members; None if the API has no system
    prompt. `forwarded_headers`: those that the API asks gateways to pass
    on unchanged. `model_endpoint`: the endpoint that a model must offer for this one to be usable; None for this one
    itself. `end_user_paths`: where a body may name the end user, in order of preference, each as a path of fields.

    Answers: `read_answer` reads a body of status 200; `new_stream` makes the reader of a stream. `new_media`: makes the reader of an answer
    that is sound and relayed as it comes; None if no answer is. `request_id_headers`: the template of the
    header lines that carry the request's id. `limit_prefix`: how the API's own headers of
    limits begin; empty if it has none but OpenAI's.
    `error_event`: how a fault in mid-stream begins. `render_error_data`: the data of such an
    event; None if it is the body of an error. `translation`: how the API is served where an engine has not got it; None if it is not.
    `aliases`: paths beside `target` at which clients look for the API. `base`: what all of its paths begin with, where these name the
    model and the body does not; empty for all others. `engine_path`: its path at an engine then, `{model}` for the upstream's name.

    Derived: `target` is the path, or `base`; `plain` the shape of bodies that pass all checks by one conversion; `plain_reader` reads most
    of these, None where it cannot; `has_output` whether answers have tokens of their own.
    """

    endpoint: Endpoint
    fields: dict[str, Check]
    required: tuple[str, ...]
    read_answer: Callable[[bytes, AnswerContext], Answer]
    new_stream: NewStream
    render_error: Callable[[Fault, str | None], bytes]
    output_caps: tuple[str, ...] = ()
    prompts_field: str = ""
    shared_field: str = ""
    items_field: str = ""
    constants: Mapping[str, bytes] = field(default_factory=dict)
    prompt_tokens_added: int = TEMPLATE_TOKENS_MAX
    service_tiers: Mapping[str, ServiceTier] = field(default_factory=dict)
    usage_options: UsageOptions | None = None
    counts_images: bool = False
    form_kinds: Mapping[str, FormKind] | None = None
    measure: Callable[[Mapping[str, Any], MediaBounds], Measure] | None = None
    new_media: Callable[[AnswerContext], MeasuredStream] | None = None
    not_forwarded: frozenset[str] = frozenset()
    allows_unknown_fields: bool = False
    forwarded_headers: tuple[bytes, ...] = ()
    model_endpoint: Endpoint | None = None
    aliases: tuple[bytes, ...] = ()
    base: bytes = b""
    engine_path: str = ""
    end_user_paths: tuple[tuple[str, ...], ...] = (("safety_identifier",), ("user",))
    request_id_headers: bytes = REQUEST_ID_HEADERS
    limit_prefix: bytes = b""
    error_event: bytes = b""
    render_error_data: Callable[[Fault, str | None], bytes] | None = None
    translation: "Translation | None" = None
    salt_prompt: Callable[[MutableMapping[str, Any], bytes], None] | None = None
    target: bytes = field(init=False)
    plain: Shape = field(init=False)
    plain_reader: "PlainReader | None" = field(init=False)
    has_output: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "target", self.base or f"/v1/{self.endpoint}".encode())
        object.__setattr__(self, "plain", plain_shape(self.fields, self.required))
        is_readable = self.form_kinds is None and self.measure is None
        object.__setattr__(self, "plain_reader", new_plain_reader(self.fields, self.required) if is_readable else None)
        object.__setattr__(self, "has_output", bool(self.output_caps))

    def find_end_user(self, body: Mapping[str, Any]) -> str | None:
        """Return the end user that a body names, None if it names none. A name longer than END_USER_CHARS_MAX counts by its digest."""
        for path in self.end_user_paths:
            value: Any = body
            for name in path:
                value = value.get(name) if isinstance(value, dict) else None
            if isinstance(value, str) and value:
                return value if len(value) <= END_USER_CHARS_MAX else hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()
        return None

    def list_injected(self, output_cap: int | None, model: str | None, usage: bytes | None) -> dict[str, bytes]:
        """Return the fields to set in a request for an engine, as JSON by name. None: the client's own value goes up, if there is one.

        `output_cap`: most tokens of the answer. `model`: the upstream's name of the model. `usage`: the value of the usage options.
        """
        injected = dict(self.constants)
        if output_cap is not None:
            injected[self.output_caps[0]] = b"%d" % output_cap
        if model is not None and not self.engine_path:
            injected["model"] = msgspec.json.encode(model)
        if usage is not None and self.usage_options is not None:
            injected[self.usage_options.field] = usage
        return injected

    def identify(self, request_id: str) -> bytes:
        """Return the header lines that carry the request's id."""
        return self.request_id_headers.replace(b"%b", request_id.encode())

    def render_error_event(self, fault: Fault, request_id: str) -> bytes:
        """Return a fault as the last event of a stream."""
        render = self.render_error_data or self.render_error
        return b"%bdata: %b\n\n" % (self.error_event, render(fault, request_id))


@dataclass(frozen=True, slots=True, kw_only=True)
class Translation:
    """The way in which an API is served by an engine that has not got it.

    `target`: the API in which the engine is asked. `translate`: makes the body for it, before the gateway's own fields are set, from the
    members of the client's body and the names of those that do not go up; raises Fault invalid_value, with the name of the field, for what
    `target` cannot express. `read_answer`, `new_stream`: as those of a `Dialect`, for answers of `target`; they return the client's API.
    `repeated_fields`: fields of a request that its answer repeats.
    """

    target: Dialect
    translate: Callable[[Mapping[str, Any], Collection[str]], dict[str, Any]]
    read_answer: Callable[[bytes, AnswerContext], Answer]
    new_stream: NewStream
    repeated_fields: tuple[str, ...] = ()
