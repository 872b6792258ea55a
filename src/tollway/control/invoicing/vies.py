"""VIES, the register of VAT identification numbers of the European Commission, over its REST API
(https://ec.europa.eu/taxation_customs/vies/#/technical-information), and the evidence that its answers are.

A number is looked up when a billing account is stored, and again by a job: hourly until the register has answered, daily while it says
that the number is not valid, and every RECHECK_DAYS, so that each invoice has evidence of about its month. Where the register cannot say,
the evidence says so (`unconfirmed`). Evidence that an operator has stated is never replaced.

The register answers 200 with `valid`, or with `actionSucceed: false` and `errorWrappers`. Its text goes into no log: it names people.
"""

import asyncio
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import httpx2
import msgspec

from tollway.control.authorities import read_authorities
from tollway.control.invoicing import parties
from tollway.control.jobs import Job, Turn, in_thread
from tollway.domain.billing_parties import PARTY_TEXT_MAX, BillingAccount, LegalEntity, PartyProblem
from tollway.domain.faults import DATABASE_UNAVAILABLE, Fault
from tollway.domain.tax import CheckResult, VatCheck, needs_vat_check
from tollway.storage import billing_parties as stored
from tollway.storage.database import Database
from tollway.wire import bodies

SOURCE: Final = "VIES"

REQUEST_SECONDS_MAX = 10
"""Deadline of one look-up: the register's own for a member state is shorter."""

ANSWER_BYTES_MAX = 64 * 1024
"""Largest answer that is read: one has about a kilobyte."""

JOB: Final = "vat_checks"

SECONDS = 3600
"""Interval of the job."""

LOOKUPS_PER_RUN = 1_000
"""Numbers that one run looks up, one after the other: the register refuses who asks for many at once."""

RECHECK_DAYS = 28
INVALID_RECHECK_DAYS = 1

PAGE = 500
"""Billing accounts that are read at once."""

DAY_US = 86_400 * 1_000_000

_CODE = re.compile(r"[A-Z_]{1,64}")
_NONE = "---"
"""The name and the address of a number whose state does not give them."""


class ViesAnswer(NamedTuple):
    """Answer of the register. `reason`: its code for why it could not say, such as MS_UNAVAILABLE; empty where it could. `name`, `address`:
    as registered, empty where its state does not give them. `consultation_number`: empty where nobody is named who asks."""

    result: CheckResult
    reason: str = ""
    name: str = ""
    address: str = ""
    consultation_number: str = ""


@dataclass(frozen=True, slots=True)
class Vies:
    """The register at an address, without a path for the operation."""

    url: str

    def ask(self, vat_id: str, requester: str) -> ViesAnswer:
        """Look a VAT id up. It blocks for REQUEST_SECONDS_MAX at most, and never raises for what the register does. `requester`: the VAT id
        of who asks, by which the register gives a consultation number; empty for none."""
        fields = {"countryCode": vat_id[:2], "vatNumber": vat_id[2:]}
        if requester:
            fields |= {"requesterMemberStateCode": requester[:2], "requesterNumber": requester[2:]}
        try:
            answer = asyncio.run(self._post(fields))
        except (TimeoutError, httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, OSError):
            return ViesAnswer(CheckResult.UNCONFIRMED, "UNREACHABLE")
        except Fault:
            return ViesAnswer(CheckResult.UNCONFIRMED, "UNREADABLE")
        return _read_answer(answer, fields)

    async def _post(self, fields: Mapping[str, str]) -> dict[str, Any]:
        body = bytearray()
        async with (
            asyncio.timeout(REQUEST_SECONDS_MAX),
            httpx2.AsyncClient(follow_redirects=False, trust_env=False, verify=read_authorities(), timeout=REQUEST_SECONDS_MAX) as client,
            client.stream("POST", f"{self.url}/check-vat-number", json=fields, headers={"accept-encoding": "identity"}) as answer,
        ):
            async for piece in answer.aiter_raw():
                body += piece
                if len(body) > ANSWER_BYTES_MAX:
                    raise httpx2.HTTPError("the answer is too long")
        return bodies.parse(bytes(body))


def _read_answer(answer: Mapping[str, Any], asked: Mapping[str, str]) -> ViesAnswer:
    """Return what an answer says. One that is about another number, or says nothing, confirms nothing."""
    errors = answer.get("errorWrappers")
    if answer.get("actionSucceed") is False or errors:
        first = errors[0] if isinstance(errors, list) and errors and isinstance(errors[0], dict) else {}
        code = str(first.get("error"))
        if code == "INVALID_INPUT":  # the form of the number is none of its state
            return ViesAnswer(CheckResult.INVALID)
        return ViesAnswer(CheckResult.UNCONFIRMED, code if _CODE.fullmatch(code) else "UNREADABLE")
    if any(answer.get(name) != asked[name] for name in ("countryCode", "vatNumber")) or not isinstance(answer.get("valid"), bool):
        return ViesAnswer(CheckResult.UNCONFIRMED, "UNREADABLE")
    name, address, number = (_read_text(answer.get(each)) for each in ("name", "address", "requestIdentifier"))
    result = CheckResult.VALID if answer["valid"] else CheckResult.INVALID
    return ViesAnswer(result, "", name, address, number)


