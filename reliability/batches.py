"""R23: batches across crashes. Batches are submitted and run while, every few seconds, the gateway or the control process gets SIGKILL;
each is started again by the supervisor. Every line must be answered once and billed once.

A line that was at its engine when the gateway died is sent again, so the engine may hear of it twice; only the attempt whose answer stands
in the output may cost anything. That is checked by the ids of requests: those of the output have a bill each, and no other bill has an
amount. The bills themselves are held against the engine's truth log (`bill_checks.py`)."""

import json
import logging
import random
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from reliability.bill_checks import Bill, find_wrong, read_bills, read_truth, wait_until_idle
from reliability.platforms import PRICES, Part, Platform, kill_child, reserved_ports, supervised
from reliability.processes import WAIT_SECONDS, list_descendants, tollway
from reliability.records import Line, record
from scripts import postgres

MODEL = "echo"
PATH = "/v1/chat/completions"
BATCH_LINES_MAX = 50_000
VICTIMS = ("gateway", "gateway", "control")
BETWEEN_KILLS_SECONDS = (3.0, 8.0)
LINE_SECONDS_MAX = 0.5
"""Time that a line may take on a busy machine, kills included, before a run counts as hanging."""
ENDED = ("completed", "failed", "cancelled", "expired")


@dataclass(slots=True)
class Outcome:
    """Result of a run. `wrong` is empty, or the promise is broken."""

    wrong: list[str] = field(default_factory=list)
    kills: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    memory_bytes_max: int = 0
    bills: Counter[str] = field(default_factory=Counter)
    repeated: int = 0


def measure(lines: int, kills: int, database: str, seed: int, *, has_bucket: bool = False) -> list[Line]:
    """Take the figure; what went wrong is printed, and its directory is kept. `has_bucket`: files are in a bucket of a server that speaks
    S3."""
    began = time.time()
    scratch = Path(tempfile.mkdtemp(prefix="tollway-batches-"))
    outcome = run(scratch, lines, kills, database, seed, has_bucket=has_bucket)
    if outcome.wrong:
        print(f"kept: {scratch}\n" + "\n".join(outcome.wrong[:20]), flush=True)
    else:
        shutil.rmtree(scratch, ignore_errors=True)
    return [
        record(
            "R23",
            case=f"{database}, files in a bucket" if has_bucket else database,
            of="lines",
            n=lines,
            failures=len(outcome.wrong),
            also={"kills": outcome.kills.total()},
            seed=seed,
            began=began,
            detail={
                "lines_per_second": round(lines / outcome.seconds, 1),
                "gateway_memory_mib": outcome.memory_bytes_max >> 20,
                "kills": dict(outcome.kills),
                "bills": dict(outcome.bills),
                "attempts_that_crashes_cut": outcome.repeated,
            },
        )
    ]


def run(scratch: Path, lines: int, kills: int, database: str, seed: int, *, has_bucket: bool = False) -> Outcome:
    """One run in the directory `scratch`, which must be empty, with `kills` at most."""
    outcome, dice = Outcome(), random.Random(seed)
    with ExitStack() as held:
        files = scratch / "files"
        environment = {"TOLLWAY__GATEWAY__FILES__DIRECTORY": str(files), "TOLLWAY__GATEWAY__FILES__FREE_BYTES_MIN": "1024"}
        if has_bucket:
            environment |= held.enter_context(_bucket())
        if database == "postgres":
            (port,) = held.enter_context(reserved_ports(1))
            environment |= postgres.application_environment(held.enter_context(postgres.cluster(port)).url)
        platform, serving = held.enter_context(supervised(scratch, environment=environment))
        price_batches(platform)
        over = threading.Event()
        began = time.monotonic()
        ids = [submit(platform, number, count) for number, count in enumerate(_share_out(lines))]
        striking = threading.Thread(target=_strike, args=(serving, outcome, kills, dice, over), daemon=True)
        striking.start()
        try:
            batches = [wait_until_ended(platform, serving, id, lines, outcome) for id in ids]
        finally:
            over.set()
            striking.join(WAIT_SECONDS)
        outcome.seconds = time.monotonic() - began
        answered: dict[str, str] = {}
        for number, batch in enumerate(batches):
            read_output(platform, number, batch, outcome.wrong, answered)
        wait_until_idle(platform.truth_log)
        attempts = read_truth(platform.truth_log)
        platform.wait_until_billed(len(answered))
        code = serving.end(signal.SIGTERM)
        if code != 0:
            outcome.wrong.append(f"the supervisor ended with {code}")
        platform.check_all_is_shipped()
        verified = tollway("verify", "--data-dir", str(platform.directory), env=dict(platform.environment), wait_seconds=10 * WAIT_SECONDS)
        if verified.returncode != 0:
            outcome.wrong.append(f"verify: {verified.stdout}{verified.stderr}")
        bills = read_bills(platform.database_url)
        faults, outcome.bills = find_wrong(attempts, bills, [], PRICES)
        outcome.wrong += [*faults, *find_unbilled(answered, bills), *find_unanswered(answered, bills)]
        outcome.repeated = len(attempts.keys() - answered.keys())
    return outcome


