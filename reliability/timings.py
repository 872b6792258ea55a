"""R17: what the time of a refusal tells of the key. A real gateway refuses keys that never were, that were revoked, that expired and that
are written wrongly, in turn, over connections that are kept; the times of any two kinds must come from one distribution.

Every round asks once with each kind, in an order of its own, so that whatever else the machine does falls on all kinds alike. Two of
the kinds are the same (never were), which shows what two samples of one distribution look like here. How small a difference would have
been noticed is measured too, by adding one to the sample: a figure that cannot fail says nothing."""

import gc
import json
import math
import os
import random
import socket
import statistics
import tempfile
import time
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from urllib.parse import urlsplit

import httpx2

from reliability.platforms import Platform, list_models, supervised
from reliability.processes import WAIT_SECONDS
from reliability.records import Line, record
from tollway.domain.keys import RANDOM_BYTES, KeyType, new_key

KEYS = 8
"""Keys of each kind, used in turn: one key alone could be told by where it happens to lie in memory."""
CONNECTIONS = 4
WARM_ROUNDS = 200
"""Before anything is counted: the first requests of a process are slower, whatever they ask."""
EXPIRES_SECONDS = 3
ALPHA = 0.001
"""Probability with which all comparisons together may find a difference where there is none."""
CONTROL = ("unknown", "unknown again")
ENVIRONMENT = {"TOLLWAY__GATEWAY__EDGE__FAILED_AUTHENTICATIONS_PER_MINUTE": "0"}
"""Refusals of one address are bounded otherwise, alike for all kinds, and thousands are needed."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two samples: the largest distance between their distributions, how large it may be, how likely that distance is if they are one,
    and what their medians differ by."""

    distance: float
    distance_max: float
    p: float
    medians_differ_us: float

    @property
    def is_told(self) -> bool:
        """Return whether the two can be distinguished."""
        return self.distance > self.distance_max


def find_distance(a: Sequence[float], b: Sequence[float]) -> float:
    """The statistic of the two-sample Kolmogorov-Smirnov test: the largest distance between the two empirical distributions."""
    a, b = sorted(a), sorted(b)
    return max(abs(bisect_right(a, value) / len(a) - bisect_right(b, value) / len(b)) for value in {*a, *b})


def find_distance_max(alpha: float, n: int, m: int) -> float:
    """The distance that samples of these sizes from one distribution exceed with probability `alpha` (asymptotic)."""
    return math.sqrt(-math.log(alpha / 2) / 2 * (n + m) / (n * m))


def find_p(distance: float, n: int, m: int) -> float:
    """Return how likely at least this distance is, if both are from one distribution (asymptotic; Smirnov 1948)."""
    scaled = distance * math.sqrt(n * m / (n + m))
    if scaled < 0.2:  # the series does not converge there, and the probability is 1 to nine digits
        return 1.0
    series = sum((1 if k % 2 else -1) * math.exp(-2 * (k * scaled) ** 2) for k in range(1, 101))
    return min(1.0, max(0.0, 2 * series))


def compare(a: Sequence[float], b: Sequence[float], alpha: float) -> Comparison:
    """Two samples of microseconds."""
    distance = find_distance(a, b)
    return Comparison(
        distance,
        find_distance_max(alpha, len(a), len(b)),
        find_p(distance, len(a), len(b)),
        statistics.median(b) - statistics.median(a),
    )


def find_noticed_us(a: Sequence[float], b: Sequence[float], alpha: float) -> float | None:
    """The smallest of some delays that, had `b` taken so much longer, would have been noticed; None if none of them."""
    delays = (0.5, 1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0, 50.0, 100.0)
    return next((each for each in delays if compare(a, [value + each for value in b], alpha).is_told), None)


