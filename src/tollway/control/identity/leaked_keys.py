"""Leaked keys: secrets that were found where others can read them, and what their organization wants to be done with them.

A report holds secrets as they were found. They go no further than their digests: an organization sees the part that may be shown. Whoever
reports a secret learns only whether it is one, or is known as one that was, and of those that are not theirs nothing else.

What is reported of a key of the platform or of a gateway is an alarm: ending those is for people, because everything depends on them.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tollway.control import publish
from tollway.control.identity.mail import Mail, MailFailure, Message, MessageRefused
from tollway.domain import ids
from tollway.domain import keys as domain_keys
from tollway.domain.audit import Target
from tollway.domain.keys import KeyType
from tollway.domain.leaked_keys import URL_CHARACTERS_MAX, LeakAction, LeakedKey, LeakPolicy, LeakSource
from tollway.domain.pages import Page, PageWindow
from tollway.domain.roles import OWNER
from tollway.domain.snapshot import KeyEntry
from tollway.storage import keys as stored_keys
from tollway.storage import leaked_keys as storage
from tollway.storage import tenants as stored_tenants
from tollway.storage.database import Database as Database  # of `report_any`, for the API
from tollway.storage.database import TenantTx
from tollway.storage.leaked_keys import DueMail, FoundSecret, Recipient

RECIPIENTS_MAX = 10
"""Owners of an organization who are notified of a report."""

REPORTS_NOTIFIED_MAX = 30
"""Reported secrets of one report whose owners are notified at once; the others have their turn later."""

MAIL_PAUSE_SECONDS, MAIL_PAUSE_SECONDS_MAX = 120, 3_600
"""Time until owners who could not be notified are written to again: it doubles with each failure, up to the second."""

MAIL_ATTEMPTS_MAX = 24
"""Failures after which owners are not written to any more: about twenty hours."""

NOTIFYING_SECONDS_MAX = 60.0
"""For the messages of one report: no further one is begun then."""


@dataclass(frozen=True, slots=True)
class Reported:
    """A secret as it was reported. `url`: where it was found, empty if nobody said."""

    secret: str = field(repr=False)
    url: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """A reported secret that a key of an organization has or had. `is_first`: whether it was not reported before. `version`: of the
    snapshot at which every gateway acts by it; None if nothing was published. `recipients`: those who are notified."""

    leak: LeakedKey
    is_first: bool
    version: int | None
    recipients: tuple[Recipient, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reporter:
    """Context of a report. `peppers`: by version. `new_id`: makes an id with a prefix. `now`: UTC microseconds."""

    source: LeakSource
    peppers: Mapping[int, bytes] = field(repr=False)
    new_id: Callable[[str], str]
    now: int

    def digest(self, secret: str) -> list[bytes]:
        """Return the digests that a secret can have; none for what is not shaped like a key."""
        if domain_keys.find_type(secret) is None:
            return []
        return [domain_keys.digest(pepper, secret.encode()) for pepper in self.peppers.values()]


def report_own(tx: TenantTx, reported: Sequence[Reported], reporter: Reporter) -> list[Finding | None]:
    """Do with each reported secret of the organization what its policy says. Return what was found of each; None for what is no secret of a
    key of the organization."""
    publish.lock(tx)  # takes turns with rotations and revocations
    organization = stored_tenants.find_organization(tx)
    policy = LeakPolicy.RECORD if organization is None else organization.leaked_key_policy
    return [_report(tx, each, policy, reporter) for each in reported]


def report_any(
    database: Database,
    audited: Callable[[Target], Database],
    reported: Sequence[Reported],
    reporter: Reporter,
    log: Callable[[Mapping[str, object]], None],
) -> tuple[list[bool], list[Finding | None]]:
    """Do with each reported secret what its organization wants, each organization in a transaction of its own. Return of each whether it is
    or was the secret of any key, and what was found where it is of an organization. `audited`: the database that records an operation on a
    resource."""
    with database.platform(write=False) as tx:
        digests = (reporter.digest(each.secret) for each in reported)
        owners = [storage.find_secret(tx, each, reporter.now) if each else None for each in digests]
    by_organization: dict[str, list[int]] = {}
    for at, owner in enumerate(owners):
        if owner is not None and owner.organization_id is not None:
            by_organization.setdefault(owner.organization_id, []).append(at)
        elif owner is not None:
            with audited(Target(kind="api_key", id=owner.key_id)).platform():
                pass  # the report itself is what is recorded
            log({"event": "platform_key_leaked", "key_id": owner.key_id, "key_type": str(owner.type), "is_valid": owner.is_valid})
    findings: list[Finding | None] = [None] * len(reported)
    for organization_id, positions in sorted(by_organization.items()):
        with audited(Target()).tenant(organization_id) as tenant:
            found = report_own(tenant, [reported[at] for at in positions], reporter)
        for at, finding in zip(positions, found, strict=True):
            findings[at] = finding
    return [owner is not None for owner in owners], findings


def list_leaks(tx: TenantTx, window: PageWindow) -> Page[LeakedKey]:
    """Return the reports of the organization."""
    return storage.list_leaks(tx, window)


def log_found(findings: Sequence[Finding | None], log: Callable[[Mapping[str, object]], None]) -> None:
    """Log what was found."""
    for finding in findings:
        if finding is not None:
            leak = finding.leak
            line = {"event": "key_leaked", "organization_id": leak.organization_id, "key_id": leak.key_id, "source": str(leak.source)}
            log({**line, "action": str(leak.action), "is_first": finding.is_first})


def notify_owners(
    database: Database,
    findings: Sequence[Finding | None],
    mail: Mail,
    log: Callable[[Mapping[str, object]], None],
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Notify the owners of reports of which they have no message yet. Blocks, for NOTIFYING_SECONDS_MAX and the time of one message at
    most. What cannot be sent now is sent by `notify_due_owners` later."""
    ends_at = clock() + NOTIFYING_SECONDS_MAX
    for finding in [each for each in findings if each is not None and each.recipients][:REPORTS_NOTIFIED_MAX]:
        sent = _send(finding.leak, finding.recipients, mail, log, lambda: clock() < ends_at)
        if sent.told:
            due_at = None if sent.is_whole else finding.leak.reported_at + MAIL_PAUSE_SECONDS * 1_000_000
            with database.tenant(finding.leak.organization_id) as tx:
                storage.put_due_mail(tx, DueMail(finding.leak, due_at, told=() if sent.is_whole else sent.told))
        if not sent.is_reached:
            return


