"""Operations leave no objects behind in a control process, however many of them there are."""

import gc
from collections import Counter

from tests.control.harness import Running, TenantSetup, answered

OPERATIONS = 20
"""Number of each kind between two counts: an operation that keeps one object shows as so many."""

OURS = ("tollway.", "sqlalchemy.engine.")


def count_objects() -> Counter[str]:
    """Return the living objects of each class of ours and of SQLAlchemy's connections and results. Those in cycles are removed before."""
    gc.collect()
    classes = (type(each) for each in gc.get_objects())
    return Counter(f"{each.__module__}.{each.__qualname__}" for each in classes if str(each.__module__).startswith(OURS))


def test_keys_made_and_revoked_and_reads_leave_no_object_behind(control: Running, alice: TenantSetup) -> None:
    admin, path = control.client(alice.admin_key), f"/v1/organization/projects/{alice.project_id}/api_keys"

    def operate() -> None:
        for _ in range(OPERATIONS):
            made = answered(admin.post(path, json={"name": "short-lived"}))
            answered(admin.delete(f"{path}/{made['id']}"))
            answered(admin.get("/v1/organization/usage/completions?start_time=1790000000"))

    operate()
    before = count_objects()
    operate()
    grown = {name: count - before[name] for name, count in count_objects().items() if count - before[name] >= OPERATIONS // 2}
    assert not grown
