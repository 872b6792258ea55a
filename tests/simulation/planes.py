"""Both ends of the link: gateways that live and die, a network that loses and repeats, a control plane that fails and comes back.

A gateway here is what `serve.gateway` assembles, less HTTP: recovery and spool, shipper, requests through the meter, an end
by drain or by death. Control is the collector on a real SQLite database, in one transaction for each request.
"""

import asyncio
import errno
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

import httpx2
import msgspec
from pysqlite3 import dbapi2 as sqlite

from tests.link.samples import NODE
from tests.simulation.disks import Directory, Files, SimulatedDisk
from tests.simulation.limits import Limiter
from tests.simulation.machine import Killed, Process, World
from tests.simulation.traffic import BUDGET_ID, FIRST_US, GRANTS_FIRST, CreditTerms, limited_caller
from tests.storage.databases import SqliteTemplate, fill
from tollway.control.metering.batches import BatchRefused
from tollway.control.metering.collect import Gap, collect, find_next_seq
from tollway.control.money.budgets import renew_leases, set_prepaid
from tollway.control.money.credits import WantedGrant, create_grant
from tollway.domain.budgets import Budget, LeaseRequest
from tollway.domain.credits import MINUTE_US, GrantCategory, Topup, TopupRule
from tollway.domain.faults import STATE_CONFLICT, Fault
from tollway.domain.ids import CREDIT_GRANT, new_id
from tollway.domain.pages import PageWindow
from tollway.domain.usage import Ended, encode
from tollway.gateway.budgets import Budgets
from tollway.link.leases import LeaseClient
from tollway.link.shipper import Shipper, ShipperOptions
from tollway.link.spool import Spool, SpoolOptions
from tollway.storage import budgets as stored_budgets
from tollway.storage import credits as stored_credits
from tollway.storage import topups as stored_topups
from tollway.storage.database import Database
from tollway.storage.record_archive import Archive
from tollway.storage.usage_events import EventRace

SPOOL = PurePosixPath("/gateway/spool")
BATCH_BYTES = 66_000
DRAIN_SECONDS = 0.5


TOPUP_COOLOFF_SECONDS = 1
"""Shorter than an operator may set, so that a history has several top-ups."""


class Network:
    """Faults of messages between gateways and control."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.lost_rate = 0.0
        self.repeat_rate = 0.0
        self.seconds = 0.002

    def is_lost(self) -> bool:
        if self.lost_rate and self.world.chance.random() < self.lost_rate:
            self.world.faults += 1
            return True
        return False


class Wire(httpx2.AsyncBaseTransport):
    """A gateway's way to control."""

    def __init__(self, process: Process, network: Network, control: "Control") -> None:
        self._process = process
        self._network = network
        self._control = control

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        world, network = self._process.world, self._network
        answered: asyncio.Future[tuple[int, bytes] | None] = self._process.loop.create_future()
        method, path, body = request.method, request.url.path, await request.aread()

        def tell(answer: tuple[int, bytes] | None) -> None:
            if self._process.alive and not answered.done():
                answered.set_result(answer)

        def arrive() -> None:
            answer = self._control.answer(method, path, body)
            if not network.is_lost():
                world.after(world.latency(network.seconds), lambda: tell(answer))

        if not network.is_lost():
            world.after(world.latency(network.seconds), arrive)
        if network.repeat_rate and world.chance.random() < network.repeat_rate:  # and a copy comes later, whoever kept it
            world.faults += 1
            world.after(world.latency(0.5), lambda: self._control.answer(method, path, body) and None)
        try:
            async with asyncio.timeout(15.0):
                answer = await answered
        except TimeoutError:
            raise httpx2.ReadTimeout("no answer", request=request) from None
        if answer is None:
            raise httpx2.ConnectError("refused", request=request)
        return httpx2.Response(answer[0], content=answer[1])


