"""Checks of what Tollway needs of a machine, without starting anything: a finding for each need, with a remedy where it is not met.

Each check stands alone and changes nothing that remains: one writes a file of a few kilobytes to time the disk, and removes it. A check
that cannot be made says why. `tollway doctor` prints the findings."""

import asyncio
import json
import os
import resource
import shutil
import stat
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import StrEnum
from pathlib import Path

import httpx2

from tollway.domain.faults import Fault
from tollway.link.spool import SpoolOptions, needed_bytes
from tollway.serve import data_directory
from tollway.serve.descriptors import RESERVE, describe_shortage, share_out
from tollway.serve.sockets import open_listener, parse_address
from tollway.serve.tls import find_expiry
from tollway.settings import LimitsSection, OperatorError, Settings, SinksSection, mask_password
from tollway.storage import jobs
from tollway.storage.database import Database, DatabaseOutdated, DatabaseTooNew
from tollway.storage.shared_counters import RedisCounters, StoreOptions

SPARE_SEGMENTS = 4
"""Segments of the spool for which there should be space: while control is away for a while, the spool grows."""

SYNCS = 15
"""Writes that are timed, one after the other."""

SYNC_SECONDS_MAX = 0.02
"""Time of a durable write above which the disk is slow for a spool: every answer waits for one. SSDs take 0.1 to 5 ms."""

SKEW_SECONDS_MAX = 2.0
"""Difference of clocks above which requests near the end of a period or of a price may be booked on its other side."""

ANSWER_SECONDS_MAX = 3.0
"""Deadline for control or a port to answer."""

SINKS = ("kafka", "nats", "http")
"""Names of sinks, in the order of their settings."""

CERTIFICATE_SECONDS_MIN = 14 * 86_400
"""Time before its expiry at which a certificate should be replaced: the alert TollwayCertificateExpires begins then."""

MEMORY_FILE_SYSTEMS = frozenset({"tmpfs", "ramfs"})
NETWORK_FILE_SYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs"})


class CheckState(StrEnum):
    """Result of a check."""

    OK = "ok"
    WARNING = "warning"  # works, but not well or not for long
    ERROR = "error"  # does not work
    SKIPPED = "skipped"  # could not be checked, or is not in use


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of a check in words. `remedy` is empty where nothing is to be done."""

    check: str
    state: CheckState
    message: str
    remedy: str = ""


def diagnose(settings: Settings, environ: Mapping[str, str], control_url: str | None, database_url: str | None) -> Iterator[CheckResult]:
    """Yield the findings about this machine, as they are made.

    `control_url`: the control plane's REST API, if it is known. `database_url`: the database with its driver; None for the embedded one."""
    directory = Path(settings.data_dir).absolute()
    yield _check_directory(directory)
    yield _check_secrets(directory, environ)
    yield _check_space(directory, settings)
    yield _check_file_system(directory)
    yield _check_sync(directory)
    yield _check_descriptors(settings)
    addresses = {"gateway.listen": settings.gateway.listen, "gateway.internal": settings.gateway.internal}
    if settings.gateway.control_link_url is None:  # else control runs elsewhere
        addresses |= {"control.listen": settings.control.listen, "control.link": settings.control.link}
        if settings.control.console_listen is not None:
            addresses["control.console_listen"] = settings.control.console_listen
    for option, address in addresses.items():
        yield _check_port(option, address)
    yield _check_certificate(settings.gateway.tls.certificate_file, time.time())
    yield _check_counters(settings.gateway.limits, environ.get("TOLLWAY_LIMITS_REDIS_PASSWORD"))
    yield _check_clock(control_url)
    yield _check_database(directory, database_url)
    yield _check_sinks(directory, database_url, settings.control.sinks)


def _check_directory(directory: Path) -> CheckResult:
    name = "data directory"
    if _is_fresh(directory):
        above = _nearest(directory)
        if os.access(above, os.W_OK | os.X_OK):
            return CheckResult(name, CheckState.OK, f"{directory} is new; the first start makes what it needs there")
        return CheckResult(
            name, CheckState.ERROR, f"{directory} cannot be made: {above} is not writable", "choose another --data-dir, or make it writable"
        )
    try:
        data_directory.check_format(directory)
        mode = stat.S_IMODE(directory.stat().st_mode)
    except (OperatorError, OSError) as error:
        return CheckResult(name, CheckState.ERROR, *_words_of(error, directory))
    for each in (directory, *(directory / part for part in ("gateway", "gateway/spool", "control", "control/archive", "logs"))):
        if each.exists() and not os.access(each, os.R_OK | os.W_OK | os.X_OK):
            return CheckResult(name, CheckState.ERROR, *_words_of(PermissionError(13, "permission denied", str(each)), each))
    if mode & stat.S_IRWXO:
        return CheckResult(
            name, CheckState.WARNING, f"{directory} can be entered by every user (mode {mode:o})", f"chmod o-rwx {directory}"
        )
    return CheckResult(name, CheckState.OK, f"{directory} can be read and written")