@contextmanager
def _bucket() -> Iterator[dict[str, str]]:
    """Return the variables of a platform whose files are in a new bucket of a server in this process."""
    from moto.server import ThreadedMotoServer  # takes a second, only where it is used

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it tells of each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        url = f"http://{host}:{port}"
        httpx2.put(f"{url}/tollway", timeout=WAIT_SECONDS, trust_env=False).raise_for_status()
        settings = {"BUCKET": "tollway", "BUCKET_ENDPOINT": url}
        named = {f"TOLLWAY__GATEWAY__FILES__{name}": value for name, value in settings.items()}
        yield {**named, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    finally:
        server.stop()


def find_unbilled(answered: Mapping[str, str], bills: Mapping[str, Bill]) -> list[str]:
    """Return which lines were answered and are not billed. `answered`: their custom ids by the ids of the requests that were answered."""
    return [f"{line}: answered, and not billed" for id, line in answered.items() if id not in bills or not bills[id].amount_pico]


def find_unanswered(answered: Mapping[str, str], bills: Mapping[str, Bill]) -> list[str]:
    """Return which bills cost something and are those of no line that was answered."""
    return [f"{id}: billed, and in no output: {bill}" for id, bill in bills.items() if bill.amount_pico and id not in answered]


def _share_out(lines: int) -> list[int]:
    """Return how many lines each batch has."""
    return [BATCH_LINES_MAX] * (lines // BATCH_LINES_MAX) + ([rest] if (rest := lines % BATCH_LINES_MAX) else [])


def price_batches(platform: Platform) -> None:
    """Publish a price for batches, equal to the standard one."""
    headers = {"authorization": f"Bearer {platform.platform_key}"}
    with httpx2.Client(base_url=platform.control_url, headers=headers, timeout=WAIT_SECONDS, trust_env=False) as http:
        price = {"model": MODEL, "currency": "EUR", "tier": "batch", **PRICES[MODEL]}
        answer = http.post("/v1/platform/prices", json=price)
    assert answer.status_code == 200, answer.text


def open_gateway(platform: Platform) -> httpx2.Client:
    """Return a client of the gateway with the tenant's key."""
    headers = {"authorization": f"Bearer {platform.tenant.api_key}"}
    return httpx2.Client(base_url=platform.gateway_url, headers=headers, timeout=WAIT_SECONDS, trust_env=False)


def submit(platform: Platform, number: int, count: int) -> str:
    """Submit a batch of so many lines; return its id. The price may be on its way to the gateway: a batch that came too early is submitted
    again."""
    lines = "\n".join(json.dumps(_make_line(number, line)) for line in range(count)).encode()
    with open_gateway(platform) as http:
        file = http.post("/v1/files", files={"file": ("lines.jsonl", lines)}, data={"purpose": "batch"})
        assert file.status_code == 200, file.text
        asked = {"input_file_id": file.json()["id"], "endpoint": PATH, "completion_window": "24h"}
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            answer = http.post("/v1/batches", json=asked)
            assert answer.status_code == 200, answer.text
            id = str(answer.json()["id"])
            while (batch := http.get(f"/v1/batches/{id}").json())["status"] == "validating":
                time.sleep(0.05)
            if batch["status"] != "failed":
                return id
            assert time.monotonic() < deadline, batch["errors"]
            time.sleep(0.2)


def _make_line(batch: int, number: int) -> dict[str, Any]:
    body = {"model": MODEL, "messages": [{"role": "user", "content": f"Line {number} of batch {batch} asks for itself."}]}
    return {"custom_id": f"{batch}-{number}", "method": "POST", "url": PATH, "body": body}


def _strike(serving: Part, outcome: Outcome, kills: int, dice: random.Random, over: threading.Event) -> None:
    """Kill a process every few seconds."""
    for _ in range(kills):
        if over.wait(dice.uniform(*BETWEEN_KILLS_SECONDS)) or serving.process is None:
            return
        victim = dice.choice(VICTIMS)
        if kill_child(serving.process.pid, victim, seconds=1.0):
            outcome.kills[victim] += 1


def wait_until_ended(platform: Platform, serving: Part, id: str, lines: int, outcome: Outcome) -> dict[str, Any]:
    """Return a batch once it has ended."""
    deadline = time.monotonic() + WAIT_SECONDS + lines * LINE_SECONDS_MAX
    while time.monotonic() < deadline:
        if serving.process is not None:
            outcome.memory_bytes_max = max(outcome.memory_bytes_max, _read_gateway_memory(serving.process.pid))
        try:
            with open_gateway(platform) as http:
                answer = http.get(f"/v1/batches/{id}")
            if answer.status_code == 200 and answer.json()["status"] in ENDED:
                return dict(answer.json())
        except httpx2.HTTPError:
            pass  # it is starting again
        time.sleep(0.25)
    raise AssertionError(f"the batch {id} did not end")


def _read_gateway_memory(supervisor: int) -> int:
    """Return the resident bytes of the gateway below a supervisor; 0 while there is none."""
    for pid in list_descendants(supervisor):
        try:
            if b"\0gateway\0" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
        except (FileNotFoundError, ProcessLookupError):
            continue
    return 0


def read_output(platform: Platform, number: int, batch: dict[str, Any], wrong: list[str], answered: dict[str, str]) -> None:
    """Check the output of a batch, and add the ids of its requests to `answered`."""
    counts = batch["request_counts"]
    if batch["status"] != "completed" or counts["failed"] or batch["error_file_id"]:
        wrong.append(f"the batch ended as {batch}")
    with open_gateway(platform) as http:
        answer = http.get(f"/v1/files/{batch['output_file_id']}/content")
    assert answer.status_code == 200, answer.text
    seen: Counter[str] = Counter()
    for text in answer.text.splitlines():
        line = json.loads(text)
        seen[line["custom_id"]] += 1
        answered[line["response"]["request_id"]] = line["custom_id"]
        own = f"Line {line['custom_id'].partition('-')[2]} of batch {number} asks for itself."
        said = line["response"]["body"]["choices"][0]["message"]["content"]
        if own not in said and said not in own:
            wrong.append(f"{line['custom_id']} was answered {said!r}")
    lost = [f"{number}-{each}" for each in range(counts["total"]) if not seen[f"{number}-{each}"]]
    wrong += [f"{each}: lost" for each in lost] + [f"{each}: {count} times" for each, count in seen.items() if count > 1]
