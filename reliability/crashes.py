"""R1: kill -9 at random moments under load; then every request that was served must have exactly one right bill.

An open loop of requests goes on while, every one to five seconds, one victim gets SIGKILL: the gateway, the control process (and with
it the collector), the supervisor above both, or PostgreSQL's postmaster. Gateway and control are started again by the supervisor;
the supervisor and the postmaster by `_keep`, which does what systemd does, nought to two seconds later and as often as it takes.
Half of the kills do not wait for anything to be whole again, so that starts and recoveries are struck as well. Beside the load, an
administrator makes and revokes keys, and notes what was acknowledged.

The load is chat completions, completions, embeddings, responses and messages; pictures, sound, realtime sessions and calls by gRPC come
from clients of their own (`modalities.py`). Beside it a batch is run: each of its lines must be
answered once, and billed once. Files are uploaded and responses in the background asked for all the time; whichever was acknowledged must
be there in the end, and each response made and billed once.

The engine, which knows the truth, lives through all of it and keeps its truth log on another file system than the platform's where
there is one. The client's log and the books are held against it (`bill_checks.py`, `books.py`)."""

import asyncio
import random
import shutil
import signal
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from reliability import batches, books, load, modalities
from reliability.bill_checks import Bill, Heard, find_wrong, lines_of_log, read_bills, read_truth, wait_until_idle
from reliability.load import Sent
from reliability.platforms import PRICES, Part, Platform, kill_child, list_models, reserved_ports, supervised
from reliability.processes import NO_TLS, WAIT_SECONDS, tollway
from reliability.records import Line, record
from scripts import postgres

PER_SECOND = 100.0
VICTIMS = ("gateway", "control", "supervisor")
BETWEEN_KILLS_SECONDS = (1.0, 5.0)
BEFORE_RESTART_SECONDS = (0.0, 2.0)
WHOLE_FRACTION = 0.5
"""Share of the kills before which everything must work again. The others may strike starts and recoveries; if all might, a slow machine
would never serve anything, and prove nothing."""
QUIET_SECONDS_MAX = 60.0
"""After the last answer, for everything to be collected."""
VERIFY_WAIT_SECONDS = 900.0
"""`tollway verify` reads all that the run recorded: a second where nothing else runs, minutes where ten other programs do."""

ADMIN_PAUSE_SECONDS = 0.3
UPLOAD_PAUSE_SECONDS = 0.5
FILE_BYTES = 50_000
BATCH_LINES = 200
BACKGROUND_PAUSE_SECONDS = 0.5

ERRORS_ALLOWED = ("draining", "model_overloaded", "overloaded", "overloaded_error")
"""The errors that a client may be told while only our own processes die: an orphaned gateway ends what it has, and a gateway that comes
back on a busy machine refuses what would wait too long for a place at the engine."""


@dataclass(slots=True)
class Strike:
    """One kill. Monotonic seconds: `killed_at`, and `up_at`, when it was first started again (or, by the supervisor, might have been)."""

    victim: str
    killed_at: float
    is_whole: bool = False
    """True if everything worked just before."""
    up_at: float | None = None


@dataclass(slots=True)
class Administration:
    """Changes that the control plane acknowledged. `created`: id and secret of keys; `unsure`: ids whose revocation got no answer."""

    created: dict[str, str] = field(default_factory=dict)
    revoked: set[str] = field(default_factory=set)
    unsure: set[str] = field(default_factory=set)
    answers: list[tuple[float, float, int]] = field(default_factory=list)
    """Times at which it was asked and answered (monotonic seconds), and the status; 0 where the connection failed."""

    def statuses(self) -> dict[str, int]:
        """Return how often each status was answered."""
        return {str(status): count for status, count in sorted(Counter(status for _, _, status in self.answers).items())}


