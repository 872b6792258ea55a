"""Bills held against the truth log of the simulated engine, the only reference. Shares no code with what it checks.

A request that the engine completed costs exactly what the engine generated, class by class, to the pico. One that ended
otherwise is billed at least what its client counted and at most what the engine generated. A request that no engine
ever heard of (a gateway can die between ADMIT and the first byte to the engine) may have left an event, but one that
bills nothing. Responses of realtime sessions have ids of the engine's, which no bill knows: they are compared by what they used."""

import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import httpx2
import sqlalchemy as sa
from pysqlite3 import dbapi2

from tollway.simulator import truth

TOKEN_CLASSES = ("input", "cached_input", "output", "reasoning")
UNIT_CLASSES = ("seconds", "characters", "images", "pixels")
MEDIA = {"audio/transcriptions": "seconds", "audio/speech": "characters", "images/edits": "images"}
"""Class by which each endpoint of sound and pictures is billed. Of a client that leaves, the second pays nevertheless: the engine was given
its text."""
REALTIME = "realtime"
SESSION_PREFIX = "resp_"
"""Begin of the ids of responses of realtime sessions in the truth log."""

UNBILLED_ENDPOINTS = ("detokenize", "messages/count_tokens", "tokenize")
"""Endpoints whose requests cost nothing, however they end."""

Prices = Mapping[str, Mapping[str, str]]
"""By model and class: a decimal text per million tokens, or per request."""

Ended = Literal["complete", "left", "error", "broken", "refused"]
"""End of an answer as its client saw it: whole; the client left; the gateway said so; the connection broke; there was none."""


@dataclass(frozen=True, slots=True)
class Heard:
    """Request as its client saw it. `request_id` and `status` are None if no head came. `tokens` arrived at it; it asked
    for `planned_tokens` at most. `code`: of the error that it was told. `began` and `headed` are monotonic seconds: when it asked, and
    when the head of the answer was there. `retry_after`: what that said of coming back."""

    model: str
    planned_tokens: int
    request_id: str | None
    status: int | None
    tokens: int
    ended: Ended
    code: str | None = None
    began: float = 0.0
    headed: float | None = None
    retry_after: str | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """Attempt as the engine's truth log tells it. `generated` is None if the engine died with it; `delivered`: left its
    socket."""

    number: int
    prompt: int
    cached: int
    generated: int | None
    reasoning: int
    ended: str | None
    units: int = 0
    pixels: int = 0


@dataclass(frozen=True, slots=True)
class Bill:
    """One usage event with what it costs: (quantity, unit in pico, amount in pico) by class. Classes that cost nothing may be left out."""

    request_id: str
    model: str
    endpoint: str
    outcome: str
    attempts: int
    source: str
    used: Mapping[str, int]
    lines: Mapping[str, tuple[int, int, int]]

    @property
    def generated(self) -> int:
        """Tokens that the bill says were generated."""
        return self.used["output"] + self.used["reasoning"]

    @property
    def amount_pico(self) -> int:
        """Return what it costs."""
        return sum(amount for _, _, amount in self.lines.values())


# ---- What the engine says --------------------------------------------------------------------------------------------


def read_truth(path: Path) -> dict[str, list[Attempt]]:
    """Attempts in order, by the id of the request: the gateway sends `req_...` first, then `req_...-2` and so on."""
    attempts: dict[str, list[Attempt]] = {}
    for ended in truth.read(path):
        request_id, _, number = ended.request_id.partition("-")
        attempt = Attempt(
            number=int(number or 1),
            prompt=ended.prompt_tokens,
            cached=ended.cached_tokens,
            generated=ended.completion_tokens,
            reasoning=ended.reasoning_tokens,
            ended=ended.ended,
            units=ended.units,
            pixels=ended.pixels,
        )
        attempts.setdefault(request_id, []).append(attempt)
    for begun in truth.read_unended(path):
        request_id, _, number = begun.request_id.partition("-")
        attempt = Attempt(int(number or 1), begun.prompt_tokens, cached=begun.prompt_tokens, generated=None, reasoning=0, ended=None)
        attempts.setdefault(request_id, []).append(attempt)
    for each in attempts.values():
        each.sort(key=lambda attempt: attempt.number)
    return attempts


