"""Test keys: they reach the deployments that are marked for them, live keys reach the others, and the record says which key it was."""

import msgspec

from tests.fakes import Upstream
from tests.gateway.harness import KEY, OTHER_KEY, PEPPER, PROJECT, Gateway, Served, chat, completion, gateway, post, whole
from tollway.domain import keys
from tollway.domain.keys import KeyType
from tollway.domain.snapshot import Change, DeploymentEntry, Entry, KeyEntry
from tollway.domain.usage import billed


def change(running: Gateway, *entries: Entry) -> None:
    for version, entry in enumerate(entries, running.plane.directory.version + 1):
        kind = str(type(entry).__struct_config__.tag)
        running.plane.apply(Change(version=version, kind=kind, id=entry.id, entry=entry))


def mark(running: Gateway, number: int, *, test: bool) -> DeploymentEntry:
    """The deployment in a tier, marked for tests or not."""
    (entry,) = (each for each in running.plane.directory.list_deployments() if each.id == f"dep-m-{number}")
    return msgspec.structs.replace(entry, deployment=msgspec.structs.replace(entry.deployment, test=test))


TEST_KEY = KeyEntry(id="key_test", digest=keys.digest(PEPPER, OTHER_KEY.encode()), type=KeyType.TEST, project_id=PROJECT)


async def test_45_a_test_key_reaches_only_deployments_for_tests_and_a_live_key_only_the_others() -> None:
    async with (
        Upstream([whole(completion("live"))]).listening() as live,
        Upstream([whole(completion("test"))]).listening() as test,
        gateway({"m": Served([live.url, test.url])}) as running,
    ):
        change(running, TEST_KEY)
        assert (await post(running.port, chat(), key=OTHER_KEY)).status == 503, "no deployment is marked"
        change(running, mark(running, 1, test=True))
        for key, content in ((KEY, "live"), (OTHER_KEY, "test"), (KEY, "live"), (OTHER_KEY, "test")):
            answer = await post(running.port, chat(), key=key)
            assert answer.status == 200 and content.encode() in answer.body
        change(running, mark(running, 0, test=True), mark(running, 1, test=False))
        assert b"test" in (await post(running.port, chat(), key=KEY)).body, "a mark that changes takes effect at once"
        await running.sink.settled(5)
        finals = running.sink.finals
    assert [final.admit.test for final in finals] == [False, True, False, True, False]
    assert all((billed(final).total == 0) is final.admit.test for final in finals)
