"""The soak of hostile clients in short: honest tenants are served beside them, and nothing of the attack stays."""

from pathlib import Path

import pytest

from reliability import hostile_soak

pytestmark = pytest.mark.system

SECONDS = 6.0
SETTLE_SECONDS = 5.0
ATTACKED_DESCRIPTORS = 100


def test_honest_tenants_beside_a_hostile_one_are_served_and_descriptors_return(tmp_path: Path) -> None:
    soak = hostile_soak.run(tmp_path, SECONDS, SETTLE_SECONDS)
    assert not soak.wrong
    assert soak.most.descriptors > soak.before.descriptors + ATTACKED_DESCRIPTORS, "the attack held no connections"
    assert soak.most.mib > soak.before.mib, "the attack took no memory"
    assert soak.beside.sent.heard
    assert sum(each.user_s + each.system_s for each in soak.hostile) > 0, "nothing was spent on the attack, so nothing is compared with it"
