"""Fuzz the native extension under sanitizers: `python -m fuzz.native --seconds 60`.

Reads of a stream, bodies and payloads of records are mutated at random and given to the extension and to its twins in Python. It is built
with the address and undefined-behaviour sanitizers, and each Python object has its own allocation. Exits with 1 and prints the input if
the two differ; a sanitizer ends the process itself, with its report."""

import argparse
import importlib.machinery
import importlib.util
import os
import random
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from types import ModuleType

import tollway
from tollway.domain.catalog import Endpoint
from tollway.domain.faults import Fault
from tollway.gateway.dialects.fields import is_plain, list_plain_fields
from tollway.gateway.dialects.table import DIALECTS
from tollway.wire import bodies, segments
from tollway.wire.event_template import EventTemplate

SOURCE = Path(tollway.__file__).parent / "_native.c"
BEFORE = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"'
AFTER = b'"},"finish_reason":null}],"usage":{"prompt_tokens":300,"total_tokens":'
KEPT = AFTER.index(b',"usage"')
OUTPUT_MOST = 1000
FRAGMENTS = [
    b'"', b"\\", b"\r\n", b"\n\n", b"}}\n\n", b"0", b"9" * 30, b"0\r\n\r\n", b"ffffffff\r\n", b"7fffffff", b";", b"\xff", b"\xc3", b"\x7f",
    "\u2028".encode(), "é".encode(), BEFORE, AFTER, AFTER[:KEPT], b',"completion_tokens":',
]  # fmt: skip


BODY = (
    b'{"model":"m","messages":[{"role":"system","content":"a long text of a message, \\n\\u00e9"},{"role":"user","content":"b"}],'
    b'"stream":true,"stream_options":{"include_usage":true},"temperature":0.7,"max_tokens":100,"seed":-5,"user":"me","stop":null}'
)
BODY_FRAGMENTS = [
    b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b" ", b"\\u", b"\\ud83d", b"0", b"-", b"1.5", b"9" * 20, b"e5", b"null", b"true",
    b"\0", b"\xff", "é".encode(), b'"model":', b'{"a":1}', b"x" * 70,
]  # fmt: skip


def mutate(rng: random.Random, text: bytes, fragments: list[bytes]) -> bytes:
    """Return a text, in four of five cases with a few bytes changed, removed or inserted."""
    changed = bytearray(text)
    for _ in range(rng.choice([0, 1, 1, 2, 4])):
        start = rng.randrange(len(changed) + 1)
        end = start + rng.choice([0, 0, 1, rng.randrange(1 + len(changed) - start)])
        changed[start:end] = rng.choice([b"", rng.randbytes(rng.randrange(1, 3)), rng.choice(fragments)])
    return bytes(changed)


def mutate_read(rng: random.Random) -> bytes:
    """Return a read of one to three regular events, most of them mutated."""
    read = bytearray()
    for _ in range(rng.randrange(1, 4)):
        text = rng.choice([b"", b" a", b"x" * rng.randrange(2000), "日本é".encode(), rng.randbytes(3)])
        output = rng.choice([rng.randrange(12), rng.randrange(2 * OUTPUT_MOST)])
        event = BEFORE + text + AFTER + b'%d,"completion_tokens":%d}}\n\n' % (300 + output, output)
        read += b"%x\r\n%b\r\n" % (len(event), event)
    return mutate(rng, bytes(read), FRAGMENTS)


def find_wrong_body(native: ModuleType, rng: random.Random) -> bytes | None:
    """Give mutated bodies to the native reader. Return one that it reads otherwise than its twin, None for none."""
    dialect = DIALECTS[Endpoint.CHAT_COMPLETIONS]
    reader = native.PlainReader(list_plain_fields(dialect.fields, dialect.required))
    for _ in range(20):
        body = mutate(rng, BODY, BODY_FRAGMENTS)
        found = reader.read(body)
        if found is None:
            continue
        try:
            asked = bodies.read(body)
        except Fault:
            return body
        whole = {name: () if type(value) is list else value for name, value in asked.items()}
        if repr(whole) != repr(found) or not is_plain(asked, dialect.plain):
            return body
    return None


def hunt(native: ModuleType, seconds: float, seed: int) -> int:
    """Feed mutated reads to both until the time is over, and return the exit code."""
    rng = random.Random(seed)
    ends = time.monotonic() + seconds
    reads = relayed = 0
    while time.monotonic() < ends:
        body = find_wrong_body(native, rng)
        if body is not None:
            print(f"native: the readers of bodies differ on {body!r}", file=sys.stderr)
            return 1
        chain, seq, payload = (
            rng.randbytes(16),
            rng.getrandbits(64),
            rng.randbytes(rng.choice([0, rng.randrange(100), rng.randrange(5000)])),
        )
        if hasattr(native, "extend") and native.extend(chain, seq, payload) != segments.extend(chain, seq, payload):
            print(f"native: the records differ on {chain!r}, {seq}, {payload!r}", file=sys.stderr)
            return 1
        hides_usage = rng.random() < 0.5
        ours = EventTemplate(BEFORE, AFTER, KEPT, 0, OUTPUT_MOST, hides_usage)
        twin = native.EventTemplate(BEFORE, AFTER, KEPT, 0, OUTPUT_MOST, hides_usage)
        for _ in range(20):
            read = mutate_read(rng)
            expected, found = ours.relay(read), twin.relay(read)
            reads += 1
            relayed += expected is not None
            if (expected, ours.output, ours.event_bytes) != (found, twin.output, twin.event_bytes):
                print(f"native: the twins differ on {read!r}", file=sys.stderr)
                return 1
    print(f"{'native':17} {reads:>9} inputs in {seconds:.0f} s, {relayed} relayed, 0 failures", flush=True)
    return 0


def main() -> int:
    """Run the fuzzer; without --library, build the extension with sanitizers and start again under them."""
    cli = argparse.ArgumentParser(prog="fuzz.native", description=__doc__)
    cli.add_argument("--seconds", type=float, default=60)
    cli.add_argument("--seed", type=int, default=1)
    cli.add_argument("--library", help="the extension, built with sanitizers")
    options = cli.parse_args()
    if options.library:
        loader = importlib.machinery.ExtensionFileLoader("tollway._native", options.library)
        spec = importlib.util.spec_from_loader("tollway._native", loader)
        assert spec is not None
        native = importlib.util.module_from_spec(spec)
        loader.exec_module(native)
        return hunt(native, options.seconds, options.seed)
    compiler = shutil.which("gcc")
    if compiler is None:
        print("native            skipped: no gcc")
        return 0
    with tempfile.TemporaryDirectory(prefix="tollway-fuzz-") as scratch:
        library = Path(scratch) / "_native.so"
        command = [compiler, "-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-shared", "-fPIC"]
        subprocess.run([*command, f"-I{sysconfig.get_path('include')}", "-o", str(library), str(SOURCE)], check=True)
        asan = subprocess.run([compiler, "-print-file-name=libasan.so"], check=True, capture_output=True, text=True).stdout.strip()
        # Leaks are the interpreter's own at its end. With malloc, each bytes object ends where its memory does.
        environment = {"LD_PRELOAD": asan, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc"}
        again = [sys.executable, "-m", "fuzz.native", "--library", str(library), "--seconds", str(options.seconds)]
        return subprocess.run([*again, "--seed", str(options.seed)], env={**os.environ, **environment}).returncode


if __name__ == "__main__":
    sys.exit(main())
