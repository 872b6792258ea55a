"""The request field that makes an engine report usage in a stream, and whether that usage is hidden from the client.

Usage is requested for every stream: `Call.find_injected` (`gateway/request.py`) sets the field. What the client
did not ask for is removed again by the reader of the stream (`openai_stream`), as `find_hidden` decides.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageOptions:
    """The request field that asks for usage in a stream, and its value for usage at the end and for running usage."""

    field: str
    final: bytes
    continuous: bytes

    def find_hidden(self, body: Mapping[str, Any]) -> tuple[bool, bool]:
        """Return whether usage at the end, and running usage, must be removed from the stream because this request did not ask for them."""
        options = body.get(self.field) or {}
        hide_usage = options.get("include_usage") is not True
        return hide_usage, hide_usage or options.get("continuous_usage_stats") is not True
