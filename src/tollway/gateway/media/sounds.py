"""Sound in files: its format, and how long it lasts as far as the beginning of the file shows.

A length from here is used where an engine reports none, and bounds what it reports. It is exact for WAV alone. Everything else is
an estimate by bit rate, because the end of a file, or a look at every frame, would be needed for more.
"""

from typing import Final, NamedTuple

from tollway.domain import faults
from tollway.domain.faults import Fault
from tollway.gateway.media.bounds import MediaBounds
from tollway.wire.forms import File

BYTES_PER_SECOND_LEAST: Final = 750
"""Lowest rate at which a format of speech is meant to be used: Opus at 6 kbit/s (RFC 6716, section 2.1.1)."""
BYTES_PER_SECOND_TYPICAL: Final = 8_000
"""Rate of speech in a compressed format, 64 kbit/s, where the file does not state its own."""

HEAD_BYTES: Final = 4096
"""Bytes of a file in which its format is looked for."""

_WAVE_FORMATS = frozenset({1, 3, 6, 7, 0xFFFE})
"""Formats of WAV in which each sample takes the same bytes: PCM, floats, A-law, mu-law, and those with an extended header."""
_MPEG_RATES = {
    3: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    0: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""Bit rates of layer III in kbit/s, by the two bits of the version in the header of a frame (ISO/IEC 11172-3 and 13818-3)."""


class Length(NamedTuple):
    """The length of sound in seconds, begun ones included: what is expected, and the most that it can be."""

    seconds: int
    seconds_max: int


def measure(file: File, name: str, bounds: MediaBounds) -> Length:
    """Return how long the sound in a file lasts. `name`: of its field. Raises Fault invalid_media or media_too_large."""
    if file.size > bounds.part_bytes_max:
        raise Fault(faults.MEDIA_TOO_LARGE, param=name, message=f"The file may have at most {bounds.part_bytes_max} bytes.")
    head = file.read(0, HEAD_BYTES)
    kind = _find_format(head)
    if kind is None or kind not in bounds.types:
        raise Fault(faults.MEDIA_INVALID, param=name, message="The file is not sound in a format that is accepted.")
    most = -(-file.size // BYTES_PER_SECOND_LEAST)
    if kind == "audio/wav":
        rate = _find_wave_rate(head)
        if rate == 0:
            raise Fault(faults.MEDIA_INVALID, param=name, message="The header of the sound is damaged.")
        if rate is not None:
            seconds = -(-file.size // rate)
            return Length(seconds, seconds)
    rate = _find_mpeg_rate(head) if kind == "audio/mpeg" else None
    seconds = -(-file.size // (rate or BYTES_PER_SECOND_TYPICAL))
    if kind == "audio/flac":
        seconds = _find_flac_seconds(head) or seconds
    return Length(min(seconds, most), most)


def _find_format(head: bytes) -> str | None:
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        return "audio/wav"
    if head[:4] == b"fLaC":
        return "audio/flac"
    if head[:4] == b"OggS":
        return "audio/ogg"
    if head[4:8] == b"ftyp":
        return "audio/mp4"
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "audio/webm"
    if head[:3] == b"ID3" or _find_mpeg_rate(head) is not None:
        return "audio/mpeg"
    return None


def _find_wave_rate(head: bytes) -> int | None:
    """Return the bytes of a second of WAV; 0 for a header that cannot be, None for a format with another number in each second."""
    at = 12
    while at + 8 <= len(head):
        size = int.from_bytes(head[at + 4 : at + 8], "little")
        if head[at : at + 4] == b"fmt ":
            fields = head[at + 8 : at + 24]
            if size < 16 or len(fields) < 16:
                return 0
            sound_format, channels = int.from_bytes(fields[:2], "little"), int.from_bytes(fields[2:4], "little")
            samples, bits = int.from_bytes(fields[4:8], "little"), int.from_bytes(fields[14:16], "little")
            return samples * channels * -(-bits // 8) if sound_format in _WAVE_FORMATS else None
        at += 8 + size + size % 2
    return 0


def _find_mpeg_rate(head: bytes) -> int | None:
    """Return the bytes of a second by the first frame of layer III; None if the file does not begin with one."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0 or head[1] & 0x06 != 0x02:
        return None
    rates = _MPEG_RATES.get(head[1] >> 3 & 3)
    index = head[2] >> 4
    if rates is None or index == 15 or head[2] >> 2 & 3 == 3:
        return None
    return rates[index] * 125 or BYTES_PER_SECOND_TYPICAL


def _find_flac_seconds(head: bytes) -> int:
    """Return how long FLAC says that it lasts (RFC 9639, section 8.2); 0 if it does not."""
    block = int.from_bytes(head[18:26], "big")
    rate, samples = block >> 44, block & (1 << 36) - 1
    return -(-samples // rate) if rate and head[4] & 0x7F == 0 else 0