def notify_due_owners(
    database: Database, mail: Mail, log: Callable[[Mapping[str, object]], None], now: int, is_over: Callable[[], bool]
) -> int:
    """Notify owners who could not be notified before, and return of how many reports. Ends where the mail server cannot be given a message:
    the other reports have their turn later. After MAIL_ATTEMPTS_MAX failures owners are not written to any more: the audit trail and the
    list of leaked keys have the report. Blocks for one message at a time, and asks `is_over` before each."""
    count, is_reached = 0, True
    while is_reached and not is_over():
        with database.platform(write=False) as tx:
            due = storage.find_due_mail(tx, now)
        if due is None:
            break
        leak = due.leak
        with database.tenant(leak.organization_id, write=False) as tenant:
            recipients = storage.list_recipients(tenant, OWNER.id, RECIPIENTS_MAX)
        sent = _send(leak, [each for each in recipients if each.user_id not in due.told], mail, log, lambda: not is_over())
        if sent.is_whole:
            after = DueMail(leak, None)
        elif sent.was_cut:
            after = due._replace(told=due.told + sent.told)  # the next turn goes on
        else:
            attempts = due.attempts + 1
            due_at = now + min(MAIL_PAUSE_SECONDS << attempts, MAIL_PAUSE_SECONDS_MAX) * 1_000_000
            after = DueMail(leak, due_at, attempts, due.told + sent.told)
            if attempts >= MAIL_ATTEMPTS_MAX:
                after = DueMail(leak, None, attempts)
                log({"event": "mail_given_up", "organization_id": leak.organization_id, "key_id": leak.key_id})
        with database.tenant(leak.organization_id) as tenant:
            storage.put_due_mail(tenant, after)
        count, is_reached = count + 1, sent.is_reached
    return count


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sent:
    """Outcome of the messages of one report. `told`: ids of the people that they were sent to. `is_whole`: to all. `was_cut`: there was
    no time for the others. `is_reached`: the mail server can be given messages, whether it takes them or not."""

    told: tuple[str, ...]
    is_whole: bool
    was_cut: bool = False
    is_reached: bool = True


