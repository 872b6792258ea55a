"""OpenAI's generation of images: POST /v1/images/generations, whole answers alone.

A request costs the images that it got, and the tokens of its prompt where the engine reports them; tokens of the images that were made are
not billed beside them.
"""

import msgspec

from tollway.domain import faults
from tollway.domain.billing_classes import OtherClasses, Quantities
from tollway.domain.catalog import Endpoint
from tollway.domain.faults import Fault
from tollway.domain.usage import Anomaly
from tollway.gateway.dialects import fields
from tollway.gateway.dialects.answers import ABSENT, Answer, AnswerContext, decode, is_absent, rename_model
from tollway.gateway.dialects.dialect import PLAIN_PROMPT_TOKENS_ADDED, Dialect
from tollway.gateway.dialects.engine_errors import check_no_error
from tollway.gateway.dialects.engine_usage import UNBELIEVABLE, UsageReport, cap_input, read_counts
from tollway.gateway.dialects.fields import Check
from tollway.gateway.dialects.openai_requests import NOT_FORWARDED
from tollway.gateway.dialects.openai_stream import OpenAIStream
from tollway.wire.errors import openai_error

IMAGES_MAX = 10
"""Most images of one request, as OpenAI has it."""
PROMPT_CHARACTERS_MAX = 32_000

FIELDS: dict[str, Check] = {
    "model": fields.text,
    "prompt": fields.text_up_to(PROMPT_CHARACTERS_MAX),
    "background": fields.nullable(fields.text_up_to(64)),
    "complexity": fields.nullable(fields.text_up_to(64)),
    "frame_count": fields.nullable(fields.integer(1, 1)),
    "frame_duration_ms": fields.nullable(fields.integer(1, 3_600_000)),
    "moderation": fields.nullable(fields.one_of("auto", "low")),
    "n": fields.nullable(fields.integer(1, IMAGES_MAX)),
    "output_compression": fields.nullable(fields.integer(0, 100)),
    "output_format": fields.nullable(fields.text_up_to(64)),
    "partial_images": fields.nullable(fields.integer(0, 0)),
    "quality": fields.nullable(fields.text_up_to(64)),
    "response_format": fields.nullable(fields.one_of("b64_json", "url")),
    "safety_identifier": fields.nullable(fields.text),
    "size": fields.nullable(fields.text_up_to(64)),
    "stream": fields.refused("Images are sent in one answer."),
    "style": fields.nullable(fields.text_up_to(64)),
    "svg": fields.nullable(fields.mapping),
    "user": fields.nullable(fields.text),
}


class _Answer(msgspec.Struct):
    object: msgspec.Raw = ABSENT
    data: list[msgspec.Raw] | None = None
    usage: msgspec.Raw = ABSENT
    error: msgspec.Raw = ABSENT


class _Image(msgspec.Struct):
    b64_json: str | None = None
    url: str | None = None


_answer = msgspec.json.Decoder(_Answer)
_image = msgspec.json.Decoder(_Image)


def _is_image(raw: msgspec.Raw) -> bool:
    """Return whether an entry of an answer has an image, or says where it is."""
    try:
        image = _image.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        return False
    return bool(image.b64_json or image.url)


def read_usage(raw: bytes | msgspec.Raw) -> UsageReport:
    """Return the input of a usage object as far as it can be believed; tokens of images in the prompt are in a class of their own."""
    counts = read_counts(raw)
    if counts is None:
        return UNBELIEVABLE
    input = counts.read("input_tokens")
    images = min(counts.read_detail("input_tokens_details", "image_tokens") or 0, input or 0)
    return UsageReport(
        Quantities((input or 0) - images, other=OtherClasses(image_input=images) if images else None),
        Anomaly.INVALID if counts.is_odd else None,
        has_input=input is not None,
        has_output=False,
    )


def read_answer(body: bytes, context: AnswerContext) -> Answer:
    """Read a body of status 200. Raises Fault if it has no images. Entries without one, and more than were asked for, are not billed."""
    answer = decode(_answer, body, "answer")
    check_no_error(body, answer.error, answer.object, context.engine)
    entries = answer.data or []
    made = min(sum(map(_is_image, entries)), context.sequences)
    if not made:
        raise Fault(faults.UPSTREAM_INVALID, detail="answer without images")
    anomaly = Anomaly.INFLATED if made < len(entries) else None
    used = Quantities()
    if not is_absent(answer.usage):
        report = read_usage(answer.usage)
        used = cap_input(report.used, context.input_tokens_max)
        anomaly = anomaly or report.anomaly or (None if used is report.used else Anomaly.INFLATED)
    other = msgspec.structs.replace(used.other or OtherClasses(), images=made)
    return Answer(rename_model(body, context), msgspec.structs.replace(used, other=other), anomaly)


DIALECT: Dialect = Dialect(
    endpoint=Endpoint.IMAGE_GENERATIONS,
    fields=FIELDS,
    required=("model", "prompt"),
    read_answer=read_answer,
    new_stream=OpenAIStream,
    render_error=openai_error,
    not_forwarded=NOT_FORWARDED,
    counts_images=True,
    prompt_tokens_added=PLAIN_PROMPT_TOKENS_ADDED,
)
