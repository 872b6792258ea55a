"""A process that spools as a gateway does, to be killed: `python dying_gateway.py DIRECTORY LIFE`.

Says "ready", then the id of each request whose FINAL is durable, a line each, written at once.
"""

import asyncio
import os
import random
import sys
from pathlib import Path

from tests.link.samples import admit, ended, final
from tollway.domain.billing_classes import Quantities
from tollway.domain.faults import Fault
from tollway.domain.usage import encode
from tollway.link.spool import Spool, SpoolOptions
from tollway.wire.progress_slots import OUTPUT_WORD, SLOT_WORDS


def alarm(event: str, fields: dict[str, object]) -> None:
    raise AssertionError(f"{event} {fields}")


async def request(opened: Spool, number: int, chance: random.Random) -> None:
    of = admit(number)
    slot = opened.admit(encode(of))
    tokens = 0
    for _ in range(chance.randint(0, 6)):
        tokens += chance.randint(1, 9)
        opened.progress[slot * SLOT_WORDS + OUTPUT_WORD] = tokens
        if chance.random() < 0.3:
            opened.checkpoint(of.request_id, Quantities(output=tokens), 0)
        await asyncio.sleep(chance.random() * 0.004)
    await ended(opened, slot, final(of, used=Quantities(output=tokens)))
    os.write(1, of.request_id.encode() + b"\n")


async def client(opened: Spool, life: int, index: int) -> None:
    chance = random.Random(f"{life}/{index}")
    for count in range(100_000):
        try:
            await request(opened, life << 40 | index << 24 | count, chance)
        except Fault:
            await asyncio.sleep(0.002)


async def main(directory: Path, life: int) -> None:
    opened = Spool.open(directory, alarm=alarm, options=SpoolOptions(segment_bytes=131_072, slots_max=128, tick_seconds=0.05))
    os.write(1, b"ready\n")
    await asyncio.gather(*(client(opened, life, index) for index in range(24)))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