def _send(
    leak: LeakedKey,
    recipients: Sequence[Recipient],
    mail: Mail,
    log: Callable[[Mapping[str, object]], None],
    has_time: Callable[[], bool],
) -> _Sent:
    """Write to each recipient while there is time and the mail server can be reached."""
    told: list[str] = []
    for recipient in recipients:
        if not has_time():
            return _Sent(told=tuple(told), is_whole=False, was_cut=True)
        try:
            mail.send(Message(recipient.address, "A secret of Tollway was found in public", _describe(leak)))
        except MailFailure as failure:
            log({"event": "mail_failed", "key_id": leak.key_id, "detail": str(failure)})
            if not isinstance(failure, MessageRefused):
                return _Sent(told=tuple(told), is_whole=False, is_reached=False)
        else:
            told.append(recipient.user_id)
    return _Sent(told=tuple(told), is_whole=len(told) == len(recipients))


def _report(tx: TenantTx, reported: Reported, policy: LeakPolicy, reporter: Reporter) -> Finding | None:
    digests = reporter.digest(reported.secret)
    found = storage.find_own_secret(tx, digests, reporter.now) if digests else None
    if found is None:
        return None
    action, version = _act(tx, found, policy, reporter.now)
    leak = LeakedKey(
        id=reporter.new_id(ids.LEAKED_KEY),
        organization_id=tx.organization_id,
        key_id=found.key_id,
        redacted=found.redacted,
        source=reporter.source,
        url=reported.url[:URL_CHARACTERS_MAX],
        action=action,
        reported_at=reporter.now,
    )
    is_first = storage.put_leak(tx, leak)
    is_told = policy is not LeakPolicy.RECORD and action is not LeakAction.INACTIVE and (is_first or action is not LeakAction.NONE)
    recipients = storage.list_recipients(tx, OWNER.id, RECIPIENTS_MAX) if is_told else []
    if recipients:  # if they are not notified before, or the process dies
        storage.put_due_mail(tx, DueMail(leak, reporter.now + MAIL_PAUSE_SECONDS * 1_000_000))
    return Finding(leak, is_first, version, tuple(recipients))


def _act(tx: TenantTx, found: FoundSecret, policy: LeakPolicy, now: int) -> tuple[LeakAction, int | None]:
    """Do with a secret what the policy says. Return what was done, and the version of the snapshot that says so."""
    if not found.is_valid:
        return LeakAction.INACTIVE, None
    if policy is not LeakPolicy.REVOKE:
        return LeakAction.NONE, None
    if found.is_previous:
        stored_keys.retire_previous_secret(tx, found.key_id)
    else:
        stored_keys.revoke_key(tx, found.key_id, now)
    is_of_gateways = found.type in (KeyType.LIVE, KeyType.TEST)
    version = publish.publish(tx, KeyEntry, [found.key_id], now) if is_of_gateways else None
    return LeakAction.RETIRED if found.is_previous else LeakAction.REVOKED, version


_DONE = {
    LeakAction.REVOKED: "The key was revoked: nobody can use it any more. Create another one where it is needed.",
    LeakAction.RETIRED: "It was the secret before the latest rotation, and was ended. The key goes on with its new secret.",
    LeakAction.NONE: "It is still valid, because your organization wants to be told only. Rotate or revoke the key now.",
}


def _describe(leak: LeakedKey) -> str:
    where = f"\n\nIt was found at:\n{leak.url}" if leak.url.isprintable() and leak.url else ""
    return f"The secret {leak.redacted} of the key {leak.key_id} was found where others can read it.{where}\n\n{_DONE[leak.action]}\n"
