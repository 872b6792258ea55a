"""R24: the faults of `strikes.py`, one after the other, on one running cluster under mixed traffic. Each must cost no more than its row
says, end by itself, and leave right bills.

In each row both gateways are sent requests and an administrator makes and revokes keys, before, during and after the fault. Meanwhile
requests and operations are answered as the row says. Within RECOVERY_SECONDS_MAX after the fault has ended both gateways serve and the REST
API takes a change. Then each request of the truth logs has its bill, and no other request costs anything."""

import asyncio
import fnmatch
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx2

from reliability import load
from reliability.bill_checks import Attempt, Bill, Heard, find_wrong, lines_of_log, read_bills, read_truth
from reliability.clusters import Cluster, add_model, cluster, is_isolated, isolate, wait_until_ready
from reliability.fleet_faults import ORDERED
from reliability.load import PREFIX, Ask, Sent
from reliability.platforms import PRICES, list_models, wait_until_served
from reliability.processes import NO_TLS, WAIT_SECONDS, tollway
from reliability.records import RESULTS, Line, record
from reliability.strikes import COLUMNS, MATRIX, Row, model_of

PER_SECOND = 12.0
"""Requests to each gateway."""
BEFORE_SECONDS = 1.0
"""Time under load before the fault, so that it meets requests in progress."""
RECOVERY_SECONDS_MAX = 5.0
SETTLE_SECONDS_MAX = 60.0
"""For all bills of a row to be there, and for all that was started again to be ready."""
OPERATION_SECONDS = 0.25
"""Pause of the administrator."""
OPERATION_SECONDS_MAX = 40.0
"""Longest honest answer of the REST API: a statement may take 30 s."""
VERIFY_SECONDS_MAX = 300.0


@dataclass(slots=True)
class Operations:
    """Answers to the administrator: statuses, and the keys that were made and revoked with an acknowledgement. `unsure`: keys whose
    revocation got no answer. `living_max`: keys that are valid at a time, from which on one is revoked before the next one is made."""

    living_max: int = 10_000
    statuses: Counter[int] = field(default_factory=Counter)
    made: dict[str, str] = field(default_factory=dict)
    revoked: set[str] = field(default_factory=set)
    unsure: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Outcome:
    """Result of a row. `wrong` is empty, or it failed; `recovered_after`: seconds from the end of the fault until all served again."""

    row: Row
    wrong: list[str] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    control: Counter[int] = field(default_factory=Counter)
    recovered_after: float | None = None
    billed_after: float | None = None

    def describe(self) -> str:
        """Return a line for the page."""
        answers = ", ".join(f"{name} {count}" for name, count in sorted(self.answers.items()))
        control = ", ".join(f"{status or 'none'} {count}" for status, count in sorted(self.control.items()))
        back = "never" if self.recovered_after is None else f"{self.recovered_after:.1f} s"
        failed = "" if not self.wrong else f" **Failed: {self.wrong[0][:160]}**"
        return f"{self.row.part}: {self.row.name}: requests {answers}; operations {control}; back after {back}{failed}"


def measure(only: str, seed: int, *, is_recorded: bool, arguments: Sequence[str]) -> list[Line]:
    """Take the figure: rows whose text contains `only`. Where that is possible, in a child with a loopback and mounts of its own."""
    if not is_isolated():
        code = isolate(arguments)
        if code is not None:
            sys.exit(code)
    began = time.time()
    rows = [row for row in MATRIX if only.lower() in f"{row.part}: {row.name}".lower()]
    scratch = Path(tempfile.mkdtemp(prefix="tollway-chaos-"))
    outcomes, left_out, wrong = run(scratch, rows, seed)
    if wrong or any(each.wrong for each in outcomes):
        print(f"kept: {scratch}", flush=True)
    else:
        shutil.rmtree(scratch, ignore_errors=True)
    failed = [each for each in outcomes if each.wrong]
    for each in failed:
        print(f"FAILED {each.row.part}: {each.row.name}\n  " + "\n  ".join(each.wrong[:8]), flush=True)
    print("\n".join(wrong), flush=True)
    recoveries = sorted(each.recovered_after for each in outcomes if each.recovered_after is not None)
    with tempfile.TemporaryDirectory() as nowhere:
        return [
            record(
                "R24",
                of="rows",
                n=len(outcomes),
                failures=len(failed) + len(wrong),
                also={"requests": sum(each.answers.total() for each in outcomes)},
                seed=seed,
                began=began,
                detail={
                    "rows_passed": f"{len(outcomes) - len(failed)} of {len(outcomes)}",
                    "rows_by_part": {part: sum(each.row.part == part for each in outcomes) for part in COLUMNS},
                    "slowest_recovery_s": round(recoveries[-1], 1) if recoveries else None,
                    "wrong_at_the_end": wrong,
                    "not_tried": left_out,
                    "rows": [each.describe() for each in outcomes],
                },
                results=RESULTS if is_recorded else Path(nowhere),
            )
        ]


