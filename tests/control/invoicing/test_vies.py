"""VAT ids that are looked up in the register: the wire, the evidence, and what follows from it for accounts and drafts."""

from collections.abc import Iterator, Mapping

import msgspec
import pytest

from tests.control.invoicing.parties import BUYER, FRENCH_BUYER, SELLER, add_parties
from tests.control.invoicing.test_documents import refused
from tests.control.invoicing.vies_server import HIDDEN, ViesServer, vies_server
from tests.link.samples import ORGANIZATION, OTHER_ORGANIZATION
from tollway.control.invoicing import contents, parties, vies
from tollway.control.invoicing.vies import DAY_US, Vies, ViesAnswer, is_due
from tollway.domain.billing_parties import BillingAccount
from tollway.domain.tax import CheckResult, TaxCategory, VatCheck
from tollway.storage import billing_parties as stored
from tollway.storage.database import Database

NOW = 1_790_000_000_000_000
UNCHECKED = msgspec.structs.replace(FRENCH_BUYER, vat_check=None)


@pytest.fixture
def register() -> Iterator[ViesServer]:
    with vies_server() as served:
        yield served


def account_of(database: Database) -> BillingAccount:
    with database.platform(write=False) as tx:
        account = stored.find_account(tx, ORGANIZATION)
    assert account is not None
    return account


def check_due(register: ViesServer, database: Database, at: int) -> list[Mapping[str, object]]:
    lines: list[Mapping[str, object]] = []
    vies.check_due(Vies(register.url), database, now=lambda: at, is_stopping=lambda: False, log=lines.append)
    return lines


def test_answers_of_the_register_are_read_and_all_else_confirms_nothing(register: ViesServer) -> None:
    source = Vies(register.url)
    assert source.ask("FR40303265045", "DE136695976") == ViesAnswer(
        CheckResult.VALID, "", "CLIENT SA", "RUE 3 75001 PARIS", "WAPIAAAAaEDkvhHx"
    )
    requester = {"requesterMemberStateCode": "DE", "requesterNumber": "136695976"}
    assert register.asked == [{"countryCode": "FR", "vatNumber": "40303265045", **requester}]
    register.trader = HIDDEN
    assert source.ask("FR40303265045", "") == ViesAnswer(CheckResult.VALID)
    register.valid = False
    assert source.ask("FR40303265045", "DE136695976") == ViesAnswer(CheckResult.INVALID)
    for code in ("MS_UNAVAILABLE", "MS_MAX_CONCURRENT_REQ", "GLOBAL_MAX_CONCURRENT_REQ", "TIMEOUT", "INVALID_REQUESTER_INFO", "IP_BLOCKED"):
        register.error = code
        assert source.ask("FR40303265045", "") == ViesAnswer(CheckResult.UNCONFIRMED, code)
    register.error = "INVALID_INPUT"
    assert source.ask("FR40303265045", "") == ViesAnswer(CheckResult.INVALID)
    other = b'{"countryCode": "FR", "vatNumber": "1", "valid": true}'
    for raw in (b"<html>", b"[]", b"{}", other, b'{"actionSucceed": false}', b'{"errorWrappers": [{"error": "a name"}]}', b" " * 70_000):
        register.raw = raw
        answer = source.ask("FR40303265045", "")
        assert answer.result is CheckResult.UNCONFIRMED and answer.reason in ("UNREADABLE", "UNREACHABLE")
    assert Vies("http://127.0.0.1:1").ask("FR40303265045", "") == ViesAnswer(CheckResult.UNCONFIRMED, "UNREACHABLE")


