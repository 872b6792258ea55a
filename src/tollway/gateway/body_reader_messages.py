"""Messages between a gateway and its reader processes: frames of MessagePack, each behind its length.

The gateway sends `Body` and the bytes of the body. A reader answers with `Lookup`, the name of the model that the body asks for, to which
the gateway answers with `Offer` or null; and then with `Examined`, or with `Refused`. Or the gateway sends `Composition` and the bytes of
a body that was examined, and the reader answers with `Composed` and the bytes of the body for an engine. Of a body that may concern a
stored response the gateway sends `Inquiry` first, which is answered with `Wished`, and then `Continuation`, which is answered with
`Continued` and the bytes of the whole conversation. These are values, and no code: a
reader that a body took over could say wrong things of this body and of later ones, and no more.
"""

import struct
from typing import Final

import msgspec

from tollway.domain import faults
from tollway.domain.catalog import Endpoint
from tollway.domain.faults import Fault, FaultKind
from tollway.domain.snapshot import ModelEntry
from tollway.domain.usage import ServiceTier
from tollway.gateway.continuation import Wish
from tollway.gateway.dialects.answers import Measure
from tollway.gateway.media.bounds import MediaBounds

LENGTH: Final = struct.Struct("<I")
"""The length of a frame, in bytes."""

ANSWER_BYTES_MAX: Final = 4 * 1024 * 1024
"""Most bytes of a reader's frame. The longest honest one names 24,000 fields at the top level of a body."""

KINDS: Final = {name: kind for name, kind in vars(faults).items() if isinstance(kind, FaultKind)}
"""Kinds of faults by their names in the table: a code may have several."""
_NAMES: Final = {id(kind): name for name, kind in KINDS.items()}


class Body(msgspec.Struct, frozen=True, array_like=True, tag="body"):
    """The announcement of a body of `size` bytes, which follow it. `media`: the bounds on what it may bring along. `content_type`: as the
    client stated it."""

    size: int
    endpoint: Endpoint
    media: MediaBounds
    content_type: bytes = b""


class Composition(msgspec.Struct, frozen=True, array_like=True, tag="composition"):
    """The announcement of a body of `size` bytes, which follow it, that is to be made one for an engine (`body_reader_process.compose`).
    `injected`: the fields that are set, as JSON by name. `salt`: of the prompt, empty for none."""

    size: int
    endpoint: Endpoint
    is_translated: bool
    dropped: tuple[str, ...]
    injected: dict[str, bytes]
    salt: bytes


class Inquiry(msgspec.Struct, frozen=True, array_like=True, tag="inquiry"):
    """The announcement of a body of `size` bytes, which follow it, of which is asked what it wishes (`continuation.read_wish`)."""

    size: int
    endpoint: Endpoint


class Continuation(msgspec.Struct, frozen=True, array_like=True, tag="continuation"):
    """The announcement of `size` bytes, which follow it: a body, and the stored response that it continues, which takes the last
    `found_bytes` (None if it continues none). A whole conversation is to be made of them (`continuation.make_whole`)."""

    size: int
    found_bytes: int | None
    wish: Wish


class Wished(msgspec.Struct, frozen=True, array_like=True, tag="wished"):
    """The wish of a body; None for none."""

    wish: Wish | None


class Continued(msgspec.Struct, frozen=True, array_like=True, tag="continued"):
    """A whole conversation of `size` bytes, which follow. `start`, `end`: the places of its items."""

    size: int
    start: int
    end: int


class Lookup(msgspec.Struct, frozen=True, array_like=True, tag="lookup"):
    """The model that the body asks for."""

    model: str


class Offer(msgspec.Struct, frozen=True, array_like=True):
    """The part of a caller's grant of that model that decides on bodies. `prices`: the ids of its prices. `default_tier`:
    of requests that ask for none."""

    model: ModelEntry
    prices: dict[ServiceTier, str]
    is_served: bool
    is_translated: bool
    known_fields: frozenset[str]
    default_tier: ServiceTier


class Translated(msgspec.Struct, frozen=True, array_like=True):
    """A translation of `size` bytes, with members as `request.TranslatedBody` has them; `repeated` as JSON, whose numbers may exceed those
    of MessagePack."""

    size: int
    names: tuple[str, ...]
    spans: tuple[int, ...]
    repeated: bytes


class Examined(msgspec.Struct, frozen=True, array_like=True, tag="examined"):
    """A permitted body: the members of `request.Call` of the same names. `price_id`: of the price that applies. `end_user`: whom the body
    names, limited or not. `tags`: those of the body (`authorize.find_tags`). `spans`: the places of the members (`bodies.find_spans`), or
    of the parts of a form. `translated`: of the translation, which follows; None for none."""

    price_id: str
    names: tuple[str, ...]
    dropped: tuple[str, ...]
    output_cap: int | None
    output_tokens_max: int | None
    input_tokens_max: int
    prompt_bytes: int
    stream: bool
    prompts: int
    sequences: int
    hide_usage: bool
    hide_continuous: bool
    end_user: str | None
    tags: tuple[str, ...]
    spans: tuple[int, ...]
    measure: Measure | None = None
    translated: Translated | None = None


class Composed(msgspec.Struct, frozen=True, array_like=True, tag="composed"):
    """A body of `size` bytes for an engine, which follow; and `Call.repeated` as JSON, whose numbers may exceed those of MessagePack."""

    size: int
    repeated: bytes | None


class Refused(msgspec.Struct, frozen=True, array_like=True, tag="refused"):
    """A body that is refused, with the members of a `Fault`. `kind`: a name of KINDS."""

    kind: str
    param: str | None
    message: str
    detail: str

    @classmethod
    def of(cls, fault: Fault) -> "Refused":
        """Return the form in which a fault is sent."""
        return cls(_NAMES[id(fault.kind)], fault.param, fault.message, fault.detail)

    def to_fault(self) -> Fault:
        """Return the fault. Raises KeyError for a kind that does not exist."""
        return Fault(KINDS[self.kind], param=self.param, message=self.message, detail=self.detail)


_encode = msgspec.msgpack.Encoder().encode
Task = Body | Composition | Inquiry | Continuation
_tasks: "msgspec.msgpack.Decoder[Task]" = msgspec.msgpack.Decoder(Task)
decode_task = _tasks.decode
_offers: "msgspec.msgpack.Decoder[Offer | None]" = msgspec.msgpack.Decoder(Offer | None)
decode_offer = _offers.decode
Reply = Lookup | Examined | Refused | Composed | Wished | Continued
_answers: "msgspec.msgpack.Decoder[Reply]" = msgspec.msgpack.Decoder(Reply)
decode_answer = _answers.decode


def encode_frame(value: object) -> bytes:
    """Return the frame that holds a value."""
    content = _encode(value)
    return LENGTH.pack(len(content)) + content
