"""Admission of message parts: links that an engine would fetch (`links`) and media that it would decode (`bounds`). Text is not examined.

Parts that can hold media are accepted in the shapes that the APIs and engines define, and nothing else: a member that one engine ignores
may be a key of another's cache, or a link under another name. Media are recognised by the names of members and not by `type` alone, because
engines accept parts without one.
"""

from typing import Any

from tollway.domain import faults
from tollway.domain.faults import Fault
from tollway.gateway.media.bounds import MediaBounds, Tally, refuse
from tollway.gateway.media.links import is_public

_KINDS = {"image_url": "image/", "video_url": "video/", "audio_url": "audio/", "input_audio": "audio/", "file": "", "source": ""}
"""Members of a part that may hold a link or data, and how the type of that data must begin: an engine's decoder follows from the name."""
_OBJECTS = frozenset({"file", "input_audio"})
"""Those of them that are objects in every API: as a text one would be a link that is not looked at."""
_MEDIA_TYPES = frozenset({"audio_url", "document", "file", "image", "image_url", "input_audio", "input_image", "video_url"})
PART_TYPES = _MEDIA_TYPES | {
    "advisor_tool_result", "bash_code_execution_tool_result", "code_execution_tool_result", "compaction", "container_upload", "fallback",
    "input_text", "mcp_tool_listing", "mcp_tool_result", "mcp_tool_use", "output_text", "reasoning", "reasoning_text", "redacted_thinking",
    "refusal", "search_result", "server_tool_use", "summary_text", "text", "text_editor_code_execution_tool_result", "thinking",
    "tool_addition", "tool_reference",
    "tool_removal", "tool_result", "tool_search_tool_result", "tool_use", "web_fetch_tool_result", "web_search_tool_result",
}  # fmt: skip
"""Types of parts in the APIs and engines that are served. A new one is added here, once it is known what it carries; the tests compare this
with the official SDKs. The arguments of a tool call (`input`) are not examined, because nothing fetches them."""
_MEDIA_PART_MEMBERS = frozenset(_KINDS) | {
    "cache_control", "citations", "context", "detail", "modalities", "prompt_cache_breakpoint", "text", "title", "transformations", "type",
}  # fmt: skip
"""Members of a part of one of the media types, or without a type."""
_MEDIA_OBJECT_MEMBERS = frozenset({"content", "data", "detail", "file_data", "file_id", "filename", "format", "media_type", "type", "url"})
"""Members of the object that holds a link or data."""
_CACHE_KEYS = frozenset({"uuid", "content_hash"})
"""Members by which engines find media in a cache that all tenants share: vLLM (`uuid` of a part), SGLang (`content_hash` of a link). With
the key of another tenant's picture, an engine would describe that picture."""


ITEM_TYPES = frozenset(
    {
        "custom_tool_call", "custom_tool_call_output", "function_call", "function_call_output", "local_shell_call",
        "local_shell_call_output", "message", "reasoning",
    }
)  # fmt: skip
"""Types of items in a conversation of OpenAI's responses: messages, and the calls and results of tools that the client runs itself. Items
of tools that OpenAI's platform runs, and references to what it has stored, mean nothing here."""
ITEM_MEMBERS = frozenset(
    {
        "action", "arguments", "async", "call_id", "caller", "content", "encrypted_content", "id", "input", "name", "namespace", "output",
        "phase", "role", "status", "summary", "type",
    }
)  # fmt: skip
"""Members of items of these types. Nothing fetches or decodes what stands in them, but for the contents."""
_ITEM_CONTENTS = frozenset({"content", "output", "summary"})
"""Members of an item that may hold parts."""


def check_messages(messages: Any, system: Any, bounds: MediaBounds) -> int:
    """Check the links and media in messages and in the system prompt. Return the most input tokens that a model can read the media as, 0 if
    there are none.

    For a message of text only the type of its content is examined. Raises Fault invalid_image_url for a link that must not be fetched,
    invalid_media or media_too_large, and invalid_value for a shape that is unknown; `param` names the place.
    """
    tally = Tally(bounds)
    if type(system) is not str and system is not None:
        _check_content(system, "system", tally)
    if type(messages) is list:
        for number, message in enumerate(messages):
            if type(message) is not dict:
                raise _unknown_shape(f"messages[{number}]")
            content = message.get("content")
            if type(content) is not str and content is not None:
                _check_content(content, f"messages[{number}].content", tally)
    return tally.tokens_max


