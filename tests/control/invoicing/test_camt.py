"""Bank statements that are made to cost much: what a file may ask of the process that reads it."""

from xml.etree import ElementTree

import pytest

from tollway.control.invoicing import camt
from tollway.control.invoicing.camt import StatementUnreadable, read_statements

HEAD = "<Id>S1</Id><Acct><Id><IBAN>DE89370400440532013000</IBAN></Id></Acct>"
BOOKED = "<Sts>BOOK</Sts><ValDt><Dt>2026-12-03</Dt></ValDt>"


def statement(content: str) -> str:
    return f"<Document><BkToCstmrStmt><Stmt>{HEAD}{content}</Stmt></BkToCstmrStmt></Document>"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("<a>" * 2_000 + "</a>" * 2_000, "within each other"),
        ("<a>" * 120_000 + "</a>" * 120_000, "within each other"),
        ("".join(f"<x xmlns='b{number}'/>" for number in range(40_000)), "namespaces"),
        ("<x " + " ".join(f"xmlns:a{number}='b{number}' a{number}:c=''" for number in range(20)) + "/>", "namespaces"),
        ("<a/>" * 200_000, "elements and attributes"),
        ("<Ntry/>" * 110_000, "elements and attributes"),
        ("<x " + " ".join(f"a{number}=''" for number in range(80_000)) + "/>", "elements and attributes"),
    ],
    ids=["deep", "deeper", "namespaces", "namespaces of attributes", "elements", "entries", "attributes"],
)
def test_149_a_bank_statement_of_elements_attributes_or_namespaces_without_end_is_refused(content: str, reason: str) -> None:
    with pytest.raises(StatementUnreadable, match=reason):
        read_statements(statement(content))


@pytest.mark.parametrize(
    ("kind", "details"),
    [("CRDT", "<Amt Ccy='EUR'>1</Amt>"), ("DBIT", "<RtrInf><Rsn><Cd>AC04</Cd></Rsn></RtrInf>")],
    ids=["credits", "returned debits"],
)
def test_149_an_entry_is_not_looked_through_again_for_each_of_its_transactions(
    kind: str, details: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts the elements that are looked at: a thousand transactions beside ten thousand that nobody reads would be ten millions."""
    transactions, others = 1_000, 10_000
    looked_at = 0

    def children(element: ElementTree.Element, name: str) -> list[ElementTree.Element]:
        nonlocal looked_at
        looked_at += len(element)
        return [child for child in element if child.tag == name]

    monkeypatch.setattr(camt, "_children", lambda element, name: iter(children(element, name)))
    entry = f"<Ntry><Amt Ccy='EUR'>{transactions}</Amt><CdtDbtInd>{kind}</CdtDbtInd>{'<a/>' * others}{BOOKED}"
    content = statement(f"{entry}<NtryDtls>{f'<TxDtls>{details}</TxDtls>' * transactions}</NtryDtls></Ntry>")
    (read,) = read_statements(content)
    assert len(read.credits) + len(read.returns) == transactions
    assert looked_at < 200 * transactions + 10 * others