@dataclass(slots=True)
class Rig:
    """The platform under test and who keeps it alive."""

    platform: Platform
    serving: Part
    server: postgres.Server | None
    dice: random.Random
    over: threading.Event
    """Set when nothing of this is needed any more."""
    strikes: list[Strike] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    """Set when the load has ended, or was interrupted: no more kills."""
    database_down: threading.Event = field(default_factory=threading.Event)
    failures: list[str] = field(default_factory=list)
    asked_all: threading.Event = field(default_factory=threading.Event)
    """Set when no more responses in the background are to be asked for."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of a run. `wrong` is empty, or the promise is broken."""

    wrong: list[str]
    differences: list[str]
    sent: Sent
    strikes: list[Strike]
    counts: dict[str, int]
    detail: dict[str, Any]


def measure(kills: int, database: str, seed: int, *, per_second: float = PER_SECOND) -> list[Line]:
    """Take the figures R1 and R16 (the same data, reconciled) and keep them. What went wrong is printed, and its directory is kept."""
    began = time.time()
    scratch = Path(tempfile.mkdtemp(prefix="tollway-crashes-"))
    outcome = run(scratch, kills, database, seed, per_second=per_second)
    problems = [*outcome.wrong, *outcome.differences]
    if problems:
        print(f"kept: {scratch}\n" + "\n".join(problems[:20]), flush=True)
    else:
        shutil.rmtree(scratch, ignore_errors=True)
    counts = outcome.counts
    crashes = record(
        "R1",
        case=database,
        of="kills",
        n=kills,
        failures=len(outcome.wrong),
        also={name: counts[name] for name in ("requests", "acknowledged changes")},
        seed=seed,
        began=began,
        detail=outcome.detail,
    )
    reconciled = record(
        "R16",
        case=f"R1 on {database}",
        of="requests",
        n=counts["requests"],
        failures=len(outcome.differences),
        also={name: counts[name] for name in ("line items", "accounts", "transactions")},
        seed=seed,
        began=began,
        detail={"total_pico": outcome.detail["billed_pico"]},
    )
    return [crashes, reconciled]