def check_items(items: Any, place: str, bounds: MediaBounds) -> int:
    """Check the types, links and media of the items in the field `place` of OpenAI's responses. Return the most input tokens that a model
    can read the media as, 0 if there are none.

    Raises Fault as `check_messages` does, and invalid_value for an item of a type that is not accepted.
    """
    tally = Tally(bounds)
    if type(items) is list:
        for number, item in enumerate(items):
            if type(item) is not dict:
                raise _unknown_shape(f"{place}[{number}]")
            item_type = item.get("type", "message")
            if type(item_type) is not str or item_type not in ITEM_TYPES:
                message = f"Items of this type are not accepted here. Accepted: {', '.join(sorted(ITEM_TYPES))}."
                raise Fault(faults.PARAMETER_INVALID, param=f"{place}[{number}].type", message=message)
            for name, value in item.items():
                if name in _ITEM_CONTENTS:
                    _check_content(value, f"{place}[{number}].{name}", tally)
                elif name not in ITEM_MEMBERS:
                    raise _unknown_shape(f"{place}[{number}].{name}")
    return tally.tokens_max


def _check_content(content: Any, place: str, tally: Tally) -> None:
    if type(content) is list:
        _check_parts(content, place, tally)
    elif type(content) is dict:
        raise _unknown_shape(place)


def _check_parts(parts: list[Any], place: str, tally: Tally, *, is_result: bool = False) -> None:
    """Check the parts of a content. `is_result`: of a tool, whose types are the tool's."""
    for number, part in enumerate(parts):
        if type(part) is dict:
            if len(part) == 2 and part.get("type") == "text" and type(part.get("text")) is str:
                continue  # most parts are plain text
            _check_part(part, f"{place}[{number}]", tally, is_result=is_result)
        elif type(part) is not str:
            raise _unknown_shape(f"{place}[{number}]")


def _check_part(part: dict[str, Any], place: str, tally: Tally, *, is_result: bool) -> None:
    part_type = part.get("type")
    for name, value in part.items():
        if name.endswith("_embeds") and value is not None:
            # Serialized tensors: deserializing one from a client has run its code, and has written out of bounds.
            raise refuse(f"{place}.{name}", "Embeddings are not accepted in messages.")
    if part_type is not None and not (type(part_type) is str and (part_type in PART_TYPES or is_result)):
        raise _unknown_shape(f"{place}.type")
    is_media = part_type in _MEDIA_TYPES or (part_type is None and not is_result)
    is_result = is_result or (part_type is not None and part_type.endswith("_result"))
    for name, value in part.items():
        kind = type(value)
        if name in _CACHE_KEYS or (is_media and name not in _MEDIA_PART_MEMBERS):
            raise _unknown_shape(f"{place}.{name}")
        if kind is str:
            if name == "url" or name.endswith("_url"):
                _check_url(value, _KINDS.get(name, ""), f"{place}.{name}", tally)
            elif name in _OBJECTS:
                raise _unknown_shape(f"{place}.{name}")
        elif kind is dict:
            if name in _KINDS:
                _check_object(name, value, part, f"{place}.{name}", tally)
            elif name == "content":
                _check_part(value, f"{place}.content", tally, is_result=True)
        elif kind is list:
            if name == "content":
                _check_parts(value, f"{place}.content", tally, is_result=is_result)
            elif name in _KINDS:
                raise _unknown_shape(f"{place}.{name}")


def _check_object(name: str, value: dict[str, Any], part: dict[str, Any], place: str, tally: Tally) -> None:
    """Check an object inside a part, which may hold a link, data, or further parts."""
    if not _MEDIA_OBJECT_MEMBERS.issuperset(value):
        unknown = next(member for member in value if member not in _MEDIA_OBJECT_MEMBERS)
        raise _unknown_shape(f"{place}.{unknown}")
    kind = "image/" if name == "source" and part.get("type") == "image" else _KINDS[name]
    if value.get("url") is not None:
        _check_url(_text(value["url"], place), kind, f"{place}.url", tally)
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
        if value.get("content") is not None:  # a document of parts
            _check_content(value["content"], f"{place}.content", tally)


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


def _unknown_shape(place: str) -> Fault:
    shown = place if place.isascii() and place.isprintable() and len(place) <= 256 else None
    where = f": {shown}" if shown else ""
    return Fault(faults.PARAMETER_INVALID, param=shown, message=f"A part of the messages has a shape that is not accepted{where}.")
