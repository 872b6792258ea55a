"""Server-sent events (WHATWG HTML, section 9.2) as language-model APIs use them: bytes in, whole events out.

An event is what stands between blank lines. Engines write one event per write, ended by LF LF, so the reader's first question is
whether the bytes given are exactly whole events; only if not does it join, split and normalise line ends (CR LF, CR).
"""

EVENT_BYTES_MAX = 16 * 1024 * 1024
"""Default bound on an event. A model's longest are tool calls with a document in them, and the ids of a long prompt's tokens (1.1 MiB for
160,000); one above the bound comes from an upstream without line ends."""


class EventTooLong(ValueError):
    """The upstream sent more bytes than the reader's bound without ending an event."""


class EventReader:
    """Splits a stream into events. Each is returned without its blank line, with LF line ends, e.g. b'event: x\\ndata: {...}'.

    `event_bytes_max`: most bytes of one event."""

    __slots__ = ("_after_cr", "_event_bytes_max", "_rest")

    def __init__(self, event_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self._event_bytes_max = event_bytes_max
        self._rest: bytes | bytearray = b""
        self._after_cr = False

    def feed(self, data: bytes) -> list[bytes]:
        """The events completed by `data`, in order. Raises EventTooLong."""
        rest = self._rest
        if not rest and data.endswith(b"\n\n") and b"\r" not in data and not data.startswith(b"\n"):
            event = data[:-2]
            if b"\n\n" not in event and not event.endswith(b"\n") and len(event) <= self._event_bytes_max:
                return [event]
        if self._after_cr and data:
            self._after_cr = False
            if data.startswith(b"\n"):
                data = data[1:]  # the second half of a CR LF that two reads divided
        if b"\r" in data:
            self._after_cr = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if b"\n\n" not in data and not (rest.endswith(b"\n") and data.startswith(b"\n")):
            if not rest:
                rest = self._rest = bytearray()
            rest += data  # in place: an event that comes byte by byte is not copied at each byte
            if len(rest) > self._event_bytes_max:
                raise EventTooLong
            return []
        *events, last = bytes(rest + data).split(b"\n\n")
        events = [stripped for event in events if (stripped := event.lstrip(b"\n"))]
        if len(last) > self._event_bytes_max or any(len(event) > self._event_bytes_max for event in events):
            raise EventTooLong
        self._rest = bytearray(last) if last else b""
        return events

    @property
    def has_rest(self) -> bool:
        """Return whether bytes of an unfinished event are held."""
        return bool(self._rest) or self._after_cr


def find_data(event: bytes) -> bytes | None:
    """The event's data (lines joined by LF), or None if it has none: a comment, a bare id or retry."""
    if event.startswith(b"data: ") and b"\n" not in event:
        return event[6:]
    lines = []
    for line in event.split(b"\n"):
        if line.startswith(b"data:"):
            value = line[5:]
            lines.append(value[1:] if value.startswith(b" ") else value)
    return b"\n".join(lines) if lines else None


HEARTBEAT = b": keepalive\n\n"
"""A comment: every client skips it, every proxy sees traffic."""