def wait_until_idle(path: Path, seconds: float = 60.0) -> None:
    """Wait until the engine has ended every request that entered it."""
    deadline = time.monotonic() + seconds
    while truth.read_unended(path):
        assert time.monotonic() < deadline, "the engine still works for requests that ended long ago"
        time.sleep(0.05)


# ---- What is billed --------------------------------------------------------------------------------------------------


def read_bills(database_url: str) -> dict[str, Bill]:
    """Every event of a database, read with SQL of our own. Asserts that nothing was set aside. Its control process has
    ended."""
    is_sqlite = database_url.startswith("sqlite")
    engine = sa.create_engine(database_url, poolclass=sa.NullPool, **({"module": dbapi2} if is_sqlite else {}))
    classes = (*TOKEN_CLASSES, *UNIT_CLASSES)
    columns = f"event_id, usage_events.model, endpoint, outcome, attempts, source, {', '.join(classes)}"
    costs = ", ".join(f"usage_events.{name}_pico, compiled_prices.{name}_pico" for name in (*classes, "request"))
    with engine.connect() as connection:
        for table in ("event_conflicts", "quarantined_records"):
            assert connection.execute(sa.text(f"SELECT count(*) FROM {table}")).scalar() == 0, table
        events = connection.execute(sa.text(f"SELECT {columns} FROM usage_events")).all()
        lines: dict[str, dict[str, tuple[int, int, int]]] = {}
        rated = sa.text(f"SELECT event_id, {costs} FROM usage_events JOIN compiled_prices ON compiled_prices.id = price_version")
        for event_id, *amounts_and_units in connection.execute(rated):
            pairs = zip(amounts_and_units[::2], amounts_and_units[1::2], strict=True)
            lines[event_id] = {
                name: (amount // unit, unit, amount) for name, (amount, unit) in zip((*classes, "request"), pairs, strict=True) if amount
            }
    bills = {}
    for event_id, model, endpoint, outcome, attempts, source, *used in events:
        quantities = {name: quantity or 0 for name, quantity in zip(classes, used, strict=True)}
        bills[event_id] = Bill(event_id, model, endpoint, outcome, attempts, source, quantities, lines.get(event_id, {}))
    return bills


def read_receipt(http: httpx2.Client, request_id: str) -> Bill:
    """Return the bill of one request, as its tenant reads it. `http` knows the control plane's address and the admin key."""
    answer = http.get(f"/v1/organization/requests/{request_id}")
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    usage = body["usage"]
    used = {
        "input": usage["input_tokens"] - usage["input_cached_tokens"],
        "cached_input": usage["input_cached_tokens"],
        "output": usage["output_tokens"] - usage["output_reasoning_tokens"],
        "reasoning": usage["output_reasoning_tokens"],
        **dict.fromkeys(UNIT_CLASSES, 0),
    }
    lines = {line["billing_class"]: (line["quantity"], int(line["unit_price_pico"]), int(line["amount_pico"])) for line in body["lines"]}
    bill = Bill(body["id"], body["model"], body["endpoint"], body["outcome"], body["attempts"], body["usage_source"], used, lines)
    assert int(body["cost"]["value_pico"]) == bill.amount_pico
    return bill


# ---- The comparison --------------------------------------------------------------------------------------------------


def check_bills(attempts: Mapping[str, list[Attempt]], bills: Mapping[str, Bill], heard: Iterable[Heard], prices: Prices) -> Counter[str]:
    """Assert that `find_wrong` finds nothing; returns its count."""
    wrong, outcomes = find_wrong(attempts, bills, heard, prices)
    assert not wrong, f"{len(wrong)} wrong, for example:\n" + "\n".join(wrong[:5])
    return outcomes


def find_wrong(
    attempts: Mapping[str, list[Attempt]], bills: Mapping[str, Bill], heard: Iterable[Heard], prices: Prices
) -> tuple[list[str], Counter[str]]:
    """Return what is wrong, in words: every request of the truth log must have its bill, no other request one that costs, and each must be
    right. With it, how many bills there are of each outcome, those of requests that no engine heard of as "unheard"."""
    by_id = {each.request_id: each for each in heard if each.request_id is not None}
    sessions = {id: attempts[id][-1] for id in attempts if id.startswith(SESSION_PREFIX)}
    heard_of = {id: each for id, each in by_id.items() if id in sessions}
    attempts = {id: found for id, found in attempts.items() if id not in sessions}
    by_id = {id: each for id, each in by_id.items() if not id.startswith(SESSION_PREFIX)}
    wrong = _check_sessions(sessions, heard_of, [bill for bill in bills.values() if bill.endpoint == REALTIME])
    wrong += [f"{request_id}: in the truth log {attempts[request_id]}, and not billed" for request_id in attempts.keys() - bills.keys()]
    for request_id, bill in bills.items():
        faults = [] if bill.endpoint == REALTIME else _check_bill(bill, attempts.get(request_id, []), by_id.get(request_id))
        faults += _check_lines(bill, prices)
        wrong += [f"{request_id}: {fault}: {bill} {attempts.get(request_id)} {by_id.get(request_id)}" for fault in faults]
    for request_id, each in by_id.items():
        if each.ended == "complete" and (request_id not in bills or bills[request_id].outcome != "completed"):
            wrong.append(f"{request_id}: its client saw success, but {bills.get(request_id)}")
    outcomes = Counter(
        bill.outcome if request_id in attempts or bill.endpoint == REALTIME else "unheard" for request_id, bill in bills.items()
    )
    return wrong, outcomes


def _check_sessions(sessions: Mapping[str, Attempt], heard: Mapping[str, Heard], bills: Iterable[Bill]) -> list[str]:
    """Return what is wrong with the bills of responses in realtime sessions. `sessions`: what the engine did, by its own ids. `heard`: what
    clients saw of them. No bill tells which response it is of, so those that were cut are compared in sum."""
    done = Counter((each.prompt, each.cached, each.generated) for each in sessions.values() if each.ended == "completed")
    whole = [sessions[id] for id, each in heard.items() if each.ended == "complete"]
    seen = Counter((each.prompt, each.cached, each.generated) for each in whole)
    delivered = sum(each.tokens for each in heard.values() if each.ended != "complete")
    billed: Counter[tuple[int, int, int | None]] = Counter()
    completed = cut = 0
    for bill in bills:
        if bill.outcome == "completed":
            used = bill.used
            billed[used["input"] + used["cached_input"], used["cached_input"], bill.generated] += 1
            completed += bill.generated
        else:
            cut += bill.generated
    wrong = [f"a response of a session that used {each}: billed, and the engine has none" for each in billed - done]
    wrong += [f"a response of a session that used {each}: its client saw the end, and it is not billed" for each in seen - billed]
    made = sum(each.generated or 0 for each in sessions.values()) - completed
    if cut > made and all(each.generated is not None for each in sessions.values()):
        wrong.append(f"responses of sessions that were cut: {cut} tokens billed, {made} generated")
    rest = completed + cut - sum(each.generated or 0 for each in whole)
    if rest < delivered:  # one that its client saw cut may have ended, and been billed, behind its back
        wrong.append(f"responses of sessions that their clients saw cut: {rest} tokens billed, {delivered} delivered")
    return wrong


def _check_bill(bill: Bill, attempts: list[Attempt], heard: Heard | None) -> list[str]:
    """Return what is wrong with the quantities. A recovered bill does not know its attempts: then the last one counts.

    Where the engine reported nothing, the input is an estimate, which the truth cannot check, and the output was counted.
    """
    attempt = next((each for each in attempts if bill.attempts in (0, each.number)), None)
    if bill.attempts == 0 and attempts:
        attempt = attempts[-1]
    if attempt is None:
        if bill.outcome == "completed" or any(bill.used.values()) or bill.lines:
            return ["billed, but the engine never heard of it"]
        return []
    used = bill.used
    if bill.outcome == "completed" and bill.source != "estimated":
        cached = 0 if bill.endpoint == "messages" else attempt.cached  # the engine's messages do not tell of its cache
        right = {
            "input": attempt.prompt - cached,
            "cached_input": cached,
            "output": (attempt.generated or 0) - attempt.reasoning,
            "reasoning": attempt.reasoning,
            **{name: attempt.units if MEDIA.get(bill.endpoint) == name else 0 for name in UNIT_CLASSES},
            "pixels": attempt.pixels,
        }
        return [] if attempt.ended == "completed" and used == right else [f"the engine says {attempt.ended} {right}"]
    if bill.endpoint in MEDIA:
        pays_whole = bill.endpoint == "audio/speech" and bill.outcome in ("client_cancelled", "gateway_crash")
        due = attempt.units if pays_whole else 0
        return [f"{due} units are due, or none"] if sum(bill.used.values()) not in (0, due) else []
    wrong = []
    delivered = heard.tokens if heard is not None else 0
    planned = heard.planned_tokens if heard is not None else None
    most = attempt.generated if attempt.generated is not None else planned
    if bill.generated < delivered:
        wrong.append(f"fewer tokens than the {delivered} that were delivered")
    if most is not None and bill.generated > most:
        wrong.append(f"more tokens than the {most} that were generated")
    prompt = used["input"] + used["cached_input"]
    if bill.source == "estimated":
        if used["cached_input"] or used["reasoning"]:
            wrong.append("an estimate of a class that nobody can estimate")
        return wrong
    # In an event that a crash or the engine's end cut off; of these outcomes no input is estimated.
    tells_input_last = bill.endpoint == "responses" and bill.outcome in ("gateway_crash", "upstream_error")
    if prompt not in (0, attempt.prompt) or (bill.generated and not prompt and not tells_input_last):
        wrong.append(f"input is not the prompt of {attempt.prompt}")
    if used["cached_input"] > attempt.cached or (attempt.generated is not None and used["reasoning"] > attempt.reasoning):
        wrong.append("more of a class than there was")
    return wrong


def _check_lines(bill: Bill, prices: Prices) -> list[str]:
    """Return what is wrong with the money: the published policy, times the price, by our own arithmetic."""
    is_billed = bill.endpoint not in UNBILLED_ENDPOINTS and (
        bill.outcome in ("completed", "client_cancelled", "gateway_crash")
        or (bill.outcome in ("upstream_error", "timeout") and bill.generated > 0)
    )
    right = {}
    if is_billed:
        quantities = {**bill.used, "request": int(bill.outcome == "completed")}
        units = {name: unit_pico(prices, bill.model, name) for name in quantities}
        right = {name: (count, units[name], count * units[name]) for name, count in quantities.items() if count and units[name]}
    found = {name: line for name, line in bill.lines.items() if line[2]}
    return [] if found == right else [f"rated lines should be {right}"]


def unit_pico(prices: Prices, model: str, billing_class: str) -> int:
    """Pico-currency per unit: a price per million units has six decimals, one per request, second or image twelve."""
    exact = Decimal(prices[model].get(billing_class, "0")) * 10 ** (12 if billing_class in ("request", "seconds", "images") else 6)
    assert exact == int(exact)
    return int(exact)


def lines_of_log(path: Path, containing: bytes = b"") -> list[dict[str, Any]]:
    """The JSON lines of a log; others are left out, and so are those without `containing`, unread."""
    return [json.loads(line) for line in path.read_bytes().splitlines() if line.startswith(b"{") and containing in line]
