"""Whole answers to requests of inference, as they are stored to be given again."""

import msgspec


class StoredAnswer(msgspec.Struct, frozen=True, array_like=True):
    """An answer of status 200. `headers`: lines that describe its body, ending in CR LF. `is_stream`: the body is sent as a stream."""

    headers: bytes
    body: bytes
    is_stream: bool