def _check_secrets(directory: Path, environ: Mapping[str, str]) -> CheckResult:
    name = "secrets"
    if _is_fresh(directory) and not any(environ.get(variable) for variable in data_directory.SECRETS_ENV):
        return CheckResult(name, CheckState.OK, "none yet; the first start makes them")
    try:
        data_directory.read_secrets(directory, environ)
        node = data_directory.find_known_node(directory, environ)
    except OperatorError as error:
        return CheckResult(name, CheckState.ERROR, error.message, error.hint)
    return CheckResult(name, CheckState.OK, "complete and private" + ("" if node is None else f"; this node is {node.node_id}"))


def _check_space(directory: Path, settings: Settings) -> CheckResult:
    name = "disk space"
    spool = settings.gateway.spool
    try:
        need = needed_bytes(SpoolOptions(segment_bytes=spool.segment_bytes, slots_max=spool.slots_max))
    except ValueError as error:
        return CheckResult(name, CheckState.ERROR, f"gateway.spool is not valid: {error}", "see docs/settings.md")
    place = _nearest(directory)
    usage, inodes = shutil.disk_usage(place), os.statvfs(place)
    wanted = need + SPARE_SEGMENTS * spool.segment_bytes
    free = f"{usage.free >> 20:,} MiB free at {place}"
    remedy = f"free space there, choose another --data-dir, or lower gateway.spool.segment_bytes ({spool.segment_bytes})"
    if usage.free < need:
        return CheckResult(name, CheckState.ERROR, f"{free}: a gateway needs {-(-need >> 20):,} MiB to start", remedy)
    if inodes.f_files and inodes.f_favail < 100:
        return CheckResult(
            name, CheckState.ERROR, f"{inodes.f_favail} inodes free at {place}", "remove files there, or choose another --data-dir"
        )
    if usage.free < wanted:
        return CheckResult(name, CheckState.WARNING, f"{free}: enough to start, but not for long while control is away", remedy)
    return CheckResult(name, CheckState.OK, free)


def _check_file_system(directory: Path) -> CheckResult:
    name = "file system"
    found = _find_file_system(_nearest(directory))
    if found is None:
        return CheckResult(name, CheckState.SKIPPED, "/proc/self/mounts does not name the file system of the data directory")
    if found in MEMORY_FILE_SYSTEMS:
        return CheckResult(
            name, CheckState.WARNING, f"the data directory is in memory ({found}): usage is lost with the machine", "mount a disk there"
        )
    if found in NETWORK_FILE_SYSTEMS:
        remedy = "use a disk of this machine: locks and syncs of network file systems are not reliable enough"
        return CheckResult(name, CheckState.WARNING, f"the data directory is on a network file system ({found})", remedy)
    return CheckResult(name, CheckState.OK, found)


