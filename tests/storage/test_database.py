"""Promises that both engines keep alike: transactions, tenancy in the schema, append-only tables, bounded waits."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy.exc import DBAPIError, IntegrityError

from tests.control.harness import WAIT_SECONDS_MAX, wait_until
from tests.storage.databases import PostgresTemplate, become_owner
from tollway.domain import ids
from tollway.domain.faults import DATABASE_UNAVAILABLE, Fault
from tollway.domain.snapshot import Change
from tollway.domain.tenants import Organization, Project, Status
from tollway.storage import database as storage_database
from tollway.storage import pages, publish, revisions, schema, tenants
from tollway.storage.database import Database, DatabaseOutdated, DatabaseTooNew


def new_id(prefix: str, number: int) -> str:
    return ids.new_id(prefix, 1_000_000 + number, number)


def add_organization(opened: Database, number: int) -> str:
    organization_id = new_id(ids.ORGANIZATION, number)
    with opened.tenant(organization_id) as tx:
        tenants.insert_organization(tx, Organization(id=organization_id, name="o", currency="EUR", status=Status.ACTIVE, created_at=number))
    return organization_id


def project(organization_id: str, number: int) -> Project:
    return Project(id=new_id(ids.PROJECT, number), organization_id=organization_id, name="p", status=Status.ACTIVE, created_at=number)


class TestTransactions:
    def test_commit_at_the_end_of_the_block(self, database: Database) -> None:
        organization_id = add_organization(database, 1)
        with database.tenant(organization_id, write=False) as tx:
            assert tenants.find_organization(tx) is not None

    def test_leave_nothing_behind_when_they_fail(self, database: Database) -> None:
        organization_id = add_organization(database, 1)
        with pytest.raises(ZeroDivisionError), database.tenant(organization_id) as tx:
            tenants.insert_project(tx, project(organization_id, 1))
            raise ZeroDivisionError
        with database.tenant(organization_id, write=False) as tx:
            assert tenants.find_project(tx, new_id(ids.PROJECT, 1)) is None

    def test_for_reading_cannot_write(self, database: Database) -> None:
        organization_id = add_organization(database, 1)
        with pytest.raises((Fault, DBAPIError)), database.tenant(organization_id, write=False) as tx:
            tenants.insert_project(tx, project(organization_id, 1))

    def test_for_reading_see_one_instant(self, database: Database) -> None:
        organization_id = add_organization(database, 1)
        window = pages.PageWindow()
        with database.tenant(organization_id, write=False) as reader:
            assert tenants.list_projects(reader, window, include_archived=True).items == []
            with database.tenant(organization_id) as writer:
                tenants.insert_project(writer, project(organization_id, 1))
            assert tenants.list_projects(reader, window, include_archived=True).items == []

    def test_of_one_organization_see_no_other(self, database: Database) -> None:
        mine, theirs = add_organization(database, 1), add_organization(database, 2)
        with database.tenant(theirs) as tx:
            tenants.insert_project(tx, project(theirs, 1))
        with database.tenant(mine) as tx:
            assert tenants.find_project(tx, new_id(ids.PROJECT, 1)) is None
            tenants.archive_project(tx, new_id(ids.PROJECT, 1), 5)
            tenants.put_project(tx, msgspec.structs.replace(project(theirs, 1), name="mine"))
        with database.tenant(theirs, write=False) as tx:
            assert tenants.find_project(tx, new_id(ids.PROJECT, 1)) == project(theirs, 1)

    def test_tell_listeners_of_what_they_published_once_it_is_committed(self, database: Database) -> None:
        told: list[int] = []
        database.on_publish(told.append)
        organization_id = add_organization(database, 1)
        assert told == []
        with database.tenant(organization_id) as tx:
            publish.lock_head(tx)
            publish.append_changes(tx, [Change(version=0, kind="key", id="k", entry=None)] * 3, 7)
            assert told == []
        assert told == [3]


class TestSchema:
    def test_is_what_the_code_says(self, database: Database) -> None:
        """`alembic check`: what the migrations built and what the tables say differ in nothing."""
        config = revisions.make_config()
        with database.platform() as tx:
            become_owner(tx)
            config.attributes["connection"] = tx.connection
            command.check(config)
        database.check_schema()

    def test_has_the_head_that_the_texts_of_the_migrations_say(self) -> None:
        assert storage_database.find_head() == next(iter(revisions.iterate_scripts())).revision

    def test_is_migrated_once_however_many_ask(self, database: Database) -> None:
        threads = [threading.Thread(target=database.migrate) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        database.check_schema()

    @pytest.mark.postgres
    def test_is_migrated_again_after_a_deadlock_with_a_process_that_works(
        self, postgres_template: PostgresTemplate, tmp_path: Path
    ) -> None:
        """The process reads prices and then adds to rollups; migrations lock rollups (0133) and then prices (0145)."""
        with postgres_template.empty(tmp_path) as url, closing(Database.open(url)) as database:
            with database.as_connected(write=True) as connection:
                config = revisions.make_config()
                config.attributes["connection"] = connection
                command.upgrade(config, "0120")
            waited: list[float] = []
            done = threading.Event()

            def wait_for_the_process(seconds: float) -> None:
                waited.append(seconds)
                assert done.wait(WAIT_SECONDS_MAX)

            engine = sa.create_engine(url, poolclass=sa.NullPool)
            with ThreadPoolExecutor(1) as threads, engine.connect() as process:
                process.execute(sa.text("SET deadlock_timeout = '60s'"))  # so that the migration is the one that gives up
                process.execute(sa.text("SELECT 1 FROM book_prices"))
                migrating = threads.submit(database.migrate, wait_for_the_process)
                with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as watching:
                    is_waiting = sa.text("SELECT count(*) FROM pg_locks WHERE relation = 'book_prices'::regclass AND NOT granted")
                    wait_until(lambda: bool(watching.scalar(is_waiting)) or migrating.done())
                process.execute(sa.text("LOCK TABLE usage_rollups IN ROW EXCLUSIVE MODE"))
                process.commit()
                done.set()
                migrating.result()
            assert waited == [storage_database.MIGRATION_PAUSES_SECONDS[0]]
            database.check_schema()

    def test_of_a_newer_version_that_leaves_this_one_running_is_used_and_left_alone(self, database: Database) -> None:
        with database.platform() as tx:
            become_owner(tx)
            tx.connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
            tx.connection.execute(sa.text("INSERT INTO compatible_revisions VALUES ('9999')"))
            tx.connection.execute(sa.text("CREATE TABLE of_9999 (organization_id text)"))  # its row security is no business of ours
        database.check_schema()
        database.migrate()
        with database.platform(write=False) as tx:
            assert tx.connection.scalar(sa.text("SELECT version_num FROM alembic_version")) == "9999"
            assert tx.connection.scalar(sa.text("SELECT count(*) FROM compatible_revisions WHERE revision = '9999'")) == 1

    @pytest.mark.postgres
    def test_of_a_newer_version_may_have_other_policies_but_not_none(self, postgres_template: PostgresTemplate, tmp_path: Path) -> None:
        with postgres_template.copied(tmp_path) as url, closing(Database.open(url)) as database:

            def change(*statements: str) -> None:
                with database.platform() as tx:
                    become_owner(tx)
                    for statement in statements:
                        tx.connection.execute(sa.text(statement))

            with database.platform(write=False) as tx:
                find = sa.text("SELECT policyname FROM pg_policies WHERE tablename = 'projects' AND policyname LIKE 'rows_of_tenant%'")
                name = tx.connection.execute(find).scalar_one()
            change(
                "UPDATE alembic_version SET version_num = '9999'",
                "INSERT INTO compatible_revisions VALUES ('9999')",
                f"ALTER POLICY {name} ON projects RENAME TO rows_of_tenant_of_9999",
            )
            database.check_schema()
            change("ALTER TABLE projects NO FORCE ROW LEVEL SECURITY")
            with pytest.raises(DatabaseOutdated, match="projects"):
                database.check_schema()

    def test_of_a_newer_version_that_breaks_this_one_is_refused(self, database: Database) -> None:
        with database.platform() as tx:
            tx.connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
            tx.connection.execute(sa.text("DELETE FROM compatible_revisions"))
        with pytest.raises(DatabaseTooNew, match="9999"):
            database.migrate()
        with pytest.raises(DatabaseTooNew):
            database.check_schema()

    def test_names_the_versions_back_to_the_one_that_broke_what_was_before(self, database: Database) -> None:
        scripts = ScriptDirectory.from_config(revisions.make_config())
        with database.platform(write=False) as tx:
            found = set(tx.connection.scalars(sa.text("SELECT revision FROM compatible_revisions")))
        assert scripts.get_current_head() in found
        oldest = next(script for script in reversed(list(scripts.walk_revisions())) if script.revision in found)
        assert getattr(oldest.module, "breaks_earlier", False)
        assert not found & {script.revision for script in scripts.walk_revisions(base="base", head=oldest.down_revision)}

    def test_that_was_never_migrated_is_noticed(self, tmp_path: Path) -> None:
        empty = Database.open(f"sqlite+pysqlite:///{tmp_path}/empty.db")
        with empty.platform() as tx:
            tx.connection.execute(sa.text("CREATE TABLE other (id INTEGER)"))
        with pytest.raises(DatabaseOutdated, match="migrate"):
            empty.check_schema()
        empty.close()

    def test_migration_that_rebuilds_budgets_keeps_what_they_counted(self, tmp_path: Path) -> None:
        opened = Database.open(f"sqlite+pysqlite:///{tmp_path}/old.db")
        rows = {
            "organizations": {"id": "org", "name": "o", "currency": "EUR", "status": "active", "time_zone": "UTC", "created_at": 1},
            "budgets": {"id": "bud", "organization_id": "org", "level": "organization", "subject_id": "org", "name": "b", "mode": "hard"}
            | {"window_type": "total", "amount_pico": "9", "currency": "EUR", "thresholds": "[]", "is_operators": 0, "created_at": 1}
            | {"counts_from": 1},
            "budget_raises": {"id": "raise", "organization_id": "org", "budget_id": "bud", "amount_pico": "1", "starts_at": 1, "ends_at": 2}
            | {"created_at": 1},
            "budget_windows": {"budget_id": "bud", "start_at": 1, "end_at": 2, "spent_pico": "8"},
            "budget_leases": {"budget_id": "bud", "start_at": 1, "node_id": "node", "epoch": 1, "granted_pico": "9", "drawn_pico": "8"}
            | {"sequence": 3, "renewed_at": 4},
            "budget_alerts": {"budget_id": "bud", "start_at": 1, "threshold": 80, "spent_pico": "8", "limit_pico": "9", "crossed_at": 5},
        }
        with opened.platform() as tx:
            config = revisions.make_config()
            config.attributes["connection"] = tx.connection
            command.upgrade(config, "0022")
            for table, row in rows.items():
                names = ", ".join(row)
                tx.connection.execute(sa.text(f"INSERT INTO {table} ({names}) VALUES ({', '.join(f':{name}' for name in row)})"), row)
        opened.migrate()
        with opened.platform() as tx:
            for table, row in rows.items():
                (found,) = tx.connection.execute(sa.text(f"SELECT * FROM {table}")).mappings()
                assert {name: found[name] for name in row} == row
            assert not tx.connection.execute(sa.text("PRAGMA foreign_key_check")).all()
            tx.connection.execute(sa.text("UPDATE budgets SET mode = 'alert'"))
        with pytest.raises(IntegrityError), opened.platform() as tx:
            tx.connection.execute(sa.text("UPDATE budgets SET mode = 'firm'"))
        opened.close()

    def test_lets_no_row_point_into_another_organization(self, database: Database) -> None:
        mine, theirs = add_organization(database, 1), add_organization(database, 2)
        with database.tenant(theirs) as tx:
            tenants.insert_project(tx, project(theirs, 1))
        row = {"id": new_id(ids.SERVICE_ACCOUNT, 1), "project_id": new_id(ids.PROJECT, 1), "name": "a", "role": "member", "created_at": 1}
        with pytest.raises(IntegrityError), database.tenant(mine) as tx:
            tx.connection.execute(schema.service_accounts.insert().values(organization_id=mine, **row))

    @pytest.mark.parametrize(
        ("column", "value"),
        [("type", "root"), ("organization_id", None), ("project_id", None), ("requests_per_minute", 0)],
    )
    def test_refuses_keys_that_could_not_be(self, database: Database, column: str, value: object) -> None:
        organization_id = add_organization(database, 1)
        with database.tenant(organization_id) as tx:
            tenants.insert_project(tx, project(organization_id, 1))
        row: dict[str, object] = {
            "id": new_id(ids.KEY, 1),
            "type": "live",
            "organization_id": organization_id,
            "project_id": new_id(ids.PROJECT, 1),
            "name": "k",
            "pepper_version": 1,
            "digest": b"d" * 32,
            "redacted": "r",
            "created_at": 1,
        }
        with pytest.raises(IntegrityError), database.platform() as tx:
            tx.connection.execute(schema.api_keys.insert().values(**row | {column: value}))


class TestPages:
    def test_hold_every_row_once_in_order(self, database: Database) -> None:
        organization_id = add_organization(database, 1)
        made = [project(organization_id, number) for number in range(23)]
        with database.tenant(organization_id) as tx:
            for one in made:
                tenants.insert_project(tx, one)
        for descending in (False, True):
            found: list[Project] = []
            window = pages.PageWindow(limit=5, descending=descending)
            while True:
                with database.tenant(organization_id, write=False) as tx:
                    page = tenants.list_projects(tx, window, include_archived=False)
                found += page.items
                if not page.has_more:
                    break
                window = pages.PageWindow(page.items[-1].id, 5, descending)
            assert found == (made[::-1] if descending else made)


class TestPublication:
    def test_gives_versions_in_the_order_of_commits(self, database: Database) -> None:
        """Many threads, each of whose transactions publishes two changes: the numbers are dense, and each pair is together."""

        def work(worker: int) -> None:
            for number in range(10):
                with database.platform() as tx:
                    publish.lock_head(tx)
                    before = publish.find_head(tx)
                    changes = [Change(version=0, kind="key", id=f"{worker}-{number}", entry=None)] * 2
                    heads.append((before, publish.append_changes(tx, changes, 1)))

        heads: list[tuple[int, int]] = []
        threads = [threading.Thread(target=work, args=(worker,)) for worker in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(heads) == [(number, number + 2) for number in range(0, 120, 2)]
        with database.platform(write=False) as tx:
            found = publish.find_changes(tx, 0, 1000)
        assert found is not None
        assert [version for version, _ in found] == list(range(1, 121))

    def test_needs_the_lock_first(self, database: Database) -> None:
        with pytest.raises(AssertionError, match="lock_head"), database.platform() as tx:
            publish.append_changes(tx, [], 1)

    def test_forgets_old_changes_but_never_silently(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(publish, "CHANGES_KEPT", 5)
        for number in range(12):
            with database.platform() as tx:
                publish.lock_head(tx)
                publish.append_changes(tx, [Change(version=0, kind="key", id=str(number), entry=None)], 1)
        with database.platform(write=False) as tx:
            kept = publish.find_changes(tx, 7, 100)
            assert kept is not None
            assert [version for version, _ in kept] == [8, 9, 10, 11, 12]
            assert publish.find_changes(tx, 12, 100) == []
            assert publish.find_changes(tx, 6, 100) is None
            assert publish.find_changes(tx, 13, 100) is None


class TestADatabaseThatIsAway:
    def test_is_a_fault_that_passes(self) -> None:
        away = Database.open("postgresql+psycopg://nobody@127.0.0.1:1/nowhere")
        with pytest.raises(Fault) as refused:
            away.ping()
        assert refused.value.kind is DATABASE_UNAVAILABLE
        away.close()

    def test_for_a_moment_costs_no_more_than_the_requests_of_that_moment(self, database: Database) -> None:
        if database.is_sqlite:
            pytest.skip("a file has no connections that could be cut")
        with pytest.raises(Fault) as refused, database.platform() as victim:
            pid = victim.connection.execute(sa.text("SELECT pg_backend_pid()")).scalar_one()
            with database.platform() as tx:
                become_owner(tx)
                tx.connection.execute(sa.text(f"SELECT pg_terminate_backend({pid}, 10000)"))
            publish.find_head(victim)
        assert refused.value.kind is DATABASE_UNAVAILABLE
        database.ping()

    @pytest.mark.postgres
    def test_as_one_that_only_reads_after_a_failover_is_the_same_fault(self, postgres_template: PostgresTemplate, tmp_path: Path) -> None:
        with postgres_template.copied(tmp_path) as url, closing(Database.open(url)) as database:
            with database.as_connected(write=True) as connection:
                name = connection.scalar(sa.text("SELECT current_database()"))
                connection.execute(sa.text(f"ALTER DATABASE {name} SET default_transaction_read_only = on"))
            database.close()
            with pytest.raises(Fault) as fault, database.platform() as tx:
                tx.connection.execute(sa.text("UPDATE publish_head SET version = version"))
            assert fault.value.kind is DATABASE_UNAVAILABLE

    def test_because_a_writer_holds_it_is_waited_for_only_so_long(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        if not database.is_sqlite:
            pytest.skip("one writer at a time is SQLite's way")
        monkeypatch.setattr(database._writers.pool, "_timeout", 0.05)
        with database.platform(), pytest.raises(Fault) as refused, database.platform():
            pass
        assert refused.value.kind is DATABASE_UNAVAILABLE

    @pytest.mark.parametrize("url", ["mysql://x/y", "sqlite://", "sqlite:///:memory:"])
    def test_or_of_another_kind_is_not_opened(self, url: str) -> None:
        with pytest.raises(ValueError, match="database"):
            Database.open(url)