class Ledger:
    """A real database that every history finds as new: one file, one engine, and its first content put back each time."""

    def __init__(self) -> None:
        memory = Path("/dev/shm")
        self.directory = Path(tempfile.mkdtemp(prefix="tollway-simulation-", dir=memory if memory.is_dir() else None))
        template = SqliteTemplate(self.directory)
        with template.copied(self.directory) as url:
            self.database = Database.open(url)
        fill(self.database)
        self._writers = self.database._writers
        self._empty = sqlite.connect(":memory:", check_same_thread=False)
        with self._raw() as raw:
            raw.execute("PRAGMA synchronous = OFF")  # the database's own durability is not what is simulated
            raw.backup(self._empty)

    @contextmanager
    def _raw(self) -> Iterator[Any]:
        connection = self._writers.raw_connection()
        try:
            yield connection.dbapi_connection
        finally:
            connection.close()

    def reset(self) -> Archive:
        """As on the first day, with an archive of its own."""
        with self._raw() as raw:
            self._empty.backup(raw)
        archive = self.directory / "archive"
        shutil.rmtree(archive, ignore_errors=True)
        return Archive(archive)

    @contextmanager
    def interrupted(self, instructions: int) -> Iterator[None]:
        """The database stops answering after so many of its own instructions.

        They are counted on a connection of its own that has read the schema: SQLite counts from where the last use of a prepared statement
        ended, in whatever history that was.
        """
        left = instructions

        def count() -> int:
            nonlocal left
            left -= 50
            return int(left < 0)

        self._writers.dispose()
        with self._raw() as raw:
            raw.execute("PRAGMA synchronous = OFF")
            raw.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            raw.set_progress_handler(count, 50)
        try:
            yield
        finally:
            with self._raw() as raw:
                raw.set_progress_handler(None, 0)

    def close(self) -> None:
        self.database.close()
        self._empty.close()
        shutil.rmtree(self.directory, ignore_errors=True)


class SickArchive(Archive):
    """An archive whose disk fails now and then, before, in the middle or after."""

    def __init__(self, archive: Archive, control: "Control") -> None:
        self._of = archive
        self._control = control

    def write(self, node_id: str, epoch: int, offset: int, data: bytes) -> None:
        world = self._control.world
        if self._control.error_rate and world.chance.random() < self._control.error_rate:
            world.faults += 1
            size = world.chance.choice((0, len(data), world.chance.randint(0, len(data))))
            if size:
                self._of.write(node_id, epoch, offset, data[:size])
            raise OSError(errno.EIO, "injected at the archive")
        self._of.write(node_id, epoch, offset, data)


def _paid(amount_pico: int, effective_at: int, expires_at: int | None, topup_id: str | None = None) -> WantedGrant:
    """Return a grant of paid credit that any request can use. `topup_id`: of the top-up that it answers."""
    return WantedGrant(
        category=GrantCategory.PAID,
        amount_pico=amount_pico,
        currency=None,
        cost_basis_bp=None,
        priority=0,
        effective_at=effective_at,
        expires_at=expires_at,
        reference="",
        project_id=None,
        model="",
        topup_id=topup_id,
    )


class _Leases(msgspec.Struct):
    sequence: int
    leases: list[LeaseRequest]


class Died(Exception):
    """The control process died before its commit."""


