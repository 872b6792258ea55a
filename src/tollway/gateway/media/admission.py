"""Admission of message parts: links that an engine would fetch (`links`) and media that it would decode (`bounds`). Text is not examined.

Parts are recognised by the names of their fields and not by their `type`, because engines accept parts without one.
"""

from collections.abc import Iterable
from typing import Any

from tollway.domain import faults
from tollway.domain.faults import Fault
from tollway.gateway.media.bounds import MediaBounds, Tally, refuse
from tollway.gateway.media.links import is_public

_KINDS = {"image_url": "image/", "video_url": "video/", "audio_url": "audio/", "input_audio": "audio/", "file": "", "source": ""}
"""Members of a part that may hold a link or data, and how the type of that data must begin: an engine's decoder follows from the name.
The arguments of a tool call (`input`) are not examined, because nothing fetches them."""


def check_messages(messages: Iterable[Any], bounds: MediaBounds) -> int:
    """Check the links and media in messages. Return the most input tokens that a model can read the media as, 0 if there are none.

    For a message of text only the type of its content is examined.

    Raises Fault invalid_image_url for a link that must not be fetched, invalid_media or media_too_large; `param` names the place.
    """
    tally: Tally | None = None
    for number, message in enumerate(messages):
        if type(message) is dict:
            content = message.get("content")
            if type(content) is list:
                if tally is None:
                    tally = Tally(bounds)
                _check_parts(content, f"messages[{number}].content", tally)
    return 0 if tally is None else tally.tokens_max


def _check_parts(parts: list[Any], place: str, tally: Tally) -> None:
    for number, part in enumerate(parts):
        if type(part) is dict:
            if len(part) == 2 and part.get("type") == "text" and type(part.get("text")) is str:
                continue  # most parts are plain text
            for name, value in part.items():
                kind = type(value)
                if kind is str:
                    if name == "url" or name.endswith("_url"):
                        _check_url(value, _KINDS.get(name, ""), f"{place}[{number}].{name}", tally)
                elif kind is dict:
                    if name in _KINDS:
                        _check_object(name, value, part, f"{place}[{number}].{name}", tally)
                elif kind is list and name == "content":  # the result of a tool
                    _check_parts(value, f"{place}[{number}].content", tally)
                if name.endswith("_embeds") and value is not None:
                    # Serialized tensors: deserializing one from a client has run its code, and has written out of bounds.
                    raise refuse(f"{place}[{number}].{name}", "Embeddings are not accepted in messages.")


def _check_object(name: str, value: dict[str, Any], part: dict[str, Any], place: str, tally: Tally) -> None:
    """Check an object inside a part, which may hold a link, data, or further parts."""
    kind = "image/" if name == "source" and part.get("type") == "image" else _KINDS[name]
    if type(value.get("url")) is str:
        _check_url(value["url"], kind, f"{place}.url", tally)
    if name == "input_audio":
        if value.get("data") is not None:
            tally.count_part(kind, place)
            tally.add(_text(value["data"], place), 0, f"audio/{_text(value.get('format'), place).lower()}", kind, place)
    elif name == "file":
        if value.get("file_data") is not None:
            tally.count_part(kind, place)
            tally.add_url(_text(value["file_data"], place), kind, f"{place}.file_data")
    elif name == "source":
        is_text = part.get("type") == "document" and value.get("type") == "text"
        if value.get("data") is not None and not is_text:
            tally.count_part(kind, place)
            tally.add(_text(value["data"], place), 0, _text(value.get("media_type"), place).lower(), kind, f"{place}.data")
        if type(value.get("content")) is list:  # a document of parts
            _check_parts(value["content"], f"{place}.content", tally)


def _check_url(url: str, kind: str, place: str, tally: Tally) -> None:
    tally.count_part(kind, place)
    if url[:5].lower() == "data:":
        tally.add_url(url, kind, place)
    elif not is_public(url):
        raise Fault(faults.LINK_INVALID, param=place)


def _text(value: Any, place: str) -> str:
    if type(value) is not str:
        raise refuse(place, "The data and its type must be text.")
    return value
