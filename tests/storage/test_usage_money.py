"""Money at rest: exact at any size, on both engines; and an archive that says when it lacks something."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.dialects import postgresql

from tests.link.samples import EPOCH, NODE, admit, final
from tests.storage.databases import PostgresTemplate
from tests.storage.stored_events import read_events
from tollway.domain import ids
from tollway.domain.billing_classes import Amounts, BillingClass, Quantities
from tollway.domain.rollups import RankedGroup, Ranking, RollupKey, UsageGroup, UsageQuery, UsageSums, WantedSums
from tollway.domain.usage import Anomaly, Outcome, UsageEvent, UsageSource
from tollway.storage import rollups, usage_events
from tollway.storage import schema_money as money
from tollway.storage.database import Database, PlatformTx
from tollway.storage.partitions import Month
from tollway.storage.record_archive import Archive, ArchiveShort
from tollway.storage.schema_money import AMOUNT_DIGITS, Amount

DAY_US = 86_400_000_000

KEY = RollupKey("org_1", 60, 0, "proj_1", "key_1", "echo", "embeddings")


class TestAmount:
    @pytest.mark.parametrize("pico", [0, 1, -1, 2**63 - 1, 2**63, -(2**63) - 1, 10**38 - 1, -(10**38) + 1])
    def test_comes_back_as_it_went_in(self, database: Database, pico: int) -> None:
        with database.platform() as tx:
            account = {"id": "a/b/EUR", "owner": "a", "kind": "b", "currency": "EUR"}
            tx.connection.execute(money.ledger_accounts.insert().values(account))
            row = {"account_id": "a/b/EUR", "posted_pico": pico, "version": 0, "changed_at": 0}
            tx.connection.execute(money.balances.insert().values(row))
        with database.platform(write=False) as tx:
            assert tx.connection.execute(sa.select(money.balances.c.posted_pico)).scalar_one() == pico

    def test_beyond_its_digits_it_refuses(self) -> None:
        with pytest.raises(OverflowError):
            Amount().process_bind_param(10**AMOUNT_DIGITS, sa.create_engine("sqlite://").dialect)

    @given(st.integers(-(10**38) + 1, 10**38 - 1))
    def test_no_float_is_on_the_way(self, pico: int) -> None:
        for url in ("sqlite://", "postgresql+psycopg://"):
            dialect = sa.create_engine(url).dialect
            bound = Amount().process_bind_param(pico, dialect)
            assert not isinstance(bound, float)
            assert Amount().process_result_value(bound, dialect) == pico


class TestRollups:
    def test_sums_carry_over_and_stay_exact_beyond_64_bits(self, database: Database) -> None:
        each = 9 * 10**18 + 7
        sums = UsageSums(1, Quantities(2, 3, 4, 5), Amounts(input=999_999_999_999, output=each))
        with database.platform() as tx:
            for _ in range(5):
                rollups.add_rollups(tx, rollups.rollup_rows({KEY: sums}))
        with database.platform(write=False) as tx:
            ((key, found),) = rollups.iterate_rollups(tx)
            pico = tx.connection.execute(sa.select(money.usage_rollups.c.output_cost_pico)).scalar_one()
        assert key == KEY
        assert found == UsageSums(5, Quantities(10, 15, 20, 25), Amounts(input=5 * 999_999_999_999, output=5 * each))
        assert pico < 10**12
        query = UsageQuery(width_seconds=60, start_at=0, end_at=60_000_000, group_by=("project_id",))
        with database.tenant("org_1", write=False) as tenant:
            (whole,) = rollups.list_usage(tenant, query)
            (quantities,) = rollups.list_usage(tenant, replace(query, wanted=WantedSums.QUANTITIES))
            (total,) = rollups.list_usage(tenant, replace(query, wanted=WantedSums.TOTAL))
        assert whole == UsageGroup(0, {"project_id": "proj_1"}, found, 5 * (999_999_999_999 + each))
        assert total == UsageGroup(0, {"project_id": "proj_1"}, UsageSums(), whole.total_pico)
        assert (quantities.sums.requests, quantities.sums.billed, quantities.sums.amounts.total) == (5, found.billed, 0)

    @pytest.mark.parametrize("wanted", WantedSums)
    def test_of_projects_and_organizations_are_the_sums_of_those_by_key(self, database: Database, wanted: WantedSums) -> None:
        sums = {
            RollupKey("org_1", width, day * DAY_US, project, f"key_{project}{key}", model, endpoint): UsageSums(
                1, Quantities(2), Amounts(9 * 10**18 + len(model), 999_999_999_999)
            )
            for width, day, project, key in product((60, 3_600, 86_400), (0, 1), "ab", range(3))
            for model, endpoint in product(("x", "yy"), ("chat/completions", "test/chat/completions"))
        }
        with database.platform() as tx:
            for _ in range(2):
                rollups.add_rollups(tx, rollups.rollup_rows(sums))
        conditions: list[dict[str, Any]] = [{}, {"project_ids": ("b",)}, {"models": ("yy",)}, {"project_ids": ("a", "b"), "models": ("x",)}]
        span = UsageQuery(86_400, 0, 2 * DAY_US, wanted=wanted)
        with database.tenant("org_1", write=False) as tenant:
            by_key = rollups.list_usage(tenant, replace(span, group_by=("project_id", "key_id", "model")))
            for group_by, changes, is_whole in product(((), ("model",), ("project_id",)), conditions, (False, True)):
                asked = replace(span, group_by=group_by, is_whole=is_whole, **changes)
                assert rollups.list_usage(tenant, asked) == add_up(by_key, asked), asked
            assert rollups.list_usage(tenant, replace(span, start_at=5 * DAY_US, end_at=6 * DAY_US, is_whole=True)) == []

    @pytest.mark.parametrize("group_by", [("project_id",), ("project_id", "key_id")])
    def test_groups_that_have_most_are_the_first_of_all_groups_in_that_order(self, database: Database, group_by: tuple[str, ...]) -> None:
        picos = [5, 10**12 - 1, 10**12, 10**12 + 999_999, 10**12 + 10**6, 3 * 10**18, 3 * 10**18 + 1, 5, 0]
        sums = {
            KEY._replace(width_seconds=86_400, start_at=day * DAY_US, project_id=f"proj_{number}"): UsageSums(
                1, Quantities(2, number * 10 + day), Amounts(pico + day)
            )
            for number, pico in enumerate(picos)
            for day in (0, 1)
            if number != day + 3  # one is in the first span alone, one in the second
        }
        with database.platform() as tx:
            for _ in range(3):
                rollups.add_rollups(tx, rollups.rollup_rows(sums))
        asked = UsageQuery(86_400, DAY_US, 2 * DAY_US, group_by=group_by, is_whole=True)
        with database.tenant("org_1", write=False) as tenant:
            second, first = (rollups.list_usage(tenant, replace(asked, start_at=day * DAY_US, end_at=(day + 1) * DAY_US)) for day in (1, 0))
            for quantities in ((), ("requests",), ("input", "cached_input")):
                values, before = read_values(second, quantities), read_values(first, quantities)
                alone = [RankedGroup(group, values[group], 0) for group in sort_groups(values)]
                both = [
                    RankedGroup(group, values.get(group, 0), before.get(group, 0))
                    for group in sort_groups({**dict.fromkeys(before, 0), **values})
                ]
                assert (len(alone), len(both)) == (8, 9)
                for count in (1, 4, 8, 20, None):
                    assert rollups.rank_groups(tenant, asked, quantities, count=count) == Ranking(alone[:count], 8)
                    compared = rollups.rank_groups(tenant, asked, quantities, count=count, before_at=0)
                    assert compared == Ranking(both[:count], 9)
            whole = rollups.rank_groups(tenant, replace(asked, group_by=()), ("requests",), before_at=0)
            assert whole == Ranking([RankedGroup((), 24, 24)], 1)
            for query in (replace(asked, group_by=()), asked):
                nothing = replace(query, start_at=5 * DAY_US, end_at=6 * DAY_US)
                assert rollups.rank_groups(tenant, nothing, ()) == Ranking([], 0)

    @pytest.mark.postgres
    def test_of_a_version_that_does_not_know_those_of_projects_are_refused(
        self, postgres_template: PostgresTemplate, tmp_path: Path
    ) -> None:
        table, sums = money.usage_rollups, UsageSums(1, Quantities(2), Amounts(3))
        with postgres_template.copied(tmp_path) as url, closing(Database.open(url)) as database:
            with database.platform() as tx:
                rollups.add_rollups(tx, rollups.rollup_rows({KEY: sums}))
                row = dict(tx.connection.execute(sa.select(table)).mappings().one())
            del row["pixels"]
            again = postgresql.insert(table).values(row).on_conflict_do_update(index_elements=KEY._fields, set_={"requests": 2})
            with pytest.raises(sa.exc.IntegrityError, match="pixels"), database.platform() as tx:
                tx.connection.execute(again)

    def test_of_projects_and_organizations_are_filled_in_by_the_migration(self, database: Database) -> None:
        sums = UsageSums(1, Quantities(2), Amounts(9 * 10**18, 999_999_999_999, request=7))
        keys = [KEY._replace(width_seconds=width, key_id=key) for width in (60, 3_600, 86_400) for key in ("key_1", "key_2")]
        with database.platform() as tx:
            rollups.add_rollups(tx, rollups.rollup_rows(dict.fromkeys(keys, sums)))
            kept = list(rollups.iterate_project_rollups(tx)), list(rollups.iterate_organization_rollups(tx))
            tx.connection.execute(money.project_rollups.delete())
            tx.connection.execute(money.organization_rollups.delete())
            migration = import_module("tollway.storage.migrations.versions.0133_coarse_rollups")
            with Operations.context(MigrationContext.configure(tx.connection)):
                migration.fill("project_rollups", "usage_rollups")
                migration.fill("organization_rollups", "project_rollups")
            assert (list(rollups.iterate_project_rollups(tx)), list(rollups.iterate_organization_rollups(tx))) == kept
        assert [len(each) for each in kept] == [2, 2] and kept[0][0][1].total_pico == 2 * sums.amounts.total


def read_values(groups: Iterable[UsageGroup], quantities: Sequence[str]) -> dict[tuple[str, ...], int]:
    """Return of each group what a ranking orders it by: the sum of some quantities, of none the total of its amounts."""
    return {
        tuple(each.group.values()): sum(
            each.sums.requests if name == "requests" else each.sums.billed.get(BillingClass(name)) for name in quantities
        )
        if quantities
        else each.total_pico
        for each in groups
    }


def sort_groups(values: Mapping[tuple[str, ...], int]) -> list[tuple[str, ...]]:
    """Return groups in the order of a ranking."""
    return sorted(values, key=lambda group: (-values[group], group))


def add_up(groups: Iterable[UsageGroup], asked: UsageQuery) -> list[UsageGroup]:
    """Return what a query must answer, from groups by project, key and model."""
    found: dict[tuple[int, tuple[str, ...]], UsageGroup] = {}
    for each in groups:
        if each.group["project_id"] in (asked.project_ids or "ab") and each.group["model"] in (asked.models or each.group["model"]):
            start, group = 0 if asked.is_whole else each.start_at, {name: each.group[name] for name in asked.group_by}
            place = (start, tuple(group.values()))
            before = found.get(place) or UsageGroup(start, group, UsageSums(), 0)
            before.sums.add(each.sums)
            found[place] = replace(before, total_pico=before.total_pico + each.total_pico)
    return [found[place] for place in sorted(found)]


class TestArchive:
    def test_bytes_beyond_what_counts_are_overwritten_by_a_retry(self, tmp_path: Path) -> None:
        archive = Archive(tmp_path)
        archive.write("node_1", 7, 0, b"first")
        archive.write("node_1", 7, 5, b"never committed")
        archive.write("node_1", 7, 5, b"second")
        assert b"".join(archive.read("node_1", 7, 11)) == b"firstsecond"

    def test_missing_bytes_are_an_error_on_both_ways(self, tmp_path: Path) -> None:
        archive = Archive(tmp_path)
        with pytest.raises(ArchiveShort):
            archive.write("node_1", 7, 5, b"x")
        archive.write("node_1", 7, 0, b"abc")
        with pytest.raises(ArchiveShort):
            list(archive.read("node_1", 7, 4))
        with pytest.raises(ArchiveShort):
            list(archive.read("node_2", 7, 1))

    @pytest.mark.parametrize("node_id", ["..", "../x", "a/b", "", "node_\0"])
    def test_a_name_never_leads_out_of_it(self, tmp_path: Path, node_id: str) -> None:
        with pytest.raises(ValueError, match="node id"):
            Archive(tmp_path / "archive").write(node_id, 1, 0, b"x")


def insert(tx: PlatformTx, *events: UsageEvent) -> None:
    """Store events as the collector hands them in."""
    ids = [event.final.admit.request_id for event in events]
    is_text = all(event.final.used.other is None for event in events)
    usage_events.insert_events(tx, map(row_of, events), min(ids), max(ids), lambda: None, is_text=is_text)


def row_of(event: UsageEvent) -> usage_events.EventRow:
    final = event.final
    return usage_events.EventRow(
        final.admit.request_id,
        event.seq,
        final.admit.admitted_at,
        final.first_token_at,
        final.ended_at,
        final.used,
        event.amounts,
        event.period_at,
        event.content_hash,
        usage_events.EventColumns.of(event.node_id, event.epoch, final),
    )


class TestEvents:
    NAMES = (r"\N", r"\.", '"', ",", r"a\tb", "~" * 64, "NULL", "'")
    """Visible ASCII that means something to one bulk format or another."""

    @pytest.mark.parametrize("name", NAMES)
    def test_come_back_as_they_went_in(self, database: Database, name: str) -> None:
        of = admit(1, organization_id=name, project_id=name, key_id=name, model=name, endpoint=name, price_version=name, stream=False)
        changes = [{}, {"deployment_id": None, "error": name, "first_token_at": None}, {"used": Quantities(2**31 - 1, 0, 2**31 - 1, 3)}]
        events = [
            UsageEvent(
                node_id=NODE,
                epoch=EPOCH,
                seq=number,
                final=final(msgspec.structs.replace(of, request_id=f"{name[:60]}{number}"), **change),
                content_hash=bytes([number]) * 32,
                amounts=Amounts(number, 0, 2**63 - 1, 4, 5),
                period_at=-number,
            )
            for number, change in enumerate(changes)
        ]
        with database.platform() as tx:
            insert(tx, *events)
        with database.platform(write=False) as tx:
            assert sorted(read_events(tx), key=lambda event: event.seq) == events
            ids = [event.final.admit.request_id for event in events]
            assert usage_events.find_hashes(tx, [*ids, "another"]) == dict(zip(ids, (event.content_hash for event in events), strict=True))

    def test_of_every_outcome_source_and_anomaly_are_kept(self, database: Database) -> None:
        """The database lists the values that it accepts; a new one needs a migration."""
        changes: list[dict[str, Any]] = [{"outcome": each} for each in Outcome]
        changes += [{"source": each} for each in UsageSource] + [{"anomaly": each} for each in Anomaly]
        events = [
            UsageEvent(
                node_id=NODE, epoch=EPOCH, seq=number, final=final(admit(number), **change), content_hash=bytes(32), amounts=Amounts(),
                period_at=0,
            )
            for number, change in enumerate(changes, 1)
        ]  # fmt: skip
        with database.platform() as tx:
            insert(tx, *events)
        with database.platform(write=False) as tx:
            assert sorted(read_events(tx), key=lambda event: event.seq) == events

    def test_of_an_id_that_is_taken_are_refused_together_and_the_transaction_goes_on(self, database: Database) -> None:
        first, second, third = (
            UsageEvent(
                node_id=NODE, epoch=EPOCH, seq=number, final=final(admit(number)), content_hash=bytes(32), amounts=Amounts(), period_at=0
            )
            for number in (1, 2, 3)
        )
        with database.platform() as tx:
            insert(tx, first)
            with pytest.raises(usage_events.EventRace):
                insert(tx, second, first)
            insert(tx, third)
        with database.platform(write=False) as tx:
            assert read_events(tx) == [first, third]


class TestMonths:
    @given(st.integers(31 * 86_400_000_000, 253_000_000_000_000_000), st.integers(0, 2**74 - 1))
    def test_hold_exactly_the_ids_that_were_made_in_them(self, at: int, bits: int) -> None:
        month, event_id = Month.of(at), ids.new_id(ids.REQUEST, at, bits)
        assert month.start_at <= at < (month + 1).start_at
        assert month.holds(event_id)
        assert not (month + 1).holds(event_id)
        assert not (month + -1).holds(event_id)
