"""The conversation of a response that is stored, or that continues a stored one, as readers of its answer see it."""

from collections.abc import Mapping
from typing import Any

import msgspec

from tollway.wire import bodies


class Conversation(msgspec.Struct, frozen=True):
    """`response_id`: the id under which the response is stored, empty if it is not. `previous_response_id`: the stored response that it
    continues, None for none. `items`: the whole conversation, as a JSON array. `pieces`: the body of the request as it was sent.
    `in_background`: nobody waits for the response (`background_responses`)."""

    response_id: str
    previous_response_id: str | None
    items: bytes
    pieces: tuple[bytes, ...]
    in_background: bool = False

    def list_members(self) -> Mapping[str, Any]:
        """Return the members of the response that follow from it."""
        members: dict[str, Any] = {"previous_response_id": self.previous_response_id}
        if self.response_id:
            members |= {"id": self.response_id, "store": True}
        return members | {"background": True} if self.in_background else members


def identify_response(response: bytes, conversation: Conversation | None) -> bytes:
    """Return a response with the members that follow from its conversation, verbatim in all else."""
    if conversation is None:
        return response
    members: dict[str, Any] = dict(bodies.members(response))
    members |= {name: msgspec.json.encode(value) for name, value in conversation.list_members().items()}
    return bodies.join(members)
