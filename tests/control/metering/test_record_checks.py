"""Records that say what does not belong together, or happened at an impossible instant, are quarantined with their reason."""

from collections.abc import Mapping
from typing import Any

import pytest
import sqlalchemy as sa

from tests.control.metering.test_collect import NOW, take
from tests.link.samples import EPOCH, KEY, NODE, ORGANIZATION, OTHER_ORGANIZATION, PROJECT, admit, final, frames
from tollway.control.metering import quarantine
from tollway.control.verification.verify import verify
from tollway.domain.epochs import CLOCK_ERROR_US_MAX
from tollway.storage import schema
from tollway.storage import schema_money as money
from tollway.storage.database import Database
from tollway.storage.record_archive import Archive

OTHER_PROJECT, OTHER_KEY, SECOND_PROJECT = "proj_" + "2" * 32, "key_" + "2" * 32, "proj_" + "3" * 32


@pytest.fixture
def owned(database: Database) -> Database:
    """A database with a project and a key of each organization, and a second project of the first."""
    projects = ((PROJECT, ORGANIZATION), (OTHER_PROJECT, OTHER_ORGANIZATION), (SECOND_PROJECT, ORGANIZATION))
    keys = ((KEY, PROJECT, ORGANIZATION), (OTHER_KEY, OTHER_PROJECT, OTHER_ORGANIZATION))
    with database.platform() as tx:
        for project_id, organization_id in projects:
            row: dict[str, Any] = {"id": project_id, "organization_id": organization_id, "name": "p", "status": "active", "created_at": 0}
            tx.connection.execute(schema.projects.insert().values(row))
        for key_id, project_id, organization_id in keys:
            row = {"id": key_id, "type": "live", "organization_id": organization_id, "project_id": project_id, "name": "k"}
            row |= {"pepper_version": 1, "digest": key_id.encode()[:32], "redacted": "tw", "created_at": 0}
            tx.connection.execute(schema.api_keys.insert().values(row))
    return database


def reasons(database: Database) -> list[str]:
    with database.platform(write=False) as tx:
        return list(tx.connection.execute(sa.select(money.quarantined_records.c.reason)).scalars())


def count_events(database: Database) -> int:
    with database.platform(write=False) as tx:
        return int(tx.connection.execute(sa.select(sa.func.count()).select_from(money.usage_events)).scalar_one())


@pytest.mark.parametrize(
    "changes",
    [
        {"key_id": OTHER_KEY},
        {"project_id": OTHER_PROJECT},
        {"key_id": OTHER_KEY, "project_id": OTHER_PROJECT},
        {"project_id": SECOND_PROJECT},
        {"key_id": "key_" + "9" * 32, "project_id": OTHER_PROJECT},
    ],
    ids=["key", "project", "both", "key of another project", "unknown key, foreign project"],
)
def test_81_record_that_mixes_two_tenants_is_quarantined_and_bills_nobody(
    owned: Database, archive: Archive, changes: Mapping[str, str]
) -> None:
    good, mixed = admit(1), admit(2, **changes)
    taken = take(owned, archive, frames([good, final(good), mixed, final(mixed)]))
    assert (taken.events, taken.quarantined, taken.reasons) == (1, 1, ("not_of_organization",))
    assert verify(owned, archive).differences == []
    with owned.platform(write=False) as tx:
        record = quarantine.get_record(tx, NODE, EPOCH, 4)
        assert quarantine.find_obstacle(tx, record) == "not_of_organization"


def test_record_of_a_key_that_is_unknown_after_a_restore_is_billed(owned: Database, archive: Archive) -> None:
    of = admit(1, key_id="key_" + "9" * 32, project_id="proj_" + "9" * 32)
    assert take(owned, archive, frames([of, final(of)])).events == 1
    assert verify(owned, archive).differences == []


def test_verify_finds_an_event_that_mixes_two_tenants(owned: Database, archive: Archive) -> None:
    """As if the key had been another's all the time: the event was booked before the check knew the key."""
    of = admit(1, key_id="key_" + "9" * 32)
    take(owned, archive, frames([of, final(of)]))
    with owned.platform() as tx:
        row: dict[str, Any] = {"id": "key_" + "9" * 32, "type": "live", "organization_id": OTHER_ORGANIZATION, "project_id": OTHER_PROJECT}
        row |= {"name": "k", "pepper_version": 1, "digest": b"9" * 32, "redacted": "tw", "created_at": 0}
        tx.connection.execute(schema.api_keys.insert().values(row))
    assert {difference.table for difference in verify(owned, archive).differences} >= {"usage_events", "quarantined_records"}


@pytest.mark.parametrize(
    ("admitted_at", "ended_at"),
    [
        (0, EPOCH + 5),
        (EPOCH, 0),
        (EPOCH - CLOCK_ERROR_US_MAX - 1, EPOCH + 5),
        (EPOCH + 5, NOW + CLOCK_ERROR_US_MAX + 1),
        (NOW + CLOCK_ERROR_US_MAX + 1, NOW + CLOCK_ERROR_US_MAX + 2),
    ],
    ids=["admitted in 1970", "ended in 1970", "before the run", "ends in the future", "from the future"],
)
def test_81_record_of_an_impossible_instant_is_quarantined(owned: Database, archive: Archive, admitted_at: int, ended_at: int) -> None:
    of = admit(1, admitted_at=admitted_at)
    taken = take(owned, archive, frames([of, final(of, ended_at=ended_at)]), now=NOW)
    assert (taken.events, taken.reasons) == (0, ("instant_impossible",))
    assert verify(owned, archive).differences == []


def test_record_at_the_bounds_of_its_run_is_billed(owned: Database, archive: Archive) -> None:
    early, late = admit(1, admitted_at=EPOCH - CLOCK_ERROR_US_MAX), admit(2)
    records = [early, final(early, ended_at=EPOCH), late, final(late, ended_at=NOW + CLOCK_ERROR_US_MAX)]
    assert take(owned, archive, frames(records)).events == 2
    assert reasons(owned) == [] and count_events(owned) == 2
