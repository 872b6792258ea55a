"""Events of engines about the blocks of their prefix caches, as vLLM (from 0.32, `vllm/distributed/kv_events.py`) and SGLang (from 0.5.23,
`sglang/srt/disaggregation/kv_events.py`) publish them: batches in MessagePack, `[time, [event, ...], rank]`, each event a map with its
`type`. Older versions have arrays in place of maps; these name no session, and are passed over.

Ids of tokens are not read: they are what prompts say.
"""

import msgspec

BATCH_EVENTS_MAX = 65_536
"""Most events of one batch: SGLang sends one for each block."""
BLOCK_TOKENS_MAX = 65_536


class BlocksStored(msgspec.Struct, tag="BlockStored", tag_field="type"):
    """Blocks were stored, one after the other, behind `parent_block_hash` (None: at the begin of a prompt). `session_id`: of the request
    that stored them. `medium`: where they are; `GPU` or None for the cache itself, else a slower place behind it."""

    block_hashes: list[int | bytes]
    block_size: int
    parent_block_hash: int | bytes | None = None
    medium: str | None = None
    session_id: str | None = None
    kv_cache_spec_sliding_window: int | None = None


class BlocksRemoved(msgspec.Struct, tag="BlockRemoved", tag_field="type"):
    """Blocks were dropped."""

    block_hashes: list[int | bytes]
    medium: str | None = None


class CacheCleared(msgspec.Struct, tag="AllBlocksCleared", tag_field="type"):
    """All blocks were dropped."""


CacheEvent = BlocksStored | BlocksRemoved | CacheCleared


class _Batch(msgspec.Struct, array_like=True):
    ts: float
    events: list[msgspec.Raw]


_batches = msgspec.msgpack.Decoder(_Batch)
_events = msgspec.msgpack.Decoder(CacheEvent)


def read_batch(payload: bytes) -> list[CacheEvent]:
    """Return the events of a batch that concern the cache itself, in their order. Raises ValueError for bytes that are no batch."""
    found: list[CacheEvent] = []
    try:
        events = _batches.decode(payload).events
        if len(events) > BATCH_EVENTS_MAX:
            raise ValueError("a batch of too many events")
        for raw in events:
            first = memoryview(raw)[0]
            if not (0x80 <= first <= 0x8F or first in (0xDE, 0xDF)):
                continue  # no map: an event of an older version
            event = _events.decode(raw)
            if isinstance(event, CacheCleared) or event.medium in (None, "GPU"):
                if isinstance(event, BlocksStored):
                    if not 0 < event.block_size <= BLOCK_TOKENS_MAX:
                        raise ValueError("a block without a size")
                    if event.kv_cache_spec_sliding_window is not None:
                        continue  # layers that look back a little way: their blocks are dropped early
                found.append(event)
    except msgspec.DecodeError as error:
        raise ValueError(f"no batch of events: {type(error).__name__}") from None
    return found