def run(scratch: Path, kills: int, database: str, seed: int, *, per_second: float = PER_SECOND) -> Outcome:
    """One run in the directory `scratch`, which must be empty."""
    dice = random.Random(seed)
    with ExitStack() as held:
        truth = held.enter_context(_other_disk())
        server, over = None, threading.Event()
        grpc_port, engine_grpc_port = held.enter_context(reserved_ports(2))
        environment = {
            "TOLLWAY__GATEWAY__FILES__FREE_BYTES_MIN": "1024",
            "TOLLWAY__GATEWAY__GRPC__LISTEN": f"127.0.0.1:{grpc_port}",
        }
        engine_options = ("--grpc-listen", f"127.0.0.1:{engine_grpc_port}")
        held.callback(over.set)
        if database == "postgres":
            (port,) = held.enter_context(reserved_ports(1))
            server = held.enter_context(postgres.cluster(port))
            environment |= postgres.application_environment(server.url)
        platform, serving = held.enter_context(supervised(scratch, environment=environment, engine_options=engine_options, truth=truth))
        modalities.prepare(platform, engine_grpc_port)
        others = modalities.Clients(platform, grpc_port, seed)
        rig = Rig(platform, serving, server, dice, over)
        administration = Administration()
        administrator = threading.Thread(target=_administrate, args=(rig, administration), daemon=True)
        uploads: dict[str, bytes] = {}
        background: dict[str, str] = {}
        with platform.admin() as http:
            assert http.post("/v1/organization", json={"response_retention_seconds": 86_400}).status_code == 200
        uploader = threading.Thread(target=_upload, args=(rig, uploads), daemon=True)
        batches.price_batches(platform)
        batch_id = batches.submit(platform, 0, BATCH_LINES)
        asking = threading.Thread(target=_ask_in_background, args=(rig, background), daemon=True)
        for thread in (administrator, uploader, asking, threading.Thread(target=_keep, args=(rig,), daemon=True)):
            thread.start()
        others.start()
        answered: dict[str, str] = {}
        wrong: list[str] = []
        try:
            sent = asyncio.run(_load(rig, kills, seed, per_second))
            quiet_from = time.monotonic()
            batch = batches.wait_until_ended(platform, serving, batch_id, BATCH_LINES, batches.Outcome())
            batches.read_output(platform, 0, batch, wrong, answered)
            rig.asked_all.set()
            asking.join(WAIT_SECONDS)
            others.stop()
            wrong += _find_unfinished(platform, background)
            wait_until_idle(platform.truth_log)
            attempts = read_truth(platform.truth_log)
            platform.wait_until_billed(len(attempts))
            quiet_seconds = time.monotonic() - quiet_from
        finally:
            rig.stopping.set()
            administrator.join(WAIT_SECONDS)
            uploader.join(WAIT_SECONDS)
        wrong += _find_lost_files(platform, uploads)
        wrong += [*rig.failures, *sent.wrong, *_check_administration(platform, administration)]
        stated = books.read_stated(platform)
        code = serving.end(signal.SIGTERM)
        if code != 0:
            wrong.append(f"the supervisor ended with {code}")
        platform.check_all_is_shipped()
        verified = tollway(
            "verify", "--data-dir", str(platform.directory), env=dict(platform.environment), wait_seconds=VERIFY_WAIT_SECONDS
        )
        if verified.returncode != 0:
            wrong.append(f"verify: {verified.stdout}{verified.stderr}")
        bills = read_bills(platform.database_url)
        faults, billed = find_wrong(attempts, bills, [*sent.heard, *others.heard], {**PRICES, **modalities.PRICES})
        wrong += others.wrong
        wrong += [*faults, *batches.find_unbilled(answered, bills), *_find_misbilled(platform, background, bills)]
        differences, compared = books.find_differences(platform, stated, bills)
        if quiet_seconds > QUIET_SECONDS_MAX:
            wrong.append(f"quiet only after {quiet_seconds:.1f} s")
        for path in (platform.directory / "logs").glob("*.log*"):
            wrong += [f"defect: {line}" for line in lines_of_log(path) if line.get("event") == "defect"]
    ended = Counter(each.ended for each in sent.heard)
    errors = Counter(f"{each.status} {each.code}" for each in [*sent.heard, *others.heard] if each.code is not None)
    wrong += [f"{count} requests were told {error}" for error, count in errors.items() if error.rpartition(" ")[2] not in ERRORS_ALLOWED]
    return Outcome(
        wrong=wrong,
        differences=differences,
        sent=sent,
        strikes=rig.strikes,
        counts={"requests": len(attempts), "acknowledged changes": len(administration.created) + len(administration.revoked), **compared},
        detail={
            "kills": dict(Counter(strike.victim for strike in rig.strikes)),
            "kills_of_a_whole_platform": sum(strike.is_whole for strike in rig.strikes),
            "offered_per_second": per_second,
            "reached_per_second": round(len(sent.heard) / sent.seconds, 1),
            "withheld": sent.withheld,
            "clients": dict(ended),
            "errors": dict(errors),
            "bills": dict(billed),
            "other_clients": dict(Counter(f"{each.model} {each.ended}" for each in others.heard)),
            "endpoints": dict(Counter(bill.endpoint for bill in bills.values())),
            "lines_of_a_batch": len(answered),
            "files": len(uploads),
            "responses_in_the_background": len(background),
            "billed_pico": str(sum(bill.amount_pico for bill in bills.values())),
            "control_statuses": administration.statuses(),
            "quiet_s": round(quiet_seconds, 1),
            "back_s": _recoveries(rig.strikes, sent.heard, administration),
            "truth_log": "on a file system of its own" if truth is not None else "beside the platform",
        },
    )