def test_a_new_account_is_looked_up_where_its_tax_depends_on_it(database: Database, register: ViesServer) -> None:
    add_parties(database)
    source = Vies(register.url)
    for untouched in (BUYER, FRENCH_BUYER, msgspec.structs.replace(UNCHECKED, is_business=False)):
        assert vies.check_new_account(source, database, untouched, NOW) == untouched
    assert register.asked == []
    check = vies.check_new_account(source, database, UNCHECKED, NOW).vat_check
    assert check is not None and (check.result, check.consultation_number, check.checked_at) == ("valid", "WAPIAAAAaEDkvhHx", NOW)
    add_parties(database, FRENCH_BUYER)
    register.error = "TIMEOUT"
    assert vies.check_new_account(source, database, UNCHECKED, NOW) == FRENCH_BUYER, "what was confirmed before stays"
    register.error, register.valid = "", False
    with refused("is not valid"):
        vies.check_new_account(source, database, UNCHECKED, NOW)


def test_the_job_asks_again_until_the_register_answers_and_a_number_that_is_not_valid_stops_drafts(
    database: Database, register: ViesServer
) -> None:
    add_parties(database)
    register.error = "MS_UNAVAILABLE"
    waiting = vies.check_new_account(Vies(register.url), database, UNCHECKED, NOW)
    with database.platform() as tx:
        parties.put_account(tx, waiting, NOW)
    assert waiting.vat_check is not None and waiting.vat_check.reason == "MS_UNAVAILABLE"
    decision = contents.decide(SELLER, waiting, "2026-09-30")
    assert decision.category is TaxCategory.REVERSE_CHARGE and decision.facts.check == waiting.vat_check
    assert check_due(register, database, NOW + 1) == [] and account_of(database) == waiting
    register.error = ""
    (line,) = check_due(register, database, NOW + 2)
    assert (line["event"], line["organization_id"], line["result"]) == ("vat_id_checked", ORGANIZATION, "valid")
    confirmed = account_of(database)
    assert confirmed.vat_check is not None and confirmed.vat_check.consultation_number == "WAPIAAAAaEDkvhHx"
    assert check_due(register, database, NOW + 27 * DAY_US) == []
    register.error = "TIMEOUT"
    assert check_due(register, database, NOW + 29 * DAY_US) == [] and account_of(database) == confirmed
    register.error, register.valid = "", False
    (line,) = check_due(register, database, NOW + 29 * DAY_US)
    assert line["result"] == "invalid"
    with refused("not valid"):
        contents.decide(SELLER, account_of(database), "2026-09-30")
    unreachable = ViesServer(url="http://127.0.0.1:1")
    assert check_due(unreachable, database, NOW + 40 * DAY_US) == [{"event": "vat_register_unreachable"}]


def test_each_run_goes_on_behind_the_accounts_that_the_last_one_looked_up(
    database: Database, register: ViesServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two accounts whose numbers the register cannot confirm: with one look-up for each run the second one has its turn as well."""
    with database.platform() as tx:
        parties.put_entity(tx, SELLER, now=10)
        for owner, vat_id in ((ORGANIZATION, "FR40303265045"), (OTHER_ORGANIZATION, "FR03552081317")):
            parties.put_account(tx, msgspec.structs.replace(UNCHECKED, organization_id=owner, vat_id=vat_id), NOW)
    monkeypatch.setattr(vies, "LOOKUPS_PER_RUN", 1)
    register.error = "MS_UNAVAILABLE"
    after = ""
    for _ in range(4):
        after = vies.check_due(
            Vies(register.url), database, after=after, now=lambda: NOW, is_stopping=lambda: False, log=lambda _line: None
        )
    assert [each["vatNumber"] for each in register.asked[:2]] != [register.asked[0]["vatNumber"]] * 2
    assert {each["vatNumber"] for each in register.asked} == {"40303265045", "03552081317"}


def test_what_an_operator_states_is_not_looked_up_and_is_encoded_as_ever() -> None:
    stated = VatCheck(vat_id="FR40303265045", checked_at=1, source="VIES")
    assert not is_due(stated, NOW) and is_due(None, NOW)
    assert msgspec.json.encode(stated) == b'{"vat_id":"FR40303265045","checked_at":1,"source":"VIES","consultation_number":""}'