def measure(rounds: int, seed: int) -> list[Line]:
    """Take the figure and keep it; what went wrong is printed."""
    began = time.time()
    with (
        tempfile.TemporaryDirectory(prefix="tollway-timings-") as scratch,
        supervised(Path(scratch), environment=ENVIRONMENT) as (platform, _),
    ):
        samples = take(platform.gateway_url, make_keys(platform), rounds, seed)
    pairs = [(a, b) for a, b in combinations(samples, 2) if b != CONTROL[1]] + [CONTROL]
    alpha = ALPHA / len(pairs)
    found = {pair: compare(samples[pair[0]], samples[pair[1]], alpha) for pair in pairs}
    control = samples[CONTROL[0]], samples[CONTROL[1]]
    told = [pair for pair, comparison in found.items() if comparison.is_told]
    print("\n".join(f"distinguished by time: {a} and {b}" for a, b in told), flush=True)
    return [
        record(
            "R17",
            of="comparisons",
            n=len(pairs),
            failures=len(told),
            seed=seed,
            began=began,
            detail={
                "refusals_of_each_kind": rounds,
                "median_us": {kind: round(statistics.median(sample), 1) for kind, sample in samples.items()},
                "middle_half_us": round(_middle_half(samples[CONTROL[0]]), 1),
                "distance_allowed": round(found[CONTROL].distance_max, 4),
                "delay_that_would_be_noticed_us": find_noticed_us(*control, alpha),
                "compared": [_describe(pair, comparison) for pair, comparison in found.items()],
            },
        )
    ]


def _middle_half(sample: Sequence[float]) -> float:
    low, _, high = statistics.quantiles(sample, n=4)
    return high - low


def _describe(pair: tuple[str, str], comparison: Comparison) -> str:
    apart = " **distinguished**" if comparison.is_told else ""
    return (
        f"{pair[0]} and {pair[1]}: distance {comparison.distance:.4f}, p {comparison.p:.2g}, "
        f"medians differ by {comparison.medians_differ_us:+.2f} µs{apart}"
    )


def make_keys(platform: Platform) -> Mapping[str, Sequence[str]]:
    """Keys of every kind, by kind; the gateway knows of them what it will know."""
    path = f"/v1/organization/projects/{platform.tenant.project_id}/api_keys"
    revoked, expired = [], []
    with platform.admin() as http:
        for number in range(KEYS):
            made = _answered(http.post(path, json={"name": f"revoked {number}"}))
            _wait_until(platform, made["value"], 200)
            _answered(http.delete(f"{path}/{made['id']}"))
            revoked.append(made["value"])
        expires_at = int(time.time()) + EXPIRES_SECONDS
        for number in range(KEYS):
            made = _answered(http.post(path, json={"name": f"expired {number}", "expires_at": expires_at}))
            _wait_until(platform, made["value"], 200)
            expired.append(made["value"])
    for key in (*revoked, *expired):
        _wait_until(platform, key, 401)
    unknown, again, other = ([new_key(KeyType.LIVE, os.urandom(RANDOM_BYTES)).secret for _ in range(KEYS)] for _ in range(3))
    miswritten = [key[:-1] + ("0" if key[-1] != "0" else "1") for key in other]
    return {"unknown": unknown, "revoked": revoked, "expired": expired, "miswritten": miswritten, "unknown again": again}


def _answered(answer: httpx2.Response) -> dict[str, str]:
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def _wait_until(platform: Platform, key: str, status: int) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while list_models(platform.gateway_url, key) != status:
        assert time.monotonic() < deadline, f"a key is not answered {status}"
        time.sleep(0.02)


def take(url: str, keys: Mapping[str, Sequence[str]], rounds: int, seed: int) -> dict[str, list[float]]:
    """Microseconds from the request to the refusal, by kind. Raises AssertionError for answers that differ otherwise."""
    dice = random.Random(seed)
    where = urlsplit(url)
    requests = {kind: [_request(key) for key in each] for kind, each in keys.items()}
    samples: dict[str, list[float]] = {kind: [] for kind in keys}
    kinds = list(keys)
    connections = [socket.create_connection((str(where.hostname), where.port), WAIT_SECONDS) for _ in range(CONNECTIONS)]
    lengths = set()
    try:
        for connection in connections:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        gc.disable()
        for number in range(-WARM_ROUNDS, rounds):
            dice.shuffle(kinds)
            for kind in kinds:
                connection, request = dice.choice(connections), dice.choice(requests[kind])
                before = time.perf_counter_ns()
                connection.sendall(request)
                answer = connection.recv(65536)
                after = time.perf_counter_ns()
                assert answer.startswith(b"HTTP/1.1 401 "), answer[:200]
                lengths.add(len(answer))
                if number >= 0:
                    samples[kind].append((after - before) / 1000)
    finally:
        gc.enable()
        for connection in connections:
            connection.close()
    assert len(lengths) == 1, "the refusals differ in length"
    return samples


def _request(key: str) -> bytes:
    body = json.dumps({"model": "echo", "messages": [{"role": "user", "content": "Say something."}]}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {key}\r\n"
    return f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body