@contextmanager
def _other_disk() -> Iterator[Path | None]:
    """Return a directory in memory for the truth log, so that it shares no disk with what is checked. None where there is none."""
    memory = Path("/dev/shm")
    if not memory.is_dir():
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="tollway-truth-", dir=memory) as directory:
        yield Path(directory)


# ---- Killing, and starting again --------------------------------------------------------------------------------------


async def _load(rig: Rig, kills: int, seed: int, per_second: float) -> Sent:
    """Requests for as long as kills go on."""
    striking = asyncio.create_task(asyncio.to_thread(_strike_all, rig, kills))
    platform = rig.platform
    try:
        return await load.send_until(
            striking, load.make_endless(seed), platform.gateway_url, platform.tenant.api_key, per_second=per_second
        )
    finally:
        rig.ended.set()


def _strike_all(rig: Rig, kills: int) -> None:
    """Every victim equally often, in random order; then until all of it is up again."""
    victims = [*VICTIMS, *(["postmaster"] if rig.server is not None else [])]
    deck: list[str] = []
    for _ in range(kills):
        is_whole = rig.dice.random() < WHOLE_FRACTION
        if is_whole:
            _wait_until_up(rig)
        if rig.ended.wait(rig.dice.uniform(*BETWEEN_KILLS_SECONDS)):
            return
        if not deck:
            deck = rig.dice.sample(victims, len(victims))
        _strike(rig, deck.pop(), is_whole)
    _wait_until_up(rig)


def _wait_until_up(rig: Rig) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not rig.ended.is_set() and not _is_up(rig.platform):
        if time.monotonic() > deadline:
            rig.failures.append(f"not up again {WAIT_SECONDS:.0f} s after a kill")
            return
        time.sleep(0.1)


def _strike(rig: Rig, victim: str, is_whole: bool) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        strike = Strike(victim, time.monotonic(), is_whole)
        process = rig.serving.process
        assert process is not None
        if victim == "postmaster":
            assert rig.server is not None
            if not rig.database_down.is_set():
                rig.server.kill()
                rig.strikes.append(strike)
                rig.database_down.set()
                return
            time.sleep(0.05)
        elif victim == "supervisor":
            if process.poll() is None:
                rig.strikes.append(strike)
                process.kill()
                return
            time.sleep(0.05)
        elif kill_child(process.pid, victim, seconds=1.0):
            strike.killed_at = strike.up_at = time.monotonic()
            rig.strikes.append(strike)
            return
    rig.failures.append(f"there was no {victim} to kill for {WAIT_SECONDS:.0f} s")


def _keep(rig: Rig) -> None:
    """Start again what nobody else does, nought to two seconds after it died and then as often as it takes."""
    dice = random.Random(rig.dice.random())
    while not rig.stopping.is_set():
        process = rig.serving.process
        assert process is not None
        if rig.database_down.is_set():
            _revive(rig, "postmaster", dice, lambda: rig.server.start() if rig.server else None)
            rig.database_down.clear()
        elif process.poll() is not None:
            _revive(rig, "supervisor", dice, rig.serving.launch)
        else:
            rig.stopping.wait(0.02)
    rig.over.wait()  # a server ends with the thread that started it


def _revive(rig: Rig, victim: str, dice: random.Random, start: Any) -> None:
    fresh = [strike for strike in rig.strikes if strike.victim == victim and strike.up_at is None]
    time.sleep(dice.uniform(*BEFORE_RESTART_SECONDS) if fresh else 0.2)
    for strike in fresh:
        strike.up_at = time.monotonic()
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            start()
            return
        except RuntimeError as error:  # what is left of the former server still holds its shared memory
            if time.monotonic() > deadline:
                rig.failures.append(f"{victim} did not start again: {error}")
                return
            time.sleep(0.2)


