"""Compactions of conversations as they stand in requests and answers: items of the type `compaction`.

What OpenAI returns encrypted under a key of its own is here the summary, encoded. Whoever gets it has sent the conversation, and a summary
that a client makes up says no more than a message of the user's could. So nothing is stored, and every gateway can read it.
"""

import base64
import binascii
from typing import Any, Final

import msgspec

_PREFIX: Final = "tw1_"
"""Beginning of a summary that a gateway has encoded; its version."""
MARK: Final = b'"compaction"'
"""A body without it has no compaction."""
_OPENING: Final = "This is a summary of the conversation until here:\n\n"


class _Item(msgspec.Struct, frozen=True):
    type: Any = None
    encrypted_content: Any = None


def encode_summary(summary: str) -> str:
    """Return the content of the item that stands for a conversation with this summary."""
    return _PREFIX + base64.urlsafe_b64encode(summary.encode("utf-8", "surrogatepass")).decode()


def expand(item: msgspec.Raw) -> msgspec.Raw:
    """Return an item of a conversation, a compaction of ours as the message of the user's that it stands for. Any other item, and a
    compaction that is not ours, is returned as it is."""
    if MARK not in bytes(item):
        return item
    try:
        read = msgspec.json.decode(item, type=_Item)
        content = read.encrypted_content
        if read.type != "compaction" or type(content) is not str or not content.startswith(_PREFIX):
            return item
        summary = base64.b64decode(content.removeprefix(_PREFIX), altchars=b"-_", validate=True).decode()
    except (msgspec.DecodeError, binascii.Error, UnicodeDecodeError):
        return item
    part = {"type": "input_text", "text": _OPENING + summary}
    return msgspec.Raw(msgspec.json.encode({"type": "message", "role": "user", "content": [part]}))