def run(scratch: Path, rows: Sequence[Row], seed: int) -> tuple[list[Outcome], list[str], list[str]]:
    """Try these rows on one cluster. Return their outcomes, the rows that cannot be tried here with the reason, and what was wrong at the
    end: with exit codes, keys that were acknowledged, or the archive."""
    outcomes: list[Outcome] = []
    left_out: list[str] = []
    operations = Operations()
    with cluster(scratch) as held:
        for fault in sorted({row.model for row in rows if row.model is not None}):
            order = next(order for name, order in ORDERED.items() if model_of(name) == fault)
            hedging = {"hedge_after_ms": 1000, "hedge_percent": 50} if "hang" in fault else {}
            add_model(held.platform, fault, [(held.engines[0][1], f"sim-echo!{order}"), (held.engines[1][1], "sim-echo")], **hedging)
        wait_until_whole(held)
        for number, row in enumerate(rows):
            missing = _find_missing(held, row)
            if missing is not None:
                left_out.append(f"{row.part}: {row.name}: {missing}")
                continue
            outcome = try_row(held, row, seed + number, operations)
            outcomes.append(outcome)
            print(f"{'FAILED' if outcome.wrong else 'passed'}  {outcome.describe()}", flush=True)
        wrong = end(held, operations)
    return outcomes, left_out, wrong


def _find_missing(held: Cluster, row: Row) -> str | None:
    """Return why a row cannot be tried here."""
    for need in row.needs:
        if need == "isolation" and not held.isolated:
            return "no network namespace or no nftables"
        if need == "mounts" and not held.mounts:
            return "no file system can be mounted"
        if need not in ("isolation", "mounts") and shutil.which(need) is None:
            return f"{need} is not installed"
    return None


# ---- One row ----------------------------------------------------------------------------------------------------------


def try_row(held: Cluster, row: Row, seed: int, operations: Operations) -> Outcome:
    """Inject the fault of a row under load, end it, and check what happened."""
    outcome = Outcome(row)
    before = operations.statuses.copy()
    with traffic(held, seed, operations, row.model) as sent:
        time.sleep(BEFORE_SECONDS)
        with contextmanager(row.strike)(held):
            time.sleep(row.seconds)
            ended_at = time.monotonic()
        outcome.recovered_after = _wait_until_recovered(held, ended_at)
    _check_answers(row, outcome, sent)
    if row.tells is not None and not outcome.answers[row.tells]:
        outcome.wrong.append(f"no request ended with {row.tells}: the fault was none")
    outcome.control = operations.statuses - before
    _check_operations(row, outcome)
    if outcome.recovered_after is None or outcome.recovered_after > RECOVERY_SECONDS_MAX:
        outcome.wrong.append(f"back only after {outcome.recovered_after} s")
    try:
        wait_until_whole(held)
        heard = [each for part in sent for each in part.heard]
        outcome.billed_after = check_bills(held, heard, outcome.wrong) - ended_at
    except AssertionError as error:
        outcome.wrong.append(str(error))
    return outcome


@contextmanager
def traffic(
    held: Cluster, seed: int, operations: Operations, model: str | None = None, per_second: float = PER_SECOND
) -> Iterator[list[Sent]]:
    """Requests to both gateways and operations of an administrator while the block runs; afterwards the list has what each gateway's
    clients heard. `model`: the one that is asked for, None for a mix. They run in threads: PostgreSQL ends with the thread that started it,
    which is this one."""
    over = threading.Event()
    sent: list[Sent] = []
    failures: list[BaseException] = []

    def ask() -> None:
        try:
            sent.extend(asyncio.run(_ask_all(held, model, seed, per_second, over)))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=ask), threading.Thread(target=administrate, args=(held, operations, over))]
    for thread in threads:
        thread.start()
    try:
        yield sent
    finally:
        over.set()
        for thread in threads:
            thread.join(2 * WAIT_SECONDS)
    if failures:
        raise failures[0]


