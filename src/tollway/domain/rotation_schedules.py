"""Schedules of the rotation of keys."""

import msgspec

GRACE_SECONDS_DEFAULT, GRACE_SECONDS_MAX = 86_400, 30 * 86_400
"""Time for which the secret before stays valid after a rotation."""

ROTATION_INTERVAL_SECONDS_MIN, ROTATION_INTERVAL_SECONDS_MAX = 3600, 400 * 86_400
"""Interval between the scheduled rotations of a key."""


class RotationSchedule(msgspec.Struct, frozen=True):
    """Rotation without being asked: `interval_seconds` after a key was made or rotated it gets another secret, and the one before stays
    valid for `grace_seconds`."""

    interval_seconds: int
    grace_seconds: int = GRACE_SECONDS_DEFAULT

    def find_problem(self) -> str | None:
        """Return what is wrong with the schedule; None if nothing is."""
        if not ROTATION_INTERVAL_SECONDS_MIN <= self.interval_seconds <= ROTATION_INTERVAL_SECONDS_MAX:
            return f"interval_seconds must be from {ROTATION_INTERVAL_SECONDS_MIN} to {ROTATION_INTERVAL_SECONDS_MAX}"
        if not 0 <= self.grace_seconds <= GRACE_SECONDS_MAX:
            return f"grace_seconds must be from 0 to {GRACE_SECONDS_MAX}"
        if self.grace_seconds >= self.interval_seconds:
            return "grace_seconds must be less than interval_seconds: a key has two secrets at most"
        return None


def choose_schedule(own: RotationSchedule | None, inherited: RotationSchedule | None) -> RotationSchedule | None:
    """Return the schedule of a key that has `own` in an organization that has `inherited`: the one with the shorter interval, so that a key
    only narrows what its organization demands."""
    stated = [each for each in (own, inherited) if each is not None]
    return min(stated, key=lambda each: each.interval_seconds, default=None)
