"""Keys with two secrets at a gateway: both are one principal, the old one ends by itself, and the use of each is noted."""

from tollway.domain.keys import USES_MAX, KeyType, SecretUse, shorten_digest
from tollway.domain.snapshot import Change, Entry, KeyEntry, OrganizationEntry, ProjectEntry
from tollway.gateway.directory import USE_US, USES_NOTED_MAX, Directory

OLD, NEW, NEWER = (bytes([number]) * 32 for number in (1, 2, 3))


def directory(*keys: KeyEntry) -> Directory:
    made = Directory()
    made.begin_reset()
    entries: tuple[Entry, ...] = (OrganizationEntry(id="org_1", currency="EUR"), ProjectEntry(id="proj_1", organization_id="org_1"), *keys)
    for each in entries:
        made.add(each)
    made.finish_reset(1)
    return made


def key(digest: bytes, previous: bytes = b"", until: int | None = None, id: str = "key_1") -> KeyEntry:
    return KeyEntry(id=id, digest=digest, type=KeyType.LIVE, project_id="proj_1", previous_digest=previous, previous_expires_at=until)


def find_key(known: Directory, digest: bytes, at: int = 50) -> str | None:
    caller = known.find_caller(digest, at)
    return None if caller is None else caller.principal.id


def test_both_secrets_are_the_same_principal_until_the_old_one_expires() -> None:
    known = directory(key(NEW, OLD, 100))
    assert find_key(known, NEW, 99) == find_key(known, OLD, 99) == "key_1"
    assert find_key(known, OLD, 100) is None
    assert find_key(known, NEW, 100) == "key_1"


def test_rotation_that_arrives_as_a_change_adds_a_secret_and_its_end_takes_the_old_one_away() -> None:
    known = directory(key(OLD))
    assert find_key(known, OLD) == "key_1" and find_key(known, NEW) is None
    known.apply(Change(version=2, kind="key", id="key_1", entry=key(NEW, OLD, 100)))
    assert find_key(known, OLD) == find_key(known, NEW) == "key_1"
    known.apply(Change(version=3, kind="key", id="key_1", entry=key(NEW)))
    assert find_key(known, OLD) is None and find_key(known, NEW) == "key_1"
    known.apply(Change(version=4, kind="key", id="key_1", entry=key(NEWER, NEW, 100)))
    assert [find_key(known, digest) for digest in (OLD, NEW, NEWER)] == [None, "key_1", "key_1"]


def test_revocation_takes_both_secrets_away() -> None:
    known = directory(key(NEW, OLD, 100))
    assert find_key(known, OLD) == find_key(known, NEW) == "key_1"
    known.apply(Change(version=2, kind="key", id="key_1", entry=None))
    assert find_key(known, OLD) is None and find_key(known, NEW) is None


def test_use_of_each_secret_is_noted_once_in_a_while() -> None:
    known = directory(key(NEW, OLD, 10 * USE_US))
    for at in (0, 5, USE_US - 1):
        assert find_key(known, NEW, at) == "key_1"
    assert find_key(known, OLD, 7) == "key_1"
    assert known.take_uses() == [SecretUse("key_1", shorten_digest(NEW), 0), SecretUse("key_1", shorten_digest(OLD), 7)]
    assert known.take_uses() == []
    assert find_key(known, NEW, USE_US) == "key_1"
    assert known.take_uses() == [SecretUse("key_1", shorten_digest(NEW), USE_US)]


def test_unknown_and_expired_secrets_are_not_noted() -> None:
    known = directory(key(NEW, OLD, 100))
    assert find_key(known, NEWER) is None and find_key(known, OLD, 100) is None
    assert known.take_uses() == []


def test_uses_that_wait_are_bounded_and_those_beyond_are_noted_later() -> None:
    count = USES_NOTED_MAX + 5
    digests = [number.to_bytes(32, "big") for number in range(count)]
    known = directory(*(key(digest, id=f"key_{number}") for number, digest in enumerate(digests)))
    for digest in digests:
        known.find_caller(digest, 1)
    taken = []
    while part := known.take_uses():
        assert len(part) <= USES_MAX
        taken += part
    assert len(taken) == USES_NOTED_MAX
    for digest in digests:
        known.find_caller(digest, 2)
    assert [use.key_id for use in known.take_uses()] == [f"key_{number}" for number in range(USES_NOTED_MAX, count)]
