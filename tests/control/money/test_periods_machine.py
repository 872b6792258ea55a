"""Months of two gateways, lost disks, late events, corrections and closings in any order: the books are always right, and what is
closed never changes."""

import shutil
import tempfile
from pathlib import Path

from hypothesis import event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.control.metering.test_collect import take
from tests.control.money.test_periods import ACTOR, NODE, NOVEMBER, OCTOBER, OTHER_NODE, SEPTEMBER, declare_lost, ended
from tests.link.samples import EPOCH, ORGANIZATION, request_id
from tests.storage.databases import SqliteTemplate, fill
from tollway.control.money import corrections, periods
from tollway.control.money.corrections import WantedAdjustment
from tollway.control.money.periods import Blocked
from tollway.control.verification.verify import verify
from tollway.domain.billing_classes import Quantities
from tollway.domain.corrections import AdjustmentKind, AdjustmentState, ApprovalDecision
from tollway.domain.faults import Fault
from tollway.domain.keys import KeyOrigin, Operator
from tollway.domain.pages import PageWindow
from tollway.domain.periods import Period, PeriodState, period_id
from tollway.domain.usage import Close, Record, Tick, encode
from tollway.storage import corrections as stored_corrections
from tollway.storage.database import Database
from tollway.storage.record_archive import Archive
from tollway.wire.segments import extend, first_chain

MONTHS = (SEPTEMBER, OCTOBER, NOVEMBER)
NOW = NOVEMBER.end_at
DAY_US = 86_400_000_000
nodes = st.sampled_from([NODE, OTHER_NODE])
months = st.sampled_from(MONTHS)


class Books(RuleBasedStateMachine):
    """State of the model: each gateway's chain and whether it may still write, the events, and the periods as they were closed."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="tollway-books-"))
        with SqliteTemplate(self.directory).copied(self.directory) as url:
            self.database = Database.open(url)
        fill(self.database)
        self.archive = Archive(self.directory / "archive")
        self.tails = {NODE: (1, first_chain(NODE, EPOCH)), OTHER_NODE: (1, first_chain(OTHER_NODE, EPOCH))}
        self.over: set[str] = set()
        self.held: dict[str, list[bytes]] = {NODE: [], OTHER_NODE: []}
        self.events = 0
        self.asked = 0
        self.closed: dict[str, Period] = {}

    def teardown(self) -> None:
        event(f"{len(self.closed)} periods closed")
        self.database.close()
        shutil.rmtree(self.directory)

    def write(self, node: str, records: list[Record]) -> None:
        seq, chain = self.tails[node]
        for record in records:
            chain, data = extend(chain, seq, encode(record))
            self.held[node].append(data)
            seq += 1
        self.tails[node] = (seq, chain)

    @initialize()
    def begin(self) -> None:
        for node in self.tails:
            self.serve(node, SEPTEMBER, 1)

    @rule(node=nodes, month=months, count=st.integers(1, 3))
    def serve(self, node: str, month: object, count: int) -> None:
        """Some requests end; in whatever month, as clocks may be wrong."""
        if node in self.over:
            return
        for _ in range(count):
            self.events += 1
            self.write(node, ended(self.events, month.start_at + self.events))  # type: ignore[attr-defined]

    @rule(node=nodes, month=months)
    def tick(self, node: str, month: object) -> None:
        if node not in self.over:
            self.write(node, [Tick(at=month.end_at)])  # type: ignore[attr-defined]

    @rule(node=nodes)
    def end(self, node: str) -> None:
        if node not in self.over:
            self.write(node, [Close(at=NOW)])
            self.over.add(node)

    @rule(node=nodes, count=st.integers(1, 50))
    def ship(self, node: str, count: int) -> None:
        """Some of what was written arrives."""
        held = self.held[node]
        first_seq = self.tails[node][0] - len(held)
        if held:
            now = NOW if self.closed else NOW - DAY_US
            take(self.database, self.archive, held[:count], first_seq=first_seq, node_id=node, now=now)
            del held[:count]

    @rule(node=nodes)
    def lose(self, node: str) -> None:
        try:
            with self.database.platform() as tx:
                declare_lost(tx, node_id=node)
        except Fault:
            pass  # nothing of it is missing, or nothing was ever heard of it

    @rule(month=months)
    def close(self, month: object) -> None:
        try:
            period = periods.close(self.database, period_id(ORGANIZATION, month.start_at), actor=ACTOR, now=NOW)  # type: ignore[attr-defined]
        except (Fault, Blocked):
            return
        assert self.closed.setdefault(period.id, period) == period

    @precondition(lambda self: self.events)
    @rule(data=st.data(), kind=st.sampled_from(AdjustmentKind), limit_pico=st.sampled_from([0, 10**15]))
    def correct(self, data: st.DataObject, kind: AdjustmentKind, limit_pico: int) -> None:
        wanted = WantedAdjustment(
            event_id=request_id(data.draw(st.integers(1, self.events))),
            kind=kind,
            reason="r",
            replacement=Quantities(data.draw(st.integers(0, 200)), 0, 5, 0, 1) if kind is AdjustmentKind.REPLACE else None,
            credit_pico=data.draw(st.integers(1, 10**8)) if kind is AdjustmentKind.CREDIT else None,
        )
        try:
            with self.database.platform() as tx:
                self.asked += 1
                random_bits = data.draw(st.integers(0, 2**64 - 1)) << 10 | self.asked
                corrections.ask(tx, wanted, random_bits=random_bits, actor=Operator(ACTOR, KeyOrigin.FIRST), limit_pico=limit_pico, now=NOW)
        except Fault:
            pass  # not ingested yet, or corrected before

    @rule(decision=st.sampled_from(ApprovalDecision))
    def decide(self, decision: ApprovalDecision) -> None:
        with self.database.platform() as tx:
            page = stored_corrections.list_adjustments(tx, PageWindow(limit=1), organization_id=None, state=AdjustmentState.PENDING)
            for waiting in page.items:
                corrections.decide(tx, waiting.id, decision, approver=Operator("key_other", KeyOrigin.SECOND), now=NOW)

    @invariant()
    def everything_agrees(self) -> None:
        assert verify(self.database, self.archive).differences == []
        for closed in self.closed.values():
            with self.database.platform(write=False) as tx:
                assert periods.get_period(tx, closed.id) == closed
        with self.database.platform(write=False) as tx:
            page = periods.list_periods(tx, PageWindow(limit=100), organization_id=ORGANIZATION, state=None)
        assert [period.state for period in page.items] == sorted((period.state for period in page.items), key=PeriodState.CLOSED.__ne__)


Books.TestCase.settings = settings(max_examples=12, stateful_step_count=20)
TestBooks = Books.TestCase
