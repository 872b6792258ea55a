"""A salt at the beginning of the prompt, for engines whose prefix cache cannot be separated in another way.

A prefix cache is shared from the first token on, so prompts that begin with different salts share nothing. The salt becomes the first bytes
of the system prompt: the model reads it, and its tokens are billed. Whatever a client writes follows its organization's own salt.
"""

from collections.abc import MutableMapping
from typing import Any

import msgspec

from tollway.wire import bodies

_list = msgspec.json.Decoder(list[msgspec.Raw])
_SYSTEM_ROLES = (b'"system"', b'"developer"')


def salt_messages(members: MutableMapping[str, Any], salt: bytes) -> None:
    """Begin the system message of OpenAI's chat with `salt` (characters that JSON does not escape); add one if there is none."""
    messages = _list.decode(members["messages"])
    first = bodies.members(bytes(messages[0]))
    if bytes(first.get("role", b"")) in _SYSTEM_ROLES:
        salted: dict[str, Any] = dict(first)
        salted["content"] = _salt_content(first.get("content", b"null"), salt)
        joined = [bodies.join(salted), *messages[1:]]
    else:
        joined = [b'{"role":"system","content":"%b"}' % salt, *messages]
    members["messages"] = b"[" + b",".join(joined) + b"]"


def salt_system(members: MutableMapping[str, Any], salt: bytes) -> None:
    """Begin the `system` field of Anthropic's messages with `salt` (characters that JSON does not escape)."""
    members["system"] = _salt_content(members.get("system", b"null"), salt)


def salt_instructions(members: MutableMapping[str, Any], salt: bytes) -> None:
    """Begin the `instructions` field of OpenAI's responses with `salt` (characters that JSON does not escape)."""
    members["instructions"] = _salt_content(members.get("instructions", b"null"), salt)


def _salt_content(content: bytes | msgspec.Raw, salt: bytes) -> bytes:
    raw = bytes(content)
    if raw.startswith(b'"'):
        return b'"' + salt + b"\\n" + raw[1:]
    part = b'{"type":"text","text":"%b\\n"}' % salt
    if raw.startswith(b"["):
        rest = raw[1:].lstrip()
        return b"[" + part + (b"" if rest.startswith(b"]") else b",") + rest
    return b'"' + salt + b'"'