async def _ask_all(held: Cluster, model: str | None, seed: int, per_second: float, over: threading.Event) -> list[Sent]:
    async def wait() -> None:
        while not over.is_set():
            await asyncio.sleep(0.05)

    done = asyncio.create_task(wait())
    key = held.platform.tenant.api_key
    sending = [
        load.send_until(done, _make_asks(model, seed * 2 + number), gateway.url, key, per_second=per_second)
        for number, gateway in enumerate(held.gateways)
    ]
    return await asyncio.gather(*sending)


def _make_asks(model: str | None, seed: int) -> Iterator[Ask]:
    """The mix for crashes, or requests to `model`, every second of them a stream."""
    for number, ask in enumerate(load.make_endless(seed)):
        if model is None:
            yield ask
        else:
            yield replace(ask, model=model, endpoint="chat/completions", text=f"{PREFIX} {number}", stream=number % 2 == 0)


def administrate(held: Cluster, done: Operations, over: threading.Event) -> None:
    """Make a key, and now and then revoke one; each operation on a connection of its own."""
    path = f"/v1/organization/projects/{held.platform.tenant.project_id}/api_keys"
    headers = {"authorization": f"Bearer {held.platform.tenant.admin_key}"}
    count = 0
    while not over.is_set():
        count += 1
        living = [key_id for key_id in done.made if key_id not in done.revoked and key_id not in done.unsure]
        key_id = living[0] if living and (count % 3 == 0 or len(living) >= done.living_max) else None
        try:
            with httpx2.Client(
                base_url=held.platform.control_url, headers=headers, timeout=OPERATION_SECONDS_MAX, trust_env=False, verify=NO_TLS
            ) as http:
                answer = http.post(path, json={"name": f"key {count}"}) if key_id is None else http.delete(f"{path}/{key_id}")
            status = answer.status_code
            if status == 200 and key_id is None:
                done.made[answer.json()["id"]] = answer.json()["value"]
        except httpx2.HTTPError:
            status = 0
        if key_id is not None:
            (done.revoked if status == 200 else done.unsure).add(key_id)
        done.statuses[status] += 1
        over.wait(OPERATION_SECONDS)


def _wait_until_recovered(held: Cluster, ended_at: float) -> float | None:
    """Return the seconds from `ended_at` until each gateway served a request, and the REST API took a change, that was begun since. None
    if that takes longer than WAIT_SECONDS."""
    ask = Ask("echo", "chat/completions", "Open the gate.", stream=True)
    headers = {"authorization": f"Bearer {held.platform.tenant.admin_key}"}
    path = f"{held.platform.control_url}/v1/organization/projects/{held.platform.tenant.project_id}"
    waiting = [gateway.url for gateway in held.gateways]
    is_changed = False
    while time.monotonic() < ended_at + WAIT_SECONDS:
        for url in list(waiting):
            with suppress(AssertionError, TimeoutError):
                if asyncio.run(asyncio.wait_for(load.send(ask, url, held.platform.tenant.api_key), 2.0)).ended == "complete":
                    waiting.remove(url)
        with suppress(httpx2.HTTPError):
            if not is_changed:
                answer = httpx2.post(path, json={"name": "bridge"}, headers=headers, timeout=2.0, trust_env=False, verify=NO_TLS)
                is_changed = answer.status_code == 200
        if is_changed and not waiting:
            return time.monotonic() - ended_at
        time.sleep(0.05)
    return None


def _label(each: Heard) -> str:
    return f"{each.status} {each.code}" if each.ended == "error" else each.ended


def _check_answers(row: Row, outcome: Outcome, sent: Sequence[Sent]) -> None:
    """Note what clients heard, and what of it the row does not allow."""
    for number, part in enumerate(sent):
        outcome.wrong += [f"gateway {number + 1}: {text}" for text in part.wrong]
        for label, count in Counter(_label(each) for each in part.heard).items():
            outcome.answers[label] += count
            allowed = ("complete", "left", *(row.answers if number in row.struck else ()))
            if not any(fnmatch.fnmatch(label, pattern) for pattern in allowed):
                outcome.wrong.append(f"gateway {number + 1}: {count} requests ended with {label}")