def _find_file_system(path: Path) -> str | None:
    """Return the type of the file system that holds `path`: that of the longest mount point above it."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/self/mounts").read_text().splitlines()]
    except (OSError, IndexError):
        return None
    above = {str(each) for each in (path, *path.parents)}
    holding = [(len(point), type) for point, type in mounts if point in above]
    return max(holding, key=lambda each: each[0])[1] if holding else None


def _check_sync(directory: Path) -> CheckResult:
    name = "durable writes"
    place = next((each for each in (directory / "gateway" / "spool", directory) if each.is_dir()), _nearest(directory))
    try:
        seconds = _time_syncs(place)
    except OSError as error:
        return CheckResult(name, CheckState.ERROR, *_words_of(error, place))
    message = f"{seconds * 1000:.2f} ms for one at {place} (median of {SYNCS})"
    if seconds > SYNC_SECONDS_MAX:
        return CheckResult(
            name, CheckState.WARNING, f"{message}: every answer waits for one", "put the data directory on an SSD of this machine"
        )
    return CheckResult(name, CheckState.OK, message)


def _time_syncs(place: Path) -> float:
    """Return the median time of a durable write of 4 KiB. Raises OSError."""
    descriptor, path = tempfile.mkstemp(prefix=".tollway-doctor-", dir=place)
    try:
        took = []
        for number in range(SYNCS):
            started = time.perf_counter()
            os.pwrite(descriptor, b"\0" * 4096, number * 4096)
            os.fdatasync(descriptor)
            took.append(time.perf_counter() - started)
        return statistics.median(took)
    finally:
        os.close(descriptor)
        os.unlink(path)


def _check_descriptors(settings: Settings) -> CheckResult:
    name = "open files"
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        return CheckResult(name, CheckState.OK, "no limit")
    edge = settings.gateway.edge
    share = share_out(hard, edge.connections_max, for_each=2, reserve=RESERVE + edge.internal_connections_max)
    if share.missing:
        message = describe_shortage(hard, share, f"gateway.edge.connections_max ({edge.connections_max}) and as many to engines")
        short, _, remedy = message.partition(". ")
        return CheckResult(
            name, CheckState.WARNING, short, f"{remedy.rstrip('.').replace('Raise', 'raise', 1)}, or lower gateway.edge.connections_max"
        )
    return CheckResult(name, CheckState.OK, f"{hard:,} can be open; {edge.connections_max:,} connections fit")


def _check_port(option: str, address: str) -> CheckResult:
    name = f"port of {option}"
    try:
        host, port = parse_address(address, option=option)
    except OperatorError as error:
        return CheckResult(name, CheckState.ERROR, error.message, error.hint)
    if port == 0:
        return CheckResult(name, CheckState.OK, f"{address} takes a free port")
    try:
        open_listener(address, option=option).close()
    except OperatorError as error:
        if _answers(host, port):
            return CheckResult(name, CheckState.OK, f"{address} is in use, and Tollway answers there")
        return CheckResult(name, CheckState.ERROR, error.message, error.hint)
    return CheckResult(name, CheckState.OK, f"{address} is free")


def _answers(host: str, port: int) -> bool:
    """Return whether what listens there answers as Tollway does."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    url = f"http://[{host}]:{port}/livez" if ":" in host else f"http://{host}:{port}/livez"
    try:
        answer = httpx2.get(url, timeout=ANSWER_SECONDS_MAX, trust_env=False)
    except (httpx2.HTTPError, httpx2.InvalidURL):
        return False
    return answer.status_code == 200 or "x-request-id" in answer.headers


def _check_certificate(file: str | None, now: float) -> CheckResult:
    name = "certificate"
    try:
        expires_at = find_expiry(file)
    except OperatorError as error:
        return CheckResult(name, CheckState.ERROR, error.message, error.hint)
    if expires_at is None:
        return CheckResult(name, CheckState.OK, "none: the gateway serves without TLS")
    left = expires_at - now
    remedy = "replace the files of gateway.tls, then `systemctl reload tollway`, or restart the gateways one after the other"
    if left <= 0:
        return CheckResult(name, CheckState.ERROR, f"{file} expired {-left / 86_400:.0f} days ago", remedy)
    state = CheckState.WARNING if left < CERTIFICATE_SECONDS_MIN else CheckState.OK
    return CheckResult(name, state, f"{file} expires in {left / 86_400:.0f} days", remedy if state is CheckState.WARNING else "")


def _check_counters(limits: LimitsSection, password: str | None) -> CheckResult:
    name = "shared counters"
    if limits.redis_url is None:
        return CheckResult(name, CheckState.OK, "not used: each gateway counts in its own memory")
    options = StoreOptions(url=limits.redis_url, password=password, decision_seconds=limits.decision_seconds)
    remedy = "check gateway.limits.redis_url, TOLLWAY_LIMITS_REDIS_PASSWORD and the server; meanwhile gateways use their shares of limits"
    try:
        reason = asyncio.run(RedisCounters(options, recover=lambda: None, alarm=lambda _event, _fields: None).probe())
    except ValueError as error:
        return CheckResult(name, CheckState.ERROR, f"gateway.limits.redis_url is not valid: {error}", remedy)
    if reason:
        return CheckResult(name, CheckState.ERROR, f"{mask_password(limits.redis_url)} cannot be used: {reason}", remedy)
    deadline = f"{limits.decision_seconds * 1000:g} ms"
    return CheckResult(name, CheckState.OK, f"{mask_password(limits.redis_url)} answers within the deadline of a decision, {deadline}")


