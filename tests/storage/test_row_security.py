"""Row security of PostgreSQL: a transaction of one organization reaches no row of another one, whatever its SQL says."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import ProgrammingError

from scripts import postgres
from tests.control.metering.test_collect import exchanges, take
from tests.link.samples import ORGANIZATION, OTHER_ORGANIZATION, frames
from tests.storage.databases import PostgresTemplate, become_owner, fill
from tollway.serve.control import migrate_database, open_database
from tollway.storage import row_security, schema, schema_people
from tollway.storage.database import Database, DatabaseOutdated
from tollway.storage.record_archive import Archive
from tollway.storage.row_security import RoleRefused, access_to

PLATFORM_TABLES = {
    "models", "deployments", "plans", "plan_limits",  # the catalog
    "publish_head", "changes", "nodes", "join_tokens", "refused_epochs", "epochs", "job_leases",  # gateways and jobs
    "limit_reports", "gateway_statuses",  # what gateways say of themselves
    "token_signing_keys", "used_assertions", "sign_in_attempts", "device_logins", "operators",  # of control
    "operator_sessions", "operator_sign_in_links",  # of operators
    "idempotency_keys", "removed_months", "event_conflicts",  # of records and requests
    "event_counters", "event_searches", "sink_positions", "usage_batches",  # numbers of events, and what was looked for
    "lost_requests", "lost_decisions", "lost_declarations", "price_drafts",  # operators' decisions
    "bank_statements", "bank_entries", "bank_returns", "direct_debit_files", "credit_transfer_files",  # what banks said and are asked
    "legal_entities", "number_series",  # who sells, and the numbers of its documents
    "compatible_revisions",  # which versions may run over the schema
    "deployment_costs", "capacity_costs",  # what serving costs
    "engine_readings", "engine_hours", "engine_members", "engine_usage",  # what engines counted
}  # fmt: skip
"""Tables whose rows are no organization's."""

TENANT_TABLES = sorted({table.name for table in schema.metadata.sorted_tables} - PLATFORM_TABLES)


def has_organization(table: sa.Table) -> bool:
    return row_security.ORGANIZATION_COLUMN in table.c


@pytest.mark.parametrize("table", schema.metadata.sorted_tables, ids=str)
def test_every_table_is_an_organizations_with_a_policy_or_named_as_the_platforms(table: sa.Table) -> None:
    access = access_to(table.name, has_organization=has_organization(table))
    assert (access.condition is None) == (table.name in PLATFORM_TABLES), (
        f"say in storage/row_security.py whose the rows of {table.name} are, or name it in PLATFORM_TABLES here"
    )


def test_every_condition_is_of_a_table_that_is_there() -> None:
    names = {"alembic_version", *schema.metadata.tables}
    assert {*row_security.CONDITIONS, *row_security.SHARED, *row_security.SHARED_COLUMNS, *row_security.READ_ONLY} <= names