class Control:
    """The control plane's end."""

    def __init__(self, world: World, ledger: Ledger) -> None:
        self.world = world
        self.ledger = ledger
        self.archive = ledger.reset()
        self.is_up = True
        self.error_rate = 0.0
        self.refusals: list[str] = []
        self.watermarks: dict[int, int] = {}
        self.taken = 0
        self.budget: Budget | None = None
        """The hard budget of one organization, or the one that holds it to its credit, if the history has one."""
        self.topups: set[str] = set()
        """Top-ups that somebody has begun to answer."""

    def add_budget(self, budget: Budget) -> None:
        """Bound what an organization may spend, from the first request on."""
        with self.ledger.database.tenant(budget.organization_id) as tx:
            stored_budgets.insert_budget(tx, budget)
        self.budget = budget

    def add_credit(self, organization_id: str, terms: Sequence[CreditTerms], now: int) -> None:
        """Hold an organization to credit, from the first request on. Each grant is told in microseconds from `now`."""
        begin = now // MINUTE_US * MINUTE_US
        with self.ledger.database.tenant(organization_id) as tenant:
            budget = set_prepaid(tenant, is_prepaid=True, id=BUDGET_ID, now=begin - FIRST_US)
        with self.ledger.database.platform() as tx:
            for number, each in enumerate(terms):
                ends_at = None if each.ends_after_us is None else begin + each.ends_after_us
                wanted = _paid(each.amount_pico, begin + each.begins_after_us, ends_at)
                create_grant(tx, organization_id, wanted, id=new_id(CREDIT_GRANT, begin, number), now=begin - FIRST_US)
        self.budget = budget

    def add_topups(self, organization_id: str, amount_pico: int, threshold_pico: int, now: int) -> None:
        """Ask for more credit of an organization whenever less than the threshold is usable, and have each top-up answered."""
        rule = TopupRule(threshold_pico, amount_pico, TOPUP_COOLOFF_SECONDS)
        with self.ledger.database.platform() as tx:
            stored_topups.put_rule(tx, organization_id, rule, now)

    def _find_topups(self) -> None:
        """Begin to answer the top-ups that were asked for, each after a time of its own."""
        with self.ledger.database.platform(write=False) as tx:
            topups = stored_topups.list_topups(tx, PageWindow(100), only_open=True)
        for topup in topups.items:
            if topup.id not in self.topups:
                self.topups.add(topup.id)
                self.world.note(f"{topup.id} is asked for")
                self.world.after(self.world.chance.uniform(0.01, 0.8), lambda topup=topup: self._answer_topup(topup))  # type: ignore[misc]

    def _answer_topup(self, topup: Topup) -> None:
        """Grant a top-up: again and again while control is away or dies before its commit, and once more after it was granted."""
        chance, now = self.world.chance, self.world.true_clock()
        minute = now // MINUTE_US * MINUTE_US
        wanted = _paid(topup.amount_pico, minute, chance.choice((None, minute + MINUTE_US)), topup.id)
        try:
            if not self.is_up:
                raise Died
            with self.ledger.database.platform() as tx:
                create_grant(tx, topup.organization_id, wanted, id=new_id(CREDIT_GRANT, now, chance.getrandbits(62)), now=now)
                if chance.random() < self.error_rate:
                    self.world.faults += 1
                    raise Died
        except Died:
            self.world.after(0.1, lambda: self._answer_topup(topup))
            return
        except Fault as fault:
            if fault.kind is not STATE_CONFLICT:
                raise
            return  # it was granted before
        self.world.note(f"{topup.id} is granted")
        self.check_budget()
        if chance.random() < 0.5:
            self.world.after(chance.uniform(0.0, 0.5), lambda: self._answer_topup(topup))

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, bytes] | None:
        """One request; None if there is nobody."""
        if not self.is_up:
            return None
        chance = self.world.chance
        draw = chance.random() if self.error_rate else 1.0
        if draw < self.error_rate / 2:
            self.world.faults += 1
            return 503, b"{}"
        _, _, _, kind, node_id, epoch, *rest = path.split("/")
        if kind == "leases":
            return self._renew(node_id, int(epoch), body)
        if method == "GET":
            with self.ledger.database.platform(write=False) as tx:
                next_seq = find_next_seq(tx, node_id, int(epoch))
        else:
            try:
                next_seq = self._collect(node_id, int(epoch), int(rest[0]), body)
            except Gap as gap:
                return 409, b'{"next_seq":%d}' % gap.next_seq
            except BatchRefused as refused:
                self.refusals.append(f"{epoch}/{rest[0]}: {refused}")
                self.world.note(f"control refuses {epoch}/{rest[0]}: {refused}")
                return 400, b"{}"
            except (OSError, Fault, Died, EventRace) as error:
                self.world.note(f"control fails: {type(error).__name__}")
                return chance.choice((None, (503, b"{}"), (500, b"")))
        if draw > 1 - self.error_rate / 4:
            self.world.faults += 1
            return 200, b"not what was agreed"
        return 200, b'{"next_seq":%d}' % next_seq

    def _renew(self, node_id: str, epoch: int, body: bytes) -> tuple[int, bytes] | None:
        """Renew leases in one transaction, before the end of which control may die."""
        asked = msgspec.json.decode(body, type=_Leases)
        dies = bool(self.error_rate) and self.world.chance.random() < self.error_rate
        try:
            with self.ledger.database.platform() as tx:
                grants = renew_leases(
                    tx, node_id=node_id, epoch=epoch, sequence=asked.sequence, requests=asked.leases, now=self.world.true_clock()
                )
                if dies:
                    self.world.faults += 1
                    raise Died
        except Fault:
            return 409, b"{}"
        except Died:
            return None
        self.check_budget()
        return 200, msgspec.json.encode({"leases": grants})

    def check_budget(self) -> None:
        """Check that what was spent, and what leases of open epochs still allow, are together at most the budget; of credit, that no grant
        is drawn on beyond its amount, and that all that was spent is drawn."""
        budget = self.budget
        if budget is None:
            return
        if budget.is_prepaid:
            self._check_credit(budget)
            return
        with self.ledger.database.platform(write=False) as tx:
            spent_pico = stored_budgets.find_spent(tx, budget.id, 0)
            leased_pico = sum(each.outstanding_pico for each in stored_budgets.list_leases(tx, budget.id, 0))
        if spent_pico + leased_pico > budget.amount_pico:
            self.world.fail(f"of the budget of {budget.amount_pico}, {spent_pico} are spent and {leased_pico} leased")

    def _check_credit(self, budget: Budget) -> None:
        now = self.world.true_clock()
        with self.ledger.database.platform(write=False) as tx:
            spent_pico = stored_budgets.find_spent(tx, budget.id, 0)
            leased_pico = sum(stored_budgets.list_outstanding(tx, budget.id, 0).values())
            topups = stored_topups.list_topups(tx, PageWindow(100), only_open=False).items
            grants = stored_credits.list_open(tx, budget.organization_id)
            draws = stored_credits.list_draws(tx, [each.id for each in grants])
        drawn = {each.id: sum(pico for (grant_id, _), pico in draws.items() if grant_id == each.id) for each in grants}
        if any(not 0 <= drawn[each.id] <= each.amount_pico for each in grants):
            self.world.fail(f"of grants of {[each.amount_pico for each in grants]}, {list(drawn.values())} are drawn")
        if sum(drawn.values()) != spent_pico:
            self.world.fail(f"{spent_pico} were spent, and {sum(drawn.values())} drawn on credit")
        begun_pico = sum(each.amount_pico for each in grants if each.effective_at <= now)
        if spent_pico + leased_pico > begun_pico:
            self.world.fail(f"of credit of {begun_pico}, {spent_pico} are spent and {leased_pico} leased")
        answered = [each.grant_id for each in topups if each.grant_id is not None]
        if len(set(answered)) != len(answered) or len(grants) != GRANTS_FIRST + len(answered):
            self.world.fail(f"{len(grants)} grants, and {len(answered)} of {len(topups)} top-ups were answered")

    def _collect(self, node_id: str, epoch: int, first_seq: int, body: bytes) -> int:
        chance, database = self.world.chance, self.ledger.database
        archive = SickArchive(self.archive, self)
        now = self.world.true_clock() + 1

        def take(dies: bool) -> int:
            with database.platform() as tx:
                taken = collect(tx, archive, node_id=node_id, epoch=epoch, first_seq=first_seq, body=body, now=now)
                if dies:
                    raise Died
            return taken.next_seq

        draw = chance.random() if self.error_rate else 1.0
        if draw < self.error_rate / 2:
            self.world.faults += 1
            with self.ledger.interrupted(chance.randint(0, 6_000)):
                next_seq = take(False)
        else:
            if dies := draw < self.error_rate:
                self.world.faults += 1
            next_seq = take(dies)
        if next_seq < self.watermarks.get(epoch, 1):
            self.world.fail(f"the watermark of {epoch} goes back to {next_seq}")
        self.watermarks[epoch] = next_seq
        self.taken += 1
        self.check_budget()
        if self.budget is not None and self.budget.is_prepaid:
            self._find_topups()
        return next_seq


