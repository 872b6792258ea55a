"""Types of the optional native extension (`_native.c`)."""

class EventTemplate:
    output: int
    event_bytes: int
    events: int
    def __init__(self, before: bytes, after: bytes, kept: int, output: int, output_most: int, hides_usage: bool) -> None: ...
    def relay(self, data: bytes) -> bytes | None: ...
