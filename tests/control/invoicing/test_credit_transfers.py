"""Refunds that are paid by SEPA credit transfer: accounts, files for the bank, what it executes and what comes back; on each database."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sepaxml
from lxml import etree

from tests.control.harness import Running
from tests.control.invoicing.parties import DEBTOR, ENTITY_ID, add_parties
from tests.control.invoicing.test_documents import refused
from tests.control.invoicing.test_payments import entry, load, next_id, open_and_balance, pay, statement
from tests.control.money.test_periods import NOW
from tests.control.test_routes import refused as refused_by_api
from tests.storage.databases import fill
from tollway.cli.app import run as run_command
from tollway.control.invoicing import credit_transfers
from tollway.control.invoicing.credit_transfers import FileContents
from tollway.control.verification.verify import verify
from tollway.domain.credit_transfers import Payee
from tollway.domain.payments import Payment, PaymentKind
from tollway.storage import credit_transfers as stored
from tollway.storage.database import Database
from tollway.storage.record_archive import Archive

SCHEMA = Path(sepaxml.__file__).parent / "schemas/pain.001.001.09.xsd"

PAYEE = Payee(iban="DE02120300000000202051", bic="BYLADEM1001", holder="Müller <& Söhne> KG")

DAY = "2026-12-15"


@pytest.fixture
def refund(database: Database) -> Payment:
    """A refund of 2.00 out of a balance of 5.00."""
    add_parties(database, DEBTOR)
    pay(database, 500)
    return pay(database, 200, PaymentKind.REFUND)


def name_payee(database: Database, payment_id: str, **changes: Any) -> None:
    with database.platform() as tx:
        credit_transfers.put_payee(tx, payment_id, msgspec.structs.replace(PAYEE, **changes))


def make_file(database: Database, execute_on: str = DAY) -> FileContents:
    with database.platform() as tx:
        return credit_transfers.make_file(tx, ENTITY_ID, execute_on, id=next_id("ctfile"), actor="key_1", now=NOW)


def outcome(database: Database, payment_id: str) -> tuple[str, str]:
    with database.platform(write=False) as tx:
        found = stored.find_transfer(tx, payment_id)
    assert found is not None
    return found.outcome, found.reason


def told(direction: str, amount: str, reference: str, name: str, more: str = "") -> str:
    """An entry of the bank about a transfer."""
    return (
        f"<Ntry><Amt Ccy='EUR'>{amount}</Amt><CdtDbtInd>{direction}</CdtDbtInd><Sts><Cd>BOOK</Cd></Sts><ValDt><Dt>{DAY}</Dt></ValDt>"
        f"<AcctSvcrRef>{name}</AcctSvcrRef><NtryDtls><TxDtls><Refs><EndToEndId>{reference}</EndToEndId></Refs>{more}</TxDtls></NtryDtls></Ntry>"
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"iban": "DE02120300000000202052"}, "wrong check digits"),
        ({"iban": "CH9300762011623852957"}, "European Economic Area"),
        ({"bic": "BYLADEM"}, "a BIC has"),
    ],
)
def test_an_account_that_cannot_be_is_refused(database: Database, refund: Payment, changes: dict[str, Any], reason: str) -> None:
    with refused(reason):
        name_payee(database, refund.id, **changes)
    with refused("No refund waits"):
        make_file(database)


def test_a_refund_is_in_one_file_until_the_bank_has_paid_it_or_the_file_is_cancelled(
    database: Database, archive: Archive, refund: Payment
) -> None:
    with refused("Only a refund"):
        name_payee(database, pay(database, 1).id)
    name_payee(database, refund.id, iban="DE89370400440532013000")
    name_payee(database, refund.id)
    for wrong in ("2026-W50-2", "2026-12-32", "2026-01-01", "2027-12-15"):
        with refused("from today to 60 days"):
            make_file(database, wrong)
    made = make_file(database)
    schema = etree.XMLSchema(etree.parse(SCHEMA))
    tree = etree.fromstring(made.file.content.encode())
    assert schema.validate(tree.getroottree()), schema.error_log
    find = etree.XPath("//*[local-name()=$name]/text()")
    (reference,) = find(tree, name="EndToEndId")
    assert find(tree, name="IBAN")[-1] == PAYEE.iban and "Mueller .+ Soehne. KG" in find(tree, name="Nm")
    assert (find(tree, name="CtrlSum"), find(tree, name="InstdAmt")) == (["2.00", "2.00"], ["2.00"])
    with refused("No refund waits"):
        make_file(database)
    with refused("cancel it first"):
        name_payee(database, refund.id)
    with database.platform() as tx:
        assert credit_transfers.cancel(tx, made.file.id, []).transfers == []
        with refused("No transfer of these"):
            credit_transfers.cancel(tx, made.file.id, [])
    make_file(database)
    found = load(database, statement(told("DBIT", "2.01", reference, "D0"), told("DBIT", "2.00", reference, "D1")))
    assert (found.executed, found.others, outcome(database, refund.id)) == (1, 2, ("paid", ""))
    back = told("CRDT", "2.00", reference, "C1", "<RtrInf><Rsn><Cd>AC04</Cd></Rsn></RtrInf>")
    found = load(database, statement(back, entry("7.00", "of another", "C2"), name="S2"))
    assert ([each.amount_minor for each in found.payments], found.unmatched) == ([200], 1)
    assert outcome(database, refund.id) == ("returned", "AC04: the account is closed")
    assert load(database, statement(back, name="S3")).known == 1, "another file tells it again"
    assert open_and_balance(database) == ([], 501), "the refund is undone"
    with refused("is returned"):
        name_payee(database, refund.id)
    assert verify(database, archive).differences == []


def test_an_operator_pays_a_balance_out_by_the_command_line(
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
        add_parties(control.plane.database, DEBTOR)
        pay(control.plane.database, 500)
        refund = pay(control.plane.database, 500, PaymentKind.REFUND)
        path = tmp_path / "transfers.xml"
        assert "check digits" in called("payee", refund.id, "--iban", "DE02120300000000202052", code=1)
        assert "5.00 EUR to DE02120300000000202051, waiting" in called("payee", refund.id, "--iban", "DE02 1203 0000 0000 2020 51")
        assert f"5.00 EUR on {DAY}" in called("transfer", ENTITY_ID, "--date", DAY, "-f", str(path))
        (made,) = json.loads(called("transfers", "-o", "json"))
        assert "Kunde <AG>" in called("transfer-file", made["id"]) and made["total"] == "5.00"
        called("transfer-file", made["id"], "-f", str(tmp_path / "again.xml"))
        assert (tmp_path / "again.xml").read_bytes() == path.read_bytes(), "one file twice is the same file"
        called("cancel-transfers", made["id"], "--payment", refund.id)
        assert outcome(control.plane.database, refund.id) == ("waiting", "")
    refused_by_api(control.operator().get("/v1/platform/credit_transfer_files/ctfile_0"), 404, "not_found")