def _check_clock(control_url: str | None) -> CheckResult:
    name = "clock"
    if control_url is None:
        return CheckResult(name, CheckState.SKIPPED, "no control plane is known to compare with", "name it with --control-url")
    before = time.time()
    try:
        answer = httpx2.get(f"{control_url}/livez", timeout=ANSWER_SECONDS_MAX, trust_env=False)
        theirs = parsedate_to_datetime(answer.headers["date"]).timestamp() + 0.5  # the header has whole seconds
    except (httpx2.HTTPError, httpx2.InvalidURL):
        return CheckResult(name, CheckState.SKIPPED, f"nothing answers at {control_url}", "start control, or name it with --control-url")
    except (KeyError, ValueError):
        return CheckResult(name, CheckState.SKIPPED, f"{control_url} does not state its time", "is this the control plane's address?")
    skew = (before + time.time()) / 2 - theirs
    if abs(skew) > SKEW_SECONDS_MAX:
        message = f"{abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} control at {control_url}"
        return CheckResult(name, CheckState.ERROR, message, "synchronize both machines (systemd-timesyncd, chrony)")
    return CheckResult(name, CheckState.OK, f"within {SKEW_SECONDS_MAX:.0f} s of control at {control_url}")


def _check_database(directory: Path, url: str | None) -> CheckResult:
    name = "database"
    if url is None:
        if not (directory / "control" / "tollway.db").exists():
            return CheckResult(name, CheckState.OK, "none yet; the first start of control makes it")
        url = data_directory.sqlite_url(directory)
    version = "the database"
    try:
        with closing(Database.open(url, connections_max=1)) as database:
            version = database.find_version()
            database.check_role()
            database.check_schema()
    except Fault as fault:
        remedy = "is it running, and may this machine connect? see TOLLWAY_DATABASE_URL"
        return CheckResult(name, CheckState.ERROR, f"{fault.message} {' '.join(fault.detail.split())}", remedy)
    except DatabaseOutdated:
        return CheckResult(
            name,
            CheckState.WARNING,
            f"{version} has migrations pending",
            "run `tollway migrate`; control does it at its start on SQLite, or with TOLLWAY_OWNER_DATABASE_URL",
        )
    except (DatabaseTooNew, ValueError, RuntimeError) as error:
        return CheckResult(name, CheckState.ERROR, str(error), "see docs/deployment.md")
    return CheckResult(name, CheckState.OK, f"{version} answers, and this version may run over its schema")


def _check_sinks(directory: Path, url: str | None, section: SinksSection) -> CheckResult:
    name = "sinks"
    used = [sink for sink, given in zip(SINKS, (section.kafka_servers, section.nats_servers, section.http_url), strict=True) if given]
    if not used:
        return CheckResult(name, CheckState.OK, "not used")
    if url is None and not (directory / "control" / "tollway.db").exists():
        return CheckResult(name, CheckState.OK, "none yet; control begins with them")
    try:
        opened = closing(Database.open(url or data_directory.sqlite_url(directory), connections_max=1))
        with opened as database, database.platform(write=False) as tx:
            leases = {sink: jobs.find_lease(tx, f"sink_{sink}") for sink in used}
    except (Fault, ValueError, RuntimeError):
        return CheckResult(name, CheckState.SKIPPED, "the database says nothing of them")
    failing = [f"{sink} failed {lease.failures} times in a row" for sink, lease in leases.items() if lease is not None and lease.failures]
    if failing:
        remedy = "the log line job_failed of control has the reason; see docs/sinks.md"
        return CheckResult(name, CheckState.WARNING, "; ".join(failing), remedy)
    return CheckResult(name, CheckState.OK, f"{', '.join(used)}: served, or about to be")


def find_control_url(directory: Path) -> str | None:
    """Return where the control plane of this data directory was set to listen; None if no process has left its address."""
    for file in ("demo.json", "addresses.json"):
        try:
            url = json.loads((directory / file).read_bytes()).get("control_url")
        except (OSError, ValueError, AttributeError):
            continue
        if isinstance(url, str):
            return url
    return None


def _is_fresh(directory: Path) -> bool:
    """Return whether nothing has been started with this data directory yet."""
    return not directory.exists() or (directory.is_dir() and os.access(directory, os.R_OK) and not any(directory.iterdir()))


def _nearest(path: Path) -> Path:
    """Return `path`, or the nearest directory above it that exists."""
    return next(each for each in (path, *path.parents) if each.is_dir())


def _words_of(error: OSError | OperatorError, path: Path) -> tuple[str, str]:
    told = error if isinstance(error, OperatorError) else data_directory.explain(error, path)
    return told.message, told.hint