def _read_text(value: object) -> str:
    text = " ".join(value.split()) if isinstance(value, str) else ""
    return "" if text == _NONE else "".join(each for each in text if each.isprintable())[:PARTY_TEXT_MAX]


def check_account(vies: Vies, entity: LegalEntity, account: BillingAccount, now: int) -> VatCheck | None:
    """Return the evidence of a look-up of the VAT id of an account; None where its tax depends on none."""
    if not needs_vat_check(entity.address.country, account.address.country, account.is_business, account.vat_id):
        return None
    answer = vies.ask(account.vat_id, entity.vat_id)
    return VatCheck(
        vat_id=account.vat_id,
        checked_at=now,
        source=SOURCE,
        consultation_number=answer.consultation_number,
        result=answer.result,
        reason=answer.reason,
        name=answer.name,
        address=answer.address,
    )


def check_new_account(vies: Vies, database: Database, account: BillingAccount, now: int) -> BillingAccount:
    """Return an account that is to be stored with the evidence of a look-up, if it has none and its tax depends on one. Raises
    PARAMETER_INVALID where the register says that its VAT id is not valid."""
    if account.vat_check is not None:
        return account
    with database.platform(write=False) as tx:
        entity, before = stored.find_entity(tx, account.legal_entity_id), stored.find_account(tx, account.organization_id)
    if entity is None or not parties.has_right_check_digits(account.vat_id):
        return account  # it is refused for that
    check = check_account(vies, entity, account, now)
    if check is not None and check.result is CheckResult.INVALID:
        parties.refuse(PartyProblem("vat_id", "the register (VIES) says that it is not valid"))
    if check is not None and check.result is CheckResult.UNCONFIRMED and before is not None and before.vat_id == account.vat_id:
        check = before.vat_check or check  # what was confirmed before stays
    return msgspec.structs.replace(account, vat_check=check)


def check_due(
    vies: Vies,
    database: Database,
    *,
    after: str = "",
    now: Callable[[], int],
    is_stopping: Callable[[], bool],
    log: Callable[[Mapping[str, object]], None],
) -> str:
    """Look up the VAT ids that are due of billing accounts behind an organization, and store the evidence where it says something new.
    Returns the organization behind which the next run goes on: the first ones, which the register cannot confirm, would otherwise be all
    that is ever looked up; empty at the end of the accounts.

    `database`: as the changes are recorded in the audit trail. A register that cannot be reached is not asked again in this run. Raises
    Fault DATABASE_UNAVAILABLE.
    """
    count = 0
    while True:
        with database.platform(write=False) as tx:
            page = stored.list_accounts(tx, after=after, limit=PAGE)
            entities = {each.legal_entity_id: parties.get_entity(tx, each.legal_entity_id) for each in page}
        for account in page:
            if is_stopping() or count >= LOOKUPS_PER_RUN:
                return after
            check = check_account(vies, entities[account.legal_entity_id], account, now()) if is_due(account.vat_check, now()) else None
            if check is not None and check.reason == "UNREACHABLE":
                log({"event": "vat_register_unreachable"})
                return after
            if check is not None:
                count += 1
                _store(database, account, check, now(), log)
            after = account.organization_id
        if len(page) < PAGE:
            return ""


def make_job(vies: Vies, database: Database, *, now: Callable[[], int], log: Callable[[Mapping[str, object]], None]) -> Job:
    """Return the job that looks VAT ids of billing accounts up, as `check_due` does. Each run goes on where the last one of the process
    ended."""
    after = ""

    def check(turn: Turn) -> None:
        nonlocal after
        after = check_due(vies, database, after=after, now=now, is_stopping=turn.is_over, log=log)

    return Job(name=JOB, work=in_thread(check), interval_seconds=SECONDS, deadline_seconds=SECONDS)


def is_due(check: VatCheck | None, now: int) -> bool:
    """Return whether a VAT id with this evidence is to be looked up (again)."""
    if check is None or check.result is CheckResult.UNCONFIRMED:
        return True
    if check.result is msgspec.UNSET:
        return False  # an operator has stated it
    days = RECHECK_DAYS if check.result is CheckResult.VALID else INVALID_RECHECK_DAYS
    return check.checked_at <= now - days * DAY_US


def _store(database: Database, account: BillingAccount, check: VatCheck, now: int, log: Callable[[Mapping[str, object]], None]) -> None:
    """Store evidence in an account that is as it was when its VAT id was looked up. What could not be confirmed replaces nothing but what
    could not be either."""
    before = account.vat_check
    if check.result is CheckResult.UNCONFIRMED and before is not None:
        return
    try:
        with database.platform() as tx:
            if stored.find_account(tx, account.organization_id, lock=True) != account:
                return
            stored.put_account(tx, msgspec.structs.replace(account, vat_check=check), now)
    except Fault as fault:
        if fault.kind is DATABASE_UNAVAILABLE:
            raise
        log({"event": "vat_id_not_checked", "organization_id": account.organization_id, "detail": fault.message})
        return
    log({"event": "vat_id_checked", "organization_id": account.organization_id, "result": check.result, "reason": check.reason})