@pytest.fixture(scope="module")
def filled(postgres_template: PostgresTemplate, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """A database with two organizations, where the first has a project, a person and billed events."""
    directory = tmp_path_factory.mktemp("filled")
    with postgres_template.copied(directory) as url, closing(Database.open(url)) as database:
        fill(database)
        with database.platform() as tx:
            values = {"status": "active", "created_at": 1, "name": "p", "organization_id": ORGANIZATION}
            tx.connection.execute(schema.projects.insert().values(id="project_1", **values))
            person = {"email": "a@example.com", "name": "a", "added_at": 1, "organization_id": ORGANIZATION}
            tx.connection.execute(schema_people.users.insert().values(id="user_1", **person))
        take(database, Archive(directory / "archive"), frames(exchanges([1, 2, 3])))
        yield database


@pytest.mark.postgres
@pytest.mark.parametrize("name", TENANT_TABLES)
def test_100_a_tenant_sees_and_changes_no_row_of_another_organization(filled: Database, name: str) -> None:
    table = schema.metadata.tables[name]
    with filled.tenant(OTHER_ORGANIZATION) as tx:
        column = next((each for each in ("organization_id", "owner", "chain") if each in table.c), None)
        if name == "organizations":
            column = "id"
        if column is not None:
            found = tx.connection.execute(sa.text(f"SELECT DISTINCT {column} FROM {name}")).scalars().all()
            assert set(found) <= {OTHER_ORGANIZATION, None, "platform" if name == "ledger_accounts" else None}
            if name in row_security.READ_ONLY:
                return
            foreign = sa.update(table).where(table.c[column] == ORGANIZATION).values({column: table.c[column]})
            assert tx.connection.execute(foreign).rowcount == 0
            assert tx.connection.execute(sa.delete(table).where(table.c[column] == ORGANIZATION)).rowcount == 0
        else:
            assert tx.connection.execute(sa.text(f"SELECT count(*) FROM {name}")).scalar_one() == own_rows(filled, table)
        tx.connection.rollback()


def own_rows(database: Database, table: sa.Table) -> int:
    """Return how many rows of a table without a column of its own are the other organization's: it has used nothing, and has only what is
    general."""
    general = {"price_lists", "book_prices", "compiled_prices"}
    if table.name not in general:
        return 0
    with database.platform(write=False) as tx:
        return int(tx.connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())


@pytest.mark.postgres
def test_what_the_first_organization_has_is_there_for_itself(filled: Database) -> None:
    with filled.tenant(ORGANIZATION, write=False) as tx:
        for name in ("organizations", "projects", "users", "usage_events", "usage_rollups", "ledger_entries", "ledger_accounts"):
            assert tx.connection.execute(sa.text(f"SELECT count(*) FROM {name}")).scalar_one() > 0, name


@pytest.mark.postgres
def test_100_a_tenant_cannot_write_a_row_in_the_name_of_another_organization(filled: Database) -> None:
    values = {"id": "project_2", "status": "active", "created_at": 1, "name": "p", "organization_id": ORGANIZATION}
    with pytest.raises(ProgrammingError, match="row-level security"), filled.tenant(OTHER_ORGANIZATION) as tx:
        tx.connection.execute(schema.projects.insert().values(**values))


@pytest.mark.postgres
@pytest.mark.parametrize("statement", ["UPDATE price_books SET name = 'mine'", "DELETE FROM book_prices"])
def test_100_a_tenant_cannot_change_prices_that_all_have(filled: Database, statement: str) -> None:
    with pytest.raises(ProgrammingError, match="permission denied"), filled.tenant(ORGANIZATION) as tx:
        tx.connection.execute(sa.text(statement))


@pytest.mark.postgres
@pytest.mark.parametrize("name", sorted(PLATFORM_TABLES - {*row_security.SHARED}))
def test_100_a_tenant_cannot_read_tables_of_the_platform(filled: Database, name: str) -> None:
    with pytest.raises(ProgrammingError, match="permission denied"), filled.tenant(ORGANIZATION) as tx:
        tx.connection.execute(sa.text(f"SELECT * FROM {name}"))


@pytest.mark.postgres
@pytest.mark.parametrize("statement", ["SELECT body FROM changes", "SELECT drop_event_month('2020_01', 1)", "TRUNCATE projects"])
def test_100_a_tenant_cannot_execute(filled: Database, statement: str) -> None:
    with pytest.raises(ProgrammingError, match="permission denied"), filled.tenant(ORGANIZATION) as tx:
        tx.connection.execute(sa.text(statement))


@pytest.mark.postgres
def test_the_organization_of_a_transaction_ends_with_it(filled: Database) -> None:
    state = sa.text("SELECT current_user, current_setting('tollway.organization', true)")
    for _ in range(30):  # more than there are connections
        with filled.tenant(ORGANIZATION, write=False) as tx:
            assert tuple(tx.connection.execute(state).one()) == (row_security.TENANT_ROLE, ORGANIZATION)
        with filled.platform(write=False) as tx:
            role, organization = tx.connection.execute(state).one()
            assert role == row_security.PLATFORM_ROLE and not organization
    with filled.platform() as tx:
        tx.connection.execute(sa.text(f"SET LOCAL ROLE {row_security.TENANT_ROLE}"))
        assert tx.connection.execute(sa.text("SELECT count(*) FROM projects")).scalar_one() == 0


@pytest.mark.postgres
def test_what_must_be_unique_among_all_organizations_is_looked_for_among_all(filled: Database) -> None:
    count = sa.text("SELECT count(*) FROM organizations")
    with filled.tenant(ORGANIZATION, write=False) as tx:
        with tx.as_platform() as platform:
            assert platform.connection.execute(count).scalar_one() == 2
        assert tx.connection.execute(count).scalar_one() == 1


@pytest.mark.postgres
@pytest.mark.parametrize(
    "spoil",
    [
        "ALTER TABLE projects NO FORCE ROW LEVEL SECURITY",
        "ALTER TABLE projects DISABLE ROW LEVEL SECURITY",
        "CREATE POLICY more ON projects USING (true)",
        "GRANT SELECT ON nodes TO tollway_tenant",
        "CREATE TABLE forgotten (organization_id text)",
        "ALTER POLICY rows_of_owner ON projects TO tollway_platform",
        "GRANT EXECUTE ON FUNCTION drop_event_month(text, bigint) TO PUBLIC",
    ],
)
def test_a_table_without_its_policy_is_found_and_mended_by_a_migration(
    postgres_template: PostgresTemplate, tmp_path: Path, spoil: str
) -> None:
    with postgres_template.copied(tmp_path) as url, closing(Database.open(url)) as database:
        database.check_schema()
        with database.platform() as tx:
            become_owner(tx)
            tx.connection.execute(sa.text(spoil))
        with pytest.raises(DatabaseOutdated, match="row security"):
            database.check_schema()
        database.migrate()
        database.check_schema()


@pytest.mark.postgres
def test_100_control_does_not_run_as_a_role_that_row_security_does_not_hold(postgres_template: PostgresTemplate, tmp_path: Path) -> None:
    with postgres_template.copied(tmp_path) as url:
        with pytest.raises(RoleRefused, match="superuser"):
            open_database(url)
        environment = postgres.application_environment(url)
        with closing(open_database(environment["TOLLWAY_DATABASE_URL"], environment["TOLLWAY_OWNER_DATABASE_URL"])) as database:
            database.check_role()
        owner = sa.make_url(url).set(username="tollway_owner_of_test")
        with closing(Database.open(url)) as database, database.as_connected(write=True) as connection:
            for statement in (
                "DO $$ BEGIN CREATE ROLE tollway_owner_of_test LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$",
                f"ALTER DATABASE {owner.database} OWNER TO tollway_owner_of_test",
                "ALTER TABLE projects OWNER TO tollway_owner_of_test",
            ):
                connection.execute(sa.text(statement))
        with pytest.raises(RoleRefused, match="owns the tables"):
            open_database(owner.render_as_string())
        outsider = sa.make_url(url).set(username="tollway_outsider_of_test")
        with closing(Database.open(url)) as database, database.as_connected(write=True) as connection:
            made = "CREATE ROLE tollway_outsider_of_test LOGIN"
            connection.execute(sa.text(f"DO $$ BEGIN {made}; EXCEPTION WHEN duplicate_object THEN NULL; END $$"))
        with pytest.raises(RoleRefused, match="not a member"):
            open_database(outsider.render_as_string())


@pytest.mark.postgres
def test_an_owner_that_is_no_superuser_migrates_and_keeps_every_row_in_sight(postgres_template: PostgresTemplate, tmp_path: Path) -> None:
    with postgres_template.empty(tmp_path) as url:
        environment = postgres.application_environment(url)
        owner = sa.make_url(url).set(username="tollway_plain_owner")
        with closing(Database.open(url)) as database, database.as_connected(write=True) as connection:
            for statement in (
                "DO $$ BEGIN CREATE ROLE tollway_plain_owner LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$",
                f"ALTER DATABASE {owner.database} OWNER TO tollway_plain_owner",
            ):
                connection.execute(sa.text(statement))
        migrate_database(environment["TOLLWAY_DATABASE_URL"], owner.render_as_string())
        with closing(open_database(environment["TOLLWAY_DATABASE_URL"])) as database:
            fill(database)
            take(database, Archive(tmp_path / "archive"), frames(exchanges([1, 2])))
        with closing(Database.open(owner.render_as_string())) as database, database.as_connected() as connection:
            assert connection.execute(sa.text("SELECT count(*) FROM organizations")).scalar_one() == 2
            assert connection.execute(sa.text("SELECT count(*) FROM usage_events")).scalar_one() == 2