def _is_up(platform: Platform) -> bool:
    try:
        control = httpx2.get(f"{platform.control_url}/readyz", timeout=WAIT_SECONDS, trust_env=False, verify=NO_TLS).status_code
    except httpx2.HTTPError:
        return False
    return control == 200 and list_models(platform.gateway_url, platform.tenant.api_key) == 200


# ---- Administration ---------------------------------------------------------------------------------------------------


def _administrate(rig: Rig, done: Administration) -> None:
    """Make a key, now and then revoke one, and note what was acknowledged."""
    dice = random.Random(rig.dice.random())
    path = f"/v1/organization/projects/{rig.platform.tenant.project_id}/api_keys"
    with rig.platform.admin() as http:
        while not rig.stopping.is_set():
            living = [key_id for key_id in done.created if key_id not in done.revoked and key_id not in done.unsure]
            key_id = dice.choice(living) if living and dice.random() < 0.3 else None
            began = time.monotonic()
            try:
                wanted = {"name": f"key {len(done.answers)}"}
                answer = http.post(path, json=wanted) if key_id is None else http.delete(f"{path}/{key_id}")
                status, body = answer.status_code, answer.json()
            except httpx2.HTTPError:
                status, body = 0, {}
            done.answers.append((began, time.monotonic(), status))
            if key_id is not None:
                (done.revoked if status == 200 else done.unsure).add(key_id)
            elif status == 200:
                done.created[body["id"]] = body["value"]
            rig.stopping.wait(ADMIN_PAUSE_SECONDS)


def _check_administration(platform: Platform, done: Administration) -> list[str]:
    """Return what was acknowledged and is not so: at the control plane, and at the gateway."""
    wrong = [f"control answered {status} {count} times" for status, count in done.statuses().items() if status not in ("0", "200", "503")]
    path = f"/v1/organization/projects/{platform.tenant.project_id}/api_keys"
    listed: set[str] = set()
    with platform.admin() as http:
        page: dict[str, Any] = {"has_more": True, "last_id": None}
        while page["has_more"]:
            after = {"after": page["last_id"]} if page["last_id"] else {}
            page = http.get(path, params={"limit": 100, **after}).json()
            listed |= {key["id"] for key in page["data"]}
    for key_id, secret in done.created.items():
        if key_id in done.unsure:
            continue
        is_revoked = key_id in done.revoked
        if (key_id in listed) is is_revoked:
            wrong.append(f"{key_id} was {'revoked' if is_revoked else 'made'}, and is{'' if is_revoked else ' not'} listed")
        status = list_models(platform.gateway_url, secret)
        # 429 refuses as well: so many revoked keys in a row are too many failed authentications from one address.
        if status not in ((401, 429) if is_revoked else (200,)):
            wrong.append(f"{key_id} was {'revoked' if is_revoked else 'made'}, and the gateway answers it {status}")
    return wrong


# ---- Files ------------------------------------------------------------------------------------------------------------


def _upload(rig: Rig, uploads: dict[str, bytes]) -> None:
    """Upload files, and note those that were acknowledged by their ids."""
    dice = random.Random(rig.dice.random())
    while not rig.stopping.is_set():
        content = dice.randbytes(dice.randint(1, 2 * FILE_BYTES))
        try:
            with batches.open_gateway(rig.platform) as http:
                answer = http.post("/v1/files", files={"file": ("a.bin", content)}, data={"purpose": "user_data"})
                if answer.status_code == 200:
                    uploads[answer.json()["id"]] = content
        except httpx2.HTTPError:
            pass  # it is starting again
        rig.stopping.wait(UPLOAD_PAUSE_SECONDS)


def _find_lost_files(platform: Platform, uploads: Mapping[str, bytes]) -> list[str]:
    """Return which files were acknowledged and are not there as they were sent."""
    wrong = []
    with batches.open_gateway(platform) as http:
        for id, content in uploads.items():
            answer = http.get(f"/v1/files/{id}/content")
            if answer.status_code != 200 or answer.content != content:
                wrong.append(f"{id}: stored, and answered {answer.status_code} with {len(answer.content)} of {len(content)} bytes")
    return wrong


