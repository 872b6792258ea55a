"""The part of R9 that compares costs: how much more a gateway pays for an input than whoever sends it, over all inputs known to be bad.

CPU is compared for whole gateways and for control, attacked over sockets as in R18: the client pays for its connections there, and the
gateway for its reader processes. Where an engine sends the bytes, its CPU counts with that of the client who asked for them. Memory is
compared for each reader, with the bytes of its input. The line is Envoy's: a hundred times.
"""

import tempfile
import time
from pathlib import Path

from fuzz import costs, parsers
from reliability import attacks, control_attacks
from reliability.records import Line, record

TIMES_MAX = 100.0
"""Multiple of the client's CPU, or of the input's bytes, above which a line fails."""

ENGINE_READERS = frozenset({"answer-head", "events"})
"""Readers of what engines send: their CPU is that of a reader alone, without the connections and the relaying around it, so it is shown
and not compared, as that of the other readers is not."""


def measure() -> list[Line]:
    """Measure every line, print and keep them."""
    began = time.time()
    with tempfile.TemporaryDirectory(prefix="tollway-attacks-") as scratch, attacks.attacked(Path(scratch)) as (platform, target):
        cpu = {name: attacks.take(target, name).cpu_times_client for name in attacks.ATTACKS}
        cpu |= control_attacks.compare_cpu(platform, target.pid)
    memory, readers = dict[str, float](), dict[str, float]()
    for parser in parsers.PARSERS:
        memory_times, cpu_times = costs.worst(parser)
        if memory_times is not None and cpu_times is not None:
            memory[parser], readers[parser] = memory_times, cpu_times
    lines = {f"CPU of {name}": times for name, times in cpu.items() if times is not None}
    lines |= {f"memory of {name}": times for name, times in memory.items()}
    wrong = [f"{name}: {times} times" for name, times in lines.items() if times > TIMES_MAX]
    print("\n".join(f"{times:8.1f} times: {name}" for name, times in sorted(lines.items(), key=lambda line: -line[1])), flush=True)
    detail = {
        "worst_cpu_times_client": max(times for times in cpu.values() if times is not None),
        "worst_memory_times_input": max(memory.values()),
        "lines": [f"{name}: {times}" for name, times in sorted(lines.items())],
        "too little CPU to compare": sorted(name for name, times in cpu.items() if times is None),
        "readers of what engines send, not compared": [f"{name}: {readers[name]}" for name in sorted(ENGINE_READERS)],
        "wrong": wrong,
    }
    return [record("R9", case="amplification", of="inputs", n=len(lines), failures=len(wrong), began=began, detail=detail)]