class Gateway:
    """Gateway process of one epoch."""

    def __init__(self, history: Any, name: str, *, serves: bool = True) -> None:
        self.history = history
        self.world: World = history.world
        self.process = Process(self.world, name)
        self.files: Files = history.files
        self.disk = SimulatedDisk(self.files, self.process, kernel=history.kernel)
        self.clock = self.disk.clock
        self.budgets = Budgets(self.clock)
        limits = history.limits
        self.limiter = None if limits is None else Limiter(limits, self.process)
        self.limited_caller = None if limits is None else limited_caller(limits.levels)
        self.running: dict[str, Any] = {}
        """Requests under way, by id."""
        self.spool: Spool
        self.shipper: Shipper | None = None
        self.has_begun = False
        self.has_ended = False
        """In whatever way: on its own or not."""
        self.is_complete = False
        """It stopped in good order and control has all of its life."""
        self._serves = serves
        self._stop = asyncio.Event()
        self.process.on_death.append(self._died)

    def _died(self) -> None:
        self.has_ended = True
        self.world.kills += 1

    def start(self) -> None:
        """As `serve.gateway` starts: recover, open, serve."""
        self.world.note(f"{self.process.name} starts")
        self.process.start_job(self._open, self._opened)

    def _open(self) -> Spool:
        asyncio.events._set_running_loop(self.process.loop)
        try:
            return Spool.open(SPOOL, alarm=self.alarm, node_id=NODE, clock=self.clock, options=self.history.options, disk=self.disk)
        finally:
            asyncio.events._set_running_loop(None)

    def _opened(self, spool: Spool | None, error: BaseException | None) -> None:
        if error is not None:
            if not isinstance(error, OSError):
                self.world.fail(f"the spool does not open: {error!r}")
            self.world.note(f"{self.process.name} cannot start: {error}")
            self.process.kill("at its start")
            return
        assert spool is not None
        self.spool = spool
        self.has_begun = True
        self.world.note(f"{self.process.name} has epoch {spool.epoch.number}")
        self.process.loop.create_task(self._run())

    def stop(self) -> None:
        """SIGTERM."""
        self.world.note(f"{self.process.name} is told to stop")
        self._stop.set()

    async def _run(self) -> None:
        try:
            await self._main()
        except OSError as error:  # as an exception ends a real process
            self.process.kill(f"of {error}")

    async def _main(self) -> None:
        loop = asyncio.get_running_loop()
        spool, history = self.spool, self.history
        self.shipper = Shipper(
            spool,
            SPOOL,
            control_link_url="http://control",
            node_key="tw_node_x",
            alarm=self.alarm,
            options=history.shipper_options,
            clock=self.clock,
            transport=Wire(self.process, history.network, history.control),
            chance=self.world.chance,
        )
        shipping = loop.create_task(self.shipper.run())
        leases = LeaseClient(
            self.budgets,
            control_link_url="http://control",
            node_key="tw_node_x",
            node_id=NODE,
            epoch=spool.epoch.number,
            alarm=self.alarm,
            transport=Wire(self.process, history.network, history.control),
            chance=self.world.chance,
        )
        leasing = None if history.control.budget is None else loop.create_task(leases.run())
        limiting = None if self.limiter is None else loop.create_task(self.limiter.run())
        arriving = loop.create_task(history.traffic.arrive(self)) if self._serves else None
        stopping, failing = loop.create_task(self._stop.wait()), loop.create_task(spool.failed.wait())
        await asyncio.wait({stopping, failing}, return_when=asyncio.FIRST_COMPLETED)
        if failing.done():
            self.process.kill("because its spool failed")  # os._exit
            raise Killed
        if arriving is not None:
            arriving.cancel()
        await self._drain(DRAIN_SECONDS)
        for engine in list(self.running.values()):
            engine.cut()
        await self._drain(DRAIN_SECONDS)
        await spool.close()
        for task in (leasing, limiting):
            if task is not None:
                task.cancel()
        shipping.cancel()
        with suppress(asyncio.CancelledError):
            await shipping
        self.is_complete = await self.shipper.finish(5.0)
        if self.limiter is not None:
            await asyncio.sleep(0.1)  # what it told the store arrives
            self.limiter.check_ended()
        self.world.note(f"{self.process.name} ends, {'complete' if self.is_complete else 'incomplete'}")
        self.has_ended = True
        if spool.failed.is_set():
            self.process.kill("after a failed close")

    async def _drain(self, seconds: float) -> None:
        end = self.world.now + seconds
        while self.running and self.world.now < end:
            await asyncio.sleep(0.01)

    # ---- What must be so while it runs ---------------------------------------------------------------------------------

    def alarm(self, event: str, fields: dict[str, object]) -> None:
        """Somebody would look at this."""
        self.world.note(f"{self.process.name} alarm {event} {fields}")
        self.history.alarms.append((event, fields))

    def check_written(self, admit: bytes) -> None:
        """ADMIT is in the page cache before an engine hears of the request."""
        self._check(admit, "ADMIT is not written", lambda directory: directory.names, lambda file: file.data)

    def check_durable(self, final: Ended | None) -> None:
        """FINAL is on disk, under names that are on disk, before anybody is told of success."""
        if final is not None:
            self._check(encode(final), "FINAL is not durable", lambda directory: directory.durable, lambda file: file.durable)

    def _check(self, payload: bytes, text: str, names: Callable[[Directory], dict[str, Any]], content: Callable[[Any], bytearray]) -> None:
        node: Any = self.files.root
        for part in (*SPOOL.parts[1:], self.spool.epoch.directory.name):
            node = names(node).get(part)
            if node is None:
                self.world.fail(f"{text}: {part} is not there")
                return
        for name, file in names(node).items():
            if name.endswith(".seg") and payload in content(file):
                return
        self.world.fail(f"{text}: {payload[:90]!r}")


def shipper_options(chance: Any) -> ShipperOptions:
    """Housekeeping: eager or lazy."""
    return ShipperOptions(keep_days=chance.choice((7.0, 0.5 / 86_400, 0.0)), free_bytes_min=1 << 20)


def spool_options(chance: Any) -> SpoolOptions:
    """Small sizes, so that every edge is met often."""
    slots = chance.choice((2, 4, 8, 16))
    return SpoolOptions(
        segment_bytes=chance.choice((16_384, 16_384, 24_576, 65_536)),
        slots_max=slots,
        gather_seconds=chance.choice((0.0, 0.0, 0.001)),
        tick_seconds=chance.choice((0.05, 0.5, 10.0)),
    )
