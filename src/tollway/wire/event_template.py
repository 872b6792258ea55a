"""Regular events of a stream, relayed by comparison with the event before them.

Most events of a token stream differ from their predecessor in the generated text and in two counts. A template holds the bytes
around these three fields. A read that consists of whole HTTP chunks (RFC 9112 section 7.1), each of which holds exactly one such event,
is relayed without reading its JSON: plain text in place of plain text cannot change what an object says beside it.

`tollway.native` has a twin of this class in C with the same contract; the tests hold one against the other.
"""

from tollway.wire.http import CHUNK_SIZES, chunk_size

_TOTAL_DIGITS_MAX = 20
_COUNT_DIGITS_MAX = 10
_HEAD_BYTES_MAX = 10
"""Longest line before a chunk: eight hexadecimal digits and CR LF."""
_COUNT = b',"completion_tokens":'
_COUNTS = b'%d,"completion_tokens":%d}}\n\n'
_END = b"}}\n\n"
_ZERO = ord("0")


class EventTemplate:
    """The bytes around the text and the counts of a stream's regular events.

    An event is `before`, text, `after`, the total of tokens, `,"completion_tokens":`, the tokens of output, and `}}` with an empty line.
    `kept`: bytes of `after` that do not belong to the usage; the rest of an event is removed if `hides_usage`. `output`: tokens of output
    of the last event; those of a further event are at least as many, at most `output_most`, and at most one more for each of its bytes.
    `event_bytes`: bytes of the events that `relay` returned last, without framing; `events`: their number in all. Raises ValueError if
    `before` is empty, a line ends inside `before` or `after`, or `kept` exceeds `after`.
    """

    __slots__ = ("_after", "_before", "_hides_usage", "_input", "_kept", "_output_most", "event_bytes", "events", "output")

    def __init__(self, before: bytes, after: bytes, kept: int, output: int, output_most: int, hides_usage: bool) -> None:
        if not before or b"\n" in before or b"\n" in after or not after.startswith(b'"') or not 0 < kept <= len(after):
            raise ValueError("not the parts of an event")
        self._before = before
        self._after = after
        self._kept = kept
        self._output_most = output_most
        self._input = 0  # what the total of the last event exceeded its output by: only a guess for the next one
        self._hides_usage = hides_usage
        self.output = output
        self.event_bytes = 0
        self.events = 0

    def relay(self, data: bytes) -> bytes | None:
        """Return what to send, in chunks, for `data`: whole chunks that hold one regular event each. Return None, and change nothing, if
        `data` is anything else."""
        before, after, output_most = self._before, self._after, self._output_most
        output = self.output
        event_bytes = events = at = 0
        relayed = b""
        while True:
            start = at + 5 if data[at + 3 : at + 5] == b"\r\n" else data.find(b"\n", at, at + _HEAD_BYTES_MAX) + 1
            text_at = start + len(before)
            text_end = data.find(b'"', text_at)
            counts_at = text_end + len(after)
            if start <= at or text_end < 0 or data[text_end:counts_at] != after or data[start:text_at] != before:
                return None
            try:
                text = data[text_at:text_end].decode()
            except UnicodeDecodeError:
                return None
            if not text.isprintable() or "\\" in text:
                return None
            output += 1  # nearly always: one more token than the last event
            counts = _COUNTS % (self._input + output, output)
            if data.startswith(counts, counts_at):
                end = counts_at + len(counts)
            else:
                end = data.find(b"\n\n", counts_at) + 2
                read = _read_counts(data[counts_at:end])
                if read is None or not output - 1 <= read[1] < output + end - start:
                    return None
                output = read[1]
                self._input = read[0] - output
            length = end - start
            size = CHUNK_SIZES[length] if 0 < length < 1024 else chunk_size(length)
            if output > output_most or data[end : end + 2] != b"\r\n" or (data[at:start] != size and data[at:start].lower() != size):
                return None
            event_bytes += length
            events += 1
            if self._hides_usage:
                kept_at = text_end + self._kept
                length = kept_at - start + 3
                piece = (CHUNK_SIZES[length] if length < 1024 else chunk_size(length)) + data[start:kept_at] + b"}\n\n\r\n"
            else:
                piece = data[at:start].lower() + data[start : end + 2]
            relayed = relayed + piece if relayed else piece
            at = end + 2
            if at >= len(data):
                break
        self.output = output
        self.event_bytes = event_bytes
        self.events += events
        return relayed


def _read_counts(data: bytes) -> tuple[int, int] | None:
    """Return the total and the tokens of output that an event ends with, or None if they are not plain decimal numbers."""
    total, _, rest = data.partition(_COUNT)
    count = rest[:-4]
    if rest[-4:] != _END or not (total.isdigit() and count.isdigit()) or total[0] == _ZERO or count[0] == _ZERO:
        return None
    if len(total) > _TOTAL_DIGITS_MAX or len(count) > _COUNT_DIGITS_MAX:
        return None
    return int(total), int(count)
