"""SEPA direct debits at control: mandates, files for the bank, what is collected and returned; on each database."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sepaxml
from lxml import etree
from sqlalchemy.exc import IntegrityError

from tests.control.harness import Running, answered
from tests.control.invoicing.parties import BUYER, DEBTOR, ENTITY_ID, MANDATE, SELLER, add_parties
from tests.control.invoicing.test_documents import credit, document_of, draft, issue, refused
from tests.control.invoicing.test_payments import GROSS, entry, load, next_id, open_and_balance, pay, statement
from tests.control.metering.test_collect import take
from tests.control.money.test_periods import NOW, SEPTEMBER, close
from tests.control.test_routes import refused as refused_by_api
from tests.link.samples import ORGANIZATION, OTHER_ORGANIZATION, admit, final, frames
from tests.storage.databases import fill
from tollway.cli.app import run as run_command
from tollway.control.invoicing import direct_debits, dunning, pain, parties
from tollway.control.invoicing.direct_debits import CollectedFile
from tollway.control.verification.verify import verify
from tollway.domain.billing_classes import Quantities
from tollway.domain.connectors import Connector
from tollway.domain.direct_debits import (
    Debit,
    MandateScheme,
    SequenceType,
    find_last_day,
    has_right_creditor_form,
)
from tollway.domain.money import CENT_PICO
from tollway.domain.sepa import is_reference, write_text
from tollway.domain.usage import Tick
from tollway.storage import billing_parties
from tollway.storage.database import Database
from tollway.storage.invoices import StoredInvoice
from tollway.storage.record_archive import Archive

SCHEMA = Path(sepaxml.__file__).parent / "schemas/pain.008.001.08.xsd"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"iban": "DE02120300000000202052"}, "wrong check digits"),
        ({"iban": "CH9300762011623852957"}, "European Economic Area"),
        ({"reference": "M 7"}, "its reference has"),
        ({"reference": "M//7"}, "its reference has"),
        ({"signed_on": "2026-09-03"}, "signed in the future"),
        ({"signed_on": "2026-02-30"}, "written like"),
        ({"revoked_on": "soon"}, "written like"),
        ({"bic": "BYLADEM"}, "a BIC has"),
        ({"notice_days": 15}, "at most `payment_days` \\(14\\)"),
    ],
)
def test_a_mandate_that_cannot_be_is_refused(database: Database, changes: dict[str, Any], reason: str) -> None:
    wrong = msgspec.structs.replace(DEBTOR, mandate=msgspec.structs.replace(MANDATE, **changes))
    with refused(reason):
        add_parties(database, wrong)


def test_a_mandate_needs_a_creditor_a_business_for_b2b_a_reference_of_its_own_and_no_other_collector(database: Database) -> None:
    with refused("no creditor identifier"):
        add_parties(database, DEBTOR, creditor_id="")
    with refused("its form or its check digits"):
        add_parties(database, DEBTOR, creditor_id="DE99ZZZ09999999999")
    add_parties(database, DEBTOR)
    business = msgspec.structs.replace(MANDATE, scheme=MandateScheme.B2B)
    for changes, reason in (
        ({"organization_id": OTHER_ORGANIZATION}, "of another organization"),
        ({"mandate": business, "is_business": False, "vat_id": ""}, "a consumer cannot sign"),
        ({"connector": Connector.STRIPE, "connector_customer": "cus_1"}, "a connector collects"),
    ):
        with refused(reason), database.platform() as tx:
            parties.put_account(tx, msgspec.structs.replace(DEBTOR, **changes), now=NOW)
    twin = msgspec.structs.replace(DEBTOR, organization_id=OTHER_ORGANIZATION)
    with pytest.raises(IntegrityError), database.platform() as tx:
        billing_parties.put_account(tx, twin, NOW)  # as if nobody had looked before
    with database.platform() as tx:
        parties.put_account(tx, msgspec.structs.replace(DEBTOR, mandate=business), now=NOW)
        assert parties.get_account(tx, BUYER.organization_id).mandate == business


def test_texts_and_references_of_files_have_their_character_set() -> None:
    assert write_text("Müller & Söhne – Łódź “AG”", 70) == "Mueller + Soehne . Lodz .AG."
    assert write_text("x" * 80, 70) == "x" * 70
    assert [is_reference(each) for each in ("RE-2026-000001", "/a", "a/", "a//b", "ä", "", "a" * 36)] == [True] + [False] * 6
    assert has_right_creditor_form(SELLER.creditor_id) and has_right_creditor_form("DE98ABC09999999999")
    assert not has_right_creditor_form("DE98ZZZ09999999998")
    assert find_last_day("2024-02-29") < "2027-03-01"


def test_files_are_valid_by_the_schema_of_the_format_and_group_debits_by_scheme_and_sequence() -> None:
    business = msgspec.structs.replace(MANDATE, reference="M-0008", scheme=MandateScheme.B2B, bic="")
    debits = [
        Debit(
            file_id="ddfile_0",
            invoice_id=f"inv_{number}",
            organization_id=ORGANIZATION,
            amount_minor=12_345 + number,
            end_to_end_id=f"RE-2026-{number:06d}",
            debtor="Müller <& Söhne> KG",
            sequence=sequence,
            mandate=mandate,
        )
        for number, (mandate, sequence) in enumerate(
            [
                (MANDATE, SequenceType.FIRST),
                (MANDATE, SequenceType.RECURRENT),
                (business, SequenceType.FIRST),
                (MANDATE, SequenceType.RECURRENT),
            ]
        )
    ]
    tree = etree.fromstring(pain.render_debits("0" * 32, SELLER, "2026-12-15", debits, NOW).encode())
    schema = etree.XMLSchema(etree.parse(SCHEMA))
    assert schema.validate(tree.getroottree()), schema.error_log
    find = etree.XPath("//*[local-name()=$name]/text()")
    assert find(tree, name="CtrlSum") == ["493.86", "123.47", "123.45", "246.94"]
    assert find(tree, name="SeqTp") == ["FRST", "FRST", "RCUR"] and find(tree, name="NbOfTxs") == ["4", "1", "1", "2"]
    assert find(tree, name="DtOfSgntr") == ["2026-08-01"] * 4 and "Mueller .+ Soehne. KG" in find(tree, name="Nm")


DUE = "2026-12-15"


@pytest.fixture
def invoice(database: Database, archive: Archive) -> StoredInvoice:
    return issue_collected(database, archive)


def issue_collected(database: Database, archive: Archive) -> StoredInvoice:
    """Issue an invoice of September that announces its collection for DUE."""
    large = final(admit(1), used=Quantities(2_000_000_000))
    take(database, archive, frames([large.admit, large, Tick(at=SEPTEMBER.end_at)]))
    close(database, SEPTEMBER.start_at)
    add_parties(database, DEBTOR)
    (made,) = draft(database)
    issued = issue(database, made.id)
    assert document_of(issued).direct_debit is not None
    return issued


def collect(database: Database, *invoice_ids: str, collect_on: str = DUE, now: int = NOW) -> CollectedFile:
    with database.platform() as tx:
        return direct_debits.collect(tx, ENTITY_ID, collect_on, invoice_ids, id=next_id("ddfile"), actor="key_1", now=now)


def outcomes(database: Database, file_id: str) -> list[tuple[str, str]]:
    with database.platform(write=False) as tx:
        return [(str(each.outcome), each.reason) for each in direct_debits.get_contents(tx, file_id).debits]


def came_back(code: str, reference: str, amount: str = "645.60", *, original: str = "642.60", number: str = "RE-2026-000001") -> str:
    """An entry of a debit that the bank gave back, with charges of 3.00 in its amount."""
    return (
        f"<Ntry><Amt Ccy='EUR'>{amount}</Amt><CdtDbtInd>DBIT</CdtDbtInd><Sts><Cd>BOOK</Cd></Sts><ValDt><Dt>2026-12-17</Dt></ValDt>"
        f"<AcctSvcrRef>{reference}</AcctSvcrRef><NtryDtls><TxDtls><Refs><EndToEndId>{number}</EndToEndId></Refs>"
        f"<AmtDtls><InstdAmt><Amt Ccy='EUR'>{original}</Amt></InstdAmt></AmtDtls>"
        f"<RtrInf><Rsn><Cd>{code}</Cd></Rsn></RtrInf></TxDtls></NtryDtls></Ntry>"
    )


def collected(amount: str, reference: str) -> str:
    return entry(amount, "debit", reference).replace("<RltdPties>", "<Refs><EndToEndId>RE-2026-000001</EndToEndId></Refs><RltdPties>")


def test_an_invoice_is_collected_once_and_a_debit_that_comes_back_opens_it(
    database: Database, archive: Archive, invoice: StoredInvoice
) -> None:
    with refused("from tomorrow to 60 days"):
        collect(database, collect_on="2026-01-01")
    with refused("Nothing is to be collected by then\\."):
        collect(database, collect_on="2026-12-14")
    pay(database, 260)
    made = collect(database)
    (debit,) = made.debits
    assert (debit.amount_minor, debit.end_to_end_id, debit.sequence, made.skipped) == (GROSS - 260, "RE-2026-000001", "FRST", [])
    with refused("Nothing is to be collected"):
        collect(database)
    with database.platform() as tx:
        direct_debits.cancel(tx, made.file.id, [])
        with refused("No debit of these is under way"):
            direct_debits.cancel(tx, made.file.id, [])
    returned_payment = collect(database)
    assert returned_payment.debits[0].sequence == "FRST", "what was cancelled did not use the mandate"
    assert load(database, statement(came_back("AM04", "R0", original="640.00"))).unmatched_returns == 1, "its money has not come"
    found = load(database, statement(collected("640.00", "C1"), name="S2"))
    (back,) = found.returned
    assert (len(found.payments), back.reference, back.kind, back.amount_minor) == (
        1,
        "AM04: the account is not covered",
        "return",
        GROSS - 260,
    )
    assert (found.others, found.unmatched_returns) == (0, 0)
    assert open_and_balance(database) == ([GROSS - 260], 0), "what came back before its payment was told is taken from that at once"
    assert outcomes(database, made.file.id) == [("cancelled", "")]
    assert outcomes(database, returned_payment.file.id) == [("returned", "AM04: the account is not covered")]
    assert open_and_balance(database) == ([GROSS - 260], 0)
    again = load(database, statement(came_back("AM04", "R0", original="640.00"), name="S3"))
    assert (again.known, again.returned, again.unmatched_returns) == (1, [], 0), "another file tells it again"
    with refused("RE-2026-000001: the bank has returned it \\(AM04: the account is not covered\\)"):
        collect(database)
    with database.platform() as tx, refused("it was used before"):
        parties.put_account(tx, msgspec.structs.replace(DEBTOR, mandate=msgspec.structs.replace(MANDATE, signed_on="2026-09-01")), now=NOW)
    last = collect(database, invoice.id)
    assert last.debits[0].sequence == "RCUR"
    load(database, statement(collected("640.00", "C2"), name="S4"))
    assert (outcomes(database, last.file.id), open_and_balance(database)) == ([("paid", "")], ([], 0))
    assert load(database, statement(came_back("MD06", "R2", original="1.00"), name="S5")).unmatched_returns == 1, (
        "the amount is another one"
    )
    assert verify(database, archive).differences == []


def test_what_is_held_credited_or_without_its_mandate_is_not_collected(database: Database, invoice: StoredInvoice) -> None:
    def put(**changes: Any) -> None:
        with database.platform() as tx:
            parties.put_account(tx, msgspec.structs.replace(DEBTOR, **changes), now=NOW)

    for changes, reason in (
        ({"mandate": None}, "no mandate that is in force"),
        ({"mandate": msgspec.structs.replace(MANDATE, revoked_on="2026-10-02")}, "no mandate that is in force"),
        ({"mandate": msgspec.structs.replace(MANDATE, iban="DE89370400440532013000")}, "has announced another mandate"),
        ({"mandate": msgspec.structs.replace(MANDATE, signed_on="2023-12-14")}, "not used for 36 months"),
    ):
        put(**changes)
        with refused(reason):
            collect(database)
    put()
    with database.platform() as tx:
        parties.put_entity(tx, msgspec.structs.replace(SELLER, creditor_id="DE98ABC09999999999"), now=NOW)
    with refused("announced another creditor identifier"):
        collect(database)
    with database.platform() as tx:
        parties.put_entity(tx, SELLER, now=NOW)
        dunning.set_hold(tx, invoice.id, "disputed", NOW)
    with refused("Nothing is to be collected by then\\."):
        collect(database)
    with database.platform() as tx:
        dunning.set_hold(tx, invoice.id, None, NOW)
    issue(database, credit(database, invoice.id, 1_000 * CENT_PICO).id)
    (debit,) = collect(database).debits
    assert debit.amount_minor == GROSS - 1_190, "what was credited is not collected"


def test_an_operator_collects_and_cancels_by_the_command_line(
    fresh_control: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    control = fresh_control
    fill(control.plane.database)
    monkeypatch.setenv("TOLLWAY_CONTROL_URL", str(control.operator().base_url))
    monkeypatch.setenv("TOLLWAY_KEY", control.platform_key)

    def called(*arguments: str, code: int = 0) -> str:
        assert run_command(["payments", *arguments]) == code
        said = capsys.readouterr()
        return said.err if code else said.out

    with control.clock.set_to(NOW):
        issued = issue_collected(control.plane.database, control.plane.archive)
        path = tmp_path / "debits.xml"
        assert "from tomorrow" in called("collect", ENTITY_ID, "--date", "2026-12-32", "-f", str(path), code=1)
        assert f"642.60 EUR on {DUE}" in called("collect", ENTITY_ID, "--date", DUE, "-f", str(path))
        assert "<EndToEndId>RE-2026-000001</EndToEndId><" in path.read_text().replace("</PmtId>", "<")
        assert "is there already" in called("collect", ENTITY_ID, "--date", DUE, "-f", str(path), code=2)
        (made,) = json.loads(called("collections", "-o", "json"))
        assert made["outcomes"] == {"open": 1} and "1 open" in called("collections")
        assert "RE-2026-000001" in called("collection", made["id"], "-f", str(tmp_path / "again.xml"))
        assert (tmp_path / "again.xml").read_bytes() == path.read_bytes()
        assert "cancelled" in called("cancel", made["id"], "--invoice", issued.id)
        assert "No debit of these is under way" in called("cancel", made["id"], code=1)
        called("collect", ENTITY_ID, "--date", DUE, "-f", str(tmp_path / "next.xml"))
        text = statement(collected("642.60", "C1"), came_back("AC04", "R1"))
        (tmp_path / "statement.xml").write_text(text)
        assert "returned 642.60 EUR: AC04: the account is closed" in called("import", str(tmp_path / "statement.xml"))
    account = answered(control.operator().get(f"/v1/platform/organizations/{ORGANIZATION}/billing_account"))["account"]
    assert account["mandate"]["reference"] == "M-0007"
    refused_by_api(control.operator().get("/v1/platform/direct_debit_files/ddfile_0"), 404, "not_found")