# ---- Responses in the background --------------------------------------------------------------------------------------


def _ask_in_background(rig: Rig, asked: dict[str, str]) -> None:
    """Ask for responses in the background, and note those that were acknowledged: what they are to say, by their ids."""
    while not rig.asked_all.is_set():
        text = f"Response {len(asked)} asks for itself."
        try:
            with batches.open_gateway(rig.platform) as http:
                answer = http.post("/v1/responses", json={"model": "echo", "input": text, "background": True})
                if answer.status_code == 200:
                    asked[answer.json()["id"]] = text
        except httpx2.HTTPError:
            pass  # it is starting again
        rig.asked_all.wait(BACKGROUND_PAUSE_SECONDS)


def _find_unfinished(platform: Platform, asked: Mapping[str, str]) -> list[str]:
    """Return which responses in the background were acknowledged and do not end as they should."""
    wrong = []
    deadline = time.monotonic() + 2 * WAIT_SECONDS
    with batches.open_gateway(platform) as http:
        for id, text in asked.items():
            while (answer := http.get(f"/v1/responses/{id}")).json().get("status") in ("queued", "in_progress"):
                if time.monotonic() > deadline:
                    break
                time.sleep(0.1)
            found = answer.json()
            said = found["output"][0]["content"][0]["text"] if found.get("output") else None
            if found.get("status") != "completed" or said is None or said.strip() != text:
                wrong.append(f"{id}: acknowledged, and ended as {found.get('status')} with {said!r}: {found.get('error')}")
    return wrong


def _find_misbilled(platform: Platform, asked: Mapping[str, str], bills: Mapping[str, Bill]) -> list[str]:
    """Return which responses in the background are not billed once, by the ids of the requests that were made of them."""
    wrong = []
    for id in asked:
        (place,) = (platform.directory / "files" / "batches").glob(f"org_*/proj_*/{id}")
        deadline = time.monotonic() + WAIT_SECONDS
        while not (place / "answered").exists() and time.monotonic() < deadline:
            time.sleep(0.1)  # it is written when the gateway removes the journal, just after the response is stored as completed
        answered, attempts = _read_ids(place / "answered"), _read_ids(place / "attempts")
        billed = [each for each in attempts if each in bills and bills[each].amount_pico]
        if len(answered) != 1 or billed != answered:
            wrong.append(f"{id}: answered by {answered}, and billed {billed} of {attempts}")
    return wrong


def _read_ids(path: Path) -> list[str]:
    ids = path.read_bytes()
    return [f"req_{ids[start : start + 16].hex()}" for start in range(0, len(ids), 16)]


# ---- How long it took -------------------------------------------------------------------------------------------------


def _recoveries(strikes: Sequence[Strike], heard: Sequence[Heard], done: Administration) -> dict[str, dict[str, float]]:
    """Seconds from the restart to the first success, by victim: of a request to the gateway, or of a change at the control plane.
    Kills that another one overtook before that are left out."""
    served = sorted((each.began, each.headed) for each in heard if each.status == 200 and each.headed is not None)
    changed = sorted((began, answered) for began, answered, status in done.answers if status == 200)
    times: dict[str, list[float]] = {}
    for strike, following in zip(strikes, [*strikes[1:], None], strict=True):
        if strike.up_at is None:
            continue
        answers = served if strike.victim in ("gateway", "supervisor") else changed
        first = min((answered for began, answered in answers if began >= strike.up_at), default=None)
        if first is not None and (following is None or first < following.killed_at):
            times.setdefault(strike.victim, []).append(first - strike.up_at)
    return {
        victim: {"n": len(each), "p50": round(statistics.median(each), 2), "max": round(max(each), 2)} for victim, each in times.items()
    }
