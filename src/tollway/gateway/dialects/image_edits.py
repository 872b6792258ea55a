"""OpenAI's edits and variations of images: POST /v1/images/edits and /v1/images/variations. A body is a form with pictures; answers and
what they cost are those of the generation of images."""

from collections.abc import Mapping
from typing import Any

import msgspec

from tollway.domain import faults
from tollway.domain.catalog import Endpoint
from tollway.domain.faults import Fault
from tollway.gateway.dialects import fields, image_generations
from tollway.gateway.dialects.answers import Measure
from tollway.gateway.dialects.dialect import PLAIN_PROMPT_TOKENS_ADDED, Dialect
from tollway.gateway.dialects.fields import Check
from tollway.gateway.dialects.openai_requests import NOT_FORWARDED
from tollway.gateway.dialects.openai_stream import OpenAIStream
from tollway.gateway.media.bounds import TOKENS_MAX, MediaBounds
from tollway.gateway.media.pictures import PictureInvalid, find_size
from tollway.wire.errors import openai_error
from tollway.wire.forms import File, FormKind

INPUT_TOKENS_TYPICAL = 1_024
"""Tokens that models make of a picture of the usual size."""

EDIT_FIELDS: dict[str, Check] = image_generations.FIELDS | {
    "image": fields.files,
    "mask": fields.file,
    "markup": fields.file,
    "input_fidelity": fields.nullable(fields.text_up_to(64)),
}
VARIATION_FIELDS: dict[str, Check] = {
    name: image_generations.FIELDS[name] for name in ("model", "n", "response_format", "size", "stream", "user")
} | {"image": fields.file}
_KINDS = dict.fromkeys(
    ("model", "prompt", "background", "quality", "size", "style", "user", "safety_identifier", "output_format"), FormKind.TEXT
) | dict.fromkeys(("n", "output_compression", "partial_images", "frame_count", "frame_duration_ms"), FormKind.INTEGER)


def measure(asked: Mapping[str, Any], bounds: MediaBounds) -> Measure:
    """Return what a request can use. Raises Fault invalid_media or media_too_large for a file that is no picture or too large, and
    invalid_value for images that are to be too large."""
    found: list[File] = []
    pixels = 0
    for name in ("image", "mask", "markup"):
        value = asked.get(name)
        for file in value if isinstance(value, list) else [] if value is None else [value]:
            found.append(file)
            pixels += _check_picture(file, name, bounds)
    file_bytes = sum(file.size for file in found)
    if file_bytes > bounds.request_bytes_max:
        raise Fault(faults.MEDIA_TOO_LARGE, param="image", message=f"All files may have at most {bounds.request_bytes_max} bytes.")
    if pixels > bounds.request_pixels_max:
        message = f"All images together may have at most {bounds.request_pixels_max} pixels."
        raise Fault(faults.MEDIA_INVALID, param="image", message=message)
    return msgspec.structs.replace(
        image_generations.measure(asked, bounds),
        input_tokens=len(found) * INPUT_TOKENS_TYPICAL,
        input_tokens_max=len(found) * TOKENS_MAX["image/"],
        file_bytes=file_bytes,
    )


def _check_picture(file: File, name: str, bounds: MediaBounds) -> int:
    """Return the pixels of a picture. Raises Fault."""
    if file.size > bounds.part_bytes_max:
        raise Fault(faults.MEDIA_TOO_LARGE, param=name, message=f"A file may have at most {bounds.part_bytes_max} bytes.")
    try:
        size = find_size(file)
    except PictureInvalid:
        raise Fault(faults.MEDIA_INVALID, param=name, message="The image is damaged.") from None
    if size is None or f"image/{size[0]}" not in bounds.types:
        raise Fault(faults.MEDIA_INVALID, param=name, message="The file is no image in a format that is accepted.")
    _, width, height = size
    if width * height > bounds.pixels_max:
        message = f"An image may have at most {bounds.pixels_max} pixels; this one has {width} × {height}."
        raise Fault(faults.MEDIA_INVALID, param=name, message=message)
    return width * height


EDITS: Dialect = Dialect(
    endpoint=Endpoint.IMAGE_EDITS,
    fields=EDIT_FIELDS,
    required=("image", "model", "prompt"),
    form_kinds=_KINDS,
    measure=measure,
    read_answer=image_generations.read_answer,
    new_stream=OpenAIStream,
    render_error=openai_error,
    not_forwarded=NOT_FORWARDED,
    counts_images=True,
    prompt_tokens_added=PLAIN_PROMPT_TOKENS_ADDED,
)

VARIATIONS: Dialect = Dialect(
    endpoint=Endpoint.IMAGE_VARIATIONS,
    fields=VARIATION_FIELDS,
    required=("image", "model"),
    form_kinds=_KINDS,
    measure=measure,
    read_answer=image_generations.read_answer,
    new_stream=OpenAIStream,
    render_error=openai_error,
    not_forwarded=NOT_FORWARDED,
    counts_images=True,
    prompt_tokens_added=PLAIN_PROMPT_TOKENS_ADDED,
)
