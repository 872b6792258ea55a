"""OpenAI's generation of images: POST /v1/images/generations, whole answers alone.

A request costs the images that it got, by their number and by their pixels, and the tokens of its prompt and of these images where the
engine reports them. Their size is what the request asks for, or less where a picture that is smaller comes back; of a model that is sold by
pixels a request must state it (`check_size`), so that its cost is known before an engine works.
"""

import binascii
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from tollway.domain import faults
from tollway.domain.billing_classes import BillingClass, OtherClasses, Quantities, UnitPrices
from tollway.domain.catalog import Endpoint
from tollway.domain.faults import Fault
from tollway.domain.usage import Anomaly
from tollway.gateway.dialects import fields
from tollway.gateway.dialects.answers import UNBELIEVABLE, Answer, AnswerContext, Measure, UsageReport
from tollway.gateway.dialects.dialect import PLAIN_PROMPT_TOKENS_ADDED, Dialect
from tollway.gateway.dialects.engine_errors import check_no_error
from tollway.gateway.dialects.engine_json import ABSENT, decode, is_absent, rename_model
from tollway.gateway.dialects.engine_usage import cap_input, cap_output, read_counts
from tollway.gateway.dialects.fields import Check
from tollway.gateway.dialects.openai_requests import NOT_FORWARDED
from tollway.gateway.dialects.openai_stream import OpenAIStream
from tollway.gateway.media.bounds import MediaBounds
from tollway.gateway.media.pictures import Encoded, PictureInvalid, find_size
from tollway.wire.errors import openai_error

IMAGES_MAX = 10
"""Most images of one request, as OpenAI has it."""
PROMPT_CHARACTERS_MAX = 32_000
PIXELS_MAX = 1 << 26
"""Most pixels of one image, so that those of IMAGES_MAX can be counted. The largest that known models make have an eighth of it."""
OUTPUT_TOKENS_MAX = 16_384
"""Most tokens of output for one image: more than twice what known models report for their largest and best."""

_SIZE = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")

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


def find_pixels(asked: Mapping[str, Any]) -> int:
    """Return the pixels of one image of the size that a request states; 0 if it states none, or leaves it to the engine. Raises Fault."""
    found = _SIZE.fullmatch(asked.get("size") or "")
    if found is None:
        return 0
    pixels = int(found[1]) * int(found[2])
    if pixels > PIXELS_MAX:
        raise Fault(faults.PARAMETER_INVALID, param="size", message=f"An image may have at most {PIXELS_MAX} pixels.")
    return pixels


def check_size(measure: Measure, prices: UnitPrices) -> None:
    """Raise Fault if a request for images does not say how large they are to be, and the model is sold by their pixels."""
    if not measure.pixels and prices.get(BillingClass.PIXELS):
        message = "The model is priced by the size of its images: state it as WIDTHxHEIGHT in pixels, for example 1024x1024."
        raise Fault(faults.PARAMETER_INVALID, param="size", message=message)


def measure(asked: Mapping[str, Any], bounds: MediaBounds) -> Measure:
    """Return what a request can use. Raises Fault invalid_value for images that are too large."""
    images = asked.get("n") or 1
    return Measure(output_tokens_max=images * OUTPUT_TOKENS_MAX, pixels=images * find_pixels(asked))


def _read_image(raw: msgspec.Raw) -> _Image | None:
    """Return an entry of an answer that has an image, or says where it is; None for any other."""
    try:
        image = _image.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        return None
    return image if image.b64_json or image.url else None


def _count_pixels(image: _Image, pixels: int) -> int:
    """Return the pixels of an image that was made: those of its header, at most the `pixels` that were asked for (0: not stated). Where no
    header can be read, it has the size that was asked for."""
    try:
        size = find_size(Encoded(image.b64_json)) if image.b64_json else None
    except (PictureInvalid, binascii.Error, ValueError):
        size = None
    if size is None:
        return pixels
    return min(size[1] * size[2], pixels or PIXELS_MAX)


def read_usage(raw: bytes | msgspec.Raw) -> UsageReport:
    """Return a usage object as far as it can be believed. Tokens of images are in classes of their own; of the output all that is not
    stated to be text is of the images."""
    counts = read_counts(raw)
    if counts is None:
        return UNBELIEVABLE
    input, output = counts.read("input_tokens"), counts.read("output_tokens")
    images = min(counts.read_detail("input_tokens_details", "image_tokens") or 0, input or 0)
    text = min(counts.read_detail("output_tokens_details", "text_tokens") or 0, output or 0)
    made = (output or 0) - text
    return UsageReport(
        Quantities(
            (input or 0) - images, output=text, other=OtherClasses(image_input=images, image_output=made) if images or made else None
        ),
        Anomaly.INVALID if counts.is_odd else None,
        has_input=input is not None,
        has_output=output is not None,
    )


def read_answer(body: bytes, context: AnswerContext) -> Answer:
    """Read a body of status 200. Raises Fault if it has no images. Entries without one, and more than were asked for, are not billed."""
    answer = decode(_answer, body, "answer")
    check_no_error(body, answer.error, answer.object, context.engine)
    entries = answer.data or []
    images = [image for image in map(_read_image, entries) if image is not None][: context.sequences]
    if not images:
        raise Fault(faults.UPSTREAM_INVALID, detail="answer without images")
    anomaly = Anomaly.INFLATED if len(images) < len(entries) else None
    used = Quantities()
    if not is_absent(answer.usage):
        report = read_usage(answer.usage)
        used = cap_output(cap_input(report.used, context.input_tokens_max), context.output_tokens_max)
        anomaly = anomaly or report.anomaly or (None if used is report.used else Anomaly.INFLATED)
    pixels = 0 if context.measure is None else context.measure.pixels // context.sequences
    made = sum(_count_pixels(image, pixels) for image in images)
    other = msgspec.structs.replace(used.other or OtherClasses(), images=len(images), pixels=made)
    return Answer(rename_model(body, context), msgspec.structs.replace(used, other=other), anomaly)


DIALECT: Dialect = Dialect(
    endpoint=Endpoint.IMAGE_GENERATIONS,
    fields=FIELDS,
    required=("model", "prompt"),
    measure=measure,
    read_answer=read_answer,
    new_stream=OpenAIStream,
    render_error=openai_error,
    not_forwarded=NOT_FORWARDED,
    counts_images=True,
    prompt_tokens_added=PLAIN_PROMPT_TOKENS_ADDED,
)
