"""Payments on the pages of the platform: files for the bank, its statements, and refunds."""

import re

import httpx2
import pytest

from tests.control.browsing import Browser
from tests.control.console.pages import find_token
from tests.control.harness import Running
from tests.control.invoicing.parties import ENTITY_ID
from tests.control.invoicing.test_direct_debits import DUE, issue_collected
from tests.control.invoicing.test_payments import entry, statement
from tests.control.money.test_periods import NOW
from tests.link.samples import ORGANIZATION
from tests.storage.databases import fill
from tollway.control.api.authentication.pages import split_multipart
from tollway.domain.faults import Fault

PLATFORM = "/console/platform"


def upload(viewer: Browser, path: str, content: bytes, token: str = "") -> httpx2.Response:
    """Send a file as a browser without scripts does."""
    headers = {"origin": viewer.control.url, "sec-fetch-site": "same-origin"}
    fields = {"form_token": token or find_token(viewer)}
    answer = viewer.client.post(path, data=fields, files={"content": ("statement.xml", content, "text/xml")}, headers=headers)
    viewer.page = answer
    return answer


def test_operator_collects_imports_a_statement_matches_refunds_and_cancels(control: Running, operator: Browser, auditor: Browser) -> None:
    fill(control.plane.database)
    with control.clock.set_to(NOW):
        invoice = issue_collected(control.plane.database, control.plane.archive)
        debits = f"{PLATFORM}/direct-debits"
        operator.open(debits)
        made = operator.send(debits, legal_entity_id=ENTITY_ID, collect_on=DUE)
        file = re.search(rf"{debits}/debitfile_[0-9a-f]{{32}}|{debits}/\w+_[0-9a-f]{{32}}", made.text)
        assert file is not None and "RE-2026-000001" in made.text and "642.60 EUR" in made.text
        path = file.group()
        downloaded = operator.client.get(f"{path}/file")
        assert b"pain.008" in downloaded.content and downloaded.headers["content-disposition"].startswith("attachment")
        assert f"{path}/cancel" not in auditor.open(path).text and auditor.page.status_code == 200
        operator.open(path)
        identifier = path.rpartition("/")[2]
        assert "Nothing was changed" in operator.send(f"{path}/cancel", 400, confirmation="yes").text
        assert "cancelled" in operator.send(f"{path}/cancel", confirmation=identifier).text

        bank = f"{PLATFORM}/bank"
        operator.open(bank)
        assert upload(operator, bank, b"<Document>").status_code == 400
        operator.open(bank)
        assert "not text in UTF-8" in upload(operator, bank, b"\xff\xfe").text
        operator.open(bank)
        assert upload(operator, bank, b"<x/>", token="0" * 64).status_code == 403
        operator.open(bank)
        text = statement(entry("600.00", "RE-2026-000001", "A1"), entry("47.60", "no number &lt;b&gt;", "A2")).encode()
        shown = upload(operator, bank, text).text
        assert "600.00 EUR" in shown and "no number &lt;b&gt;" in shown and "47.60 EUR" in shown
        entry_path = re.search(rf"{bank}/\w+/match", shown)
        assert entry_path is not None
        assert "The payment is recorded" in operator.send(entry_path.group(), invoice_id=invoice.id).text
        assert "none was imported" in operator.page.text

        payments = f"{PLATFORM}/payments"
        operator.open(payments)
        refund = {"organization_id": ORGANIZATION, "kind": "refund", "amount": "5.00", "value_on": "2026-12-03"}
        assert "Nothing was changed" in operator.send(payments, 400, **refund, confirmation="5").text
        operator.open(payments)
        assert "The payment is recorded" in operator.send(payments, **refund, confirmation="5.00").text
        payee = re.search(rf"{payments}/\w+/payee", operator.page.text)
        assert payee is not None
        assert "Saved." in operator.send(payee.group(), iban="DE02120300000000202051", holder="Kunde").text
        transfers = f"{PLATFORM}/credit-transfers"
        operator.open(transfers)
        made = operator.send(transfers, legal_entity_id=ENTITY_ID, execute_on="2026-12-15")
        assert "5.00 EUR" in made.text and "DE02120300000000202051" in made.text
        path = str(made.url.path)
        assert b"pain.001" in operator.client.get(f"{path}/file").content
        assert "Nothing was changed" in operator.send(f"{path}/cancel", 400, confirmation="yes").text
        operator.open(path)
        operator.send(f"{path}/cancel", confirmation=path.rpartition("/")[2])
        taken = re.search(rf"600.00 EUR.*?({payments}/(pay_\w+)/return)", operator.open(payments).text, re.DOTALL)
        assert taken is not None
        returned = operator.send(taken.group(1), value_on="2026-12-04", reference="AM04", confirmation=taken.group(2))
        assert "The payment is recorded" in returned.text and "return" in returned.text


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--b",
        b"--b--",
        b'--b\r\nContent-Disposition: form-data; name="a"\r\n--b--\r\n',
        b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n2\r\n--b--',
        b'--b\r\nContent-Disposition: form-data; name="a\r\n\r\n1\r\n--b--',
        b'x\r\n--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--b--',
        b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--b\r\n',
    ],
)
def test_body_of_an_upload_that_no_browser_sends_is_refused(body: bytes) -> None:
    if body == b"--b--":
        assert split_multipart(body, b"b") == {}
        return
    with pytest.raises(Fault):
        split_multipart(body, b"b")


def test_file_of_an_upload_is_read_as_it_was_sent() -> None:
    content = b"<a>\r\n\r\n--\xff\x00--b</a>\n"
    body = b'--b\r\nContent-Disposition: form-data; name="f"; filename="x"\r\nContent-Type: text/xml\r\n\r\n' + content + b"\r\n--b--\r\n"
    assert split_multipart(body, b"b") == {"f": content}