def _check_operations(row: Row, outcome: Outcome) -> None:
    for status, count in outcome.control.items():
        if status != 200 and status not in row.control:
            outcome.wrong.append(f"{count} operations were answered {status}")
    if row.shows is not None and not outcome.control[row.shows]:
        outcome.wrong.append(f"no operation was answered {row.shows}: the fault was none")


def wait_until_whole(held: Cluster) -> None:
    """Wait until every process is up and every gateway knows what control knows."""
    for url in held.control_urls:
        wait_until_ready(f"{url}/readyz")
    wait_until_ready(f"{held.platform.control_url}/readyz")
    for gateway in held.gateways:
        wait_until_ready(f"{gateway.internal_url}/readyz")
        wait_until_served(gateway.url, held.platform.tenant.api_key)


# ---- Bills ------------------------------------------------------------------------------------------------------------


def read_attempts(held: Cluster) -> dict[str, list[Attempt]]:
    """Return the attempts of each request at both engines, in their order."""
    merged: dict[str, list[Attempt]] = {}
    for path in held.truth_logs:
        for request_id, attempts in read_truth(path).items():
            merged[request_id] = sorted([*merged.get(request_id, []), *attempts], key=lambda each: each.number)
    return merged


def check_bills(held: Cluster, heard: Sequence[Heard], wrong: list[str]) -> float:
    """Wait until every request that an engine heard of is billed; add what is wrong with the bills of `heard`. Return when that was."""
    deadline = time.monotonic() + SETTLE_SECONDS_MAX
    while True:
        attempts, bills = read_attempts(held), read_bills(held.database.url)
        missing = attempts.keys() - bills.keys()
        if not missing:
            break
        assert time.monotonic() < deadline, f"{len(missing)} requests are not billed, for example {attempts[min(missing)]}"
        time.sleep(0.25)
    billed_at = time.monotonic()
    ids = {each.request_id for each in heard}
    faults, _ = find_wrong(_only(attempts, ids), _only_bills(bills, ids), heard, _prices())
    wrong += faults
    return billed_at


def _only(attempts: dict[str, list[Attempt]], ids: "set[str | None]") -> dict[str, list[Attempt]]:
    return {request_id: each for request_id, each in attempts.items() if request_id in ids}


def _only_bills(bills: dict[str, Bill], ids: "set[str | None]") -> dict[str, Bill]:
    return {request_id: each for request_id, each in bills.items() if request_id in ids}


def _prices() -> dict[str, dict[str, str]]:
    return {**PRICES, **{model_of(fault): PRICES["echo"] for fault in ORDERED}}


# ---- The end ----------------------------------------------------------------------------------------------------------


def end(held: Cluster, operations: Operations) -> list[str]:
    """Stop the gateways and control in order; return what is wrong then."""
    wrong = _check_keys(held, operations)
    for name, part in [("gateway", gateway.part) for gateway in held.gateways] + [("control", control) for control in held.controls]:
        code = part.end(signal.SIGTERM)
        if code != 0:
            wrong.append(f"{name} ended with {code}")
        wrong += [f"defect: {line}" for line in lines_of_log(part.out) if line.get("event") == "defect"]
    attempts, bills = read_attempts(held), read_bills(held.database.url)
    faults, _ = find_wrong(attempts, bills, [], _prices())
    wrong += faults
    environment = dict(held.platform.environment)
    verified = tollway("verify", "--data-dir", str(held.platform.directory), env=environment, wait_seconds=VERIFY_SECONDS_MAX)
    if verified.returncode != 0:
        wrong.append(f"verify: {verified.stdout}{verified.stderr}")
    return wrong


def _check_keys(held: Cluster, done: Operations) -> list[str]:
    """Return which keys were acknowledged as made or revoked and are not so at a gateway. A refusal may also be 429: many revoked keys in a
    row are too many failed authentications from one address."""
    wrong = []
    for key_id, secret in done.made.items():
        if key_id in done.unsure:
            continue
        right = (401, 429) if key_id in done.revoked else (200,)
        for number, gateway in enumerate(held.gateways):
            status = list_models(gateway.url, secret)
            if status not in right:
                wrong.append(f"{key_id} is {'revoked' if key_id in done.revoked else 'valid'}, and gateway {number + 1} answers {status}")
    return wrong
