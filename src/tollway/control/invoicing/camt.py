"""Bank statements in the format camt.053 (ISO 20022, bank-to-customer statement): the credits that were booked.

Every version of the message is read, by the names of its elements without their namespace. Entries that are not booked yet, debits and
reversals are counted and left to the bank's own view. Amounts are decimals, which become integers without a float.

A credit is known again by the bank's reference (`AcctSvcrRef`). Many banks write none, or the same placeholder into every entry; then by
its sender, its text and the sender's reference (`EndToEndId`). Credits of one statement that are equal in all of that are numbered, so that
each counts.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import date
from typing import NamedTuple
from xml.etree import ElementTree

from tollway.domain.currencies import CURRENCIES
from tollway.domain.money import AMOUNT_PICO_MAX, PICO

STATEMENT_BYTES_MAX = 900_000
"""Largest file, which is one field of a request: about a thousand entries. A bank cuts longer statements into several."""

ENTRIES_MAX = 20_000
"""Most entries of a file: the smallest ones have about fifty bytes."""

TEXT_MAX = 512
"""Characters of the remittance information that are kept."""

NAME_MAX = 64
"""Characters of the identification of a statement; the standard has 35."""

PLACEHOLDERS = frozenset({"NONREF", "NOREF", "NOTPROVIDED", "NOT PROVIDED"})
"""Texts that banks write where there is no reference."""

_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_AMOUNT = re.compile(r"([0-9]{1,15})(?:\.([0-9]*))?")


class BankCredit(NamedTuple):
    """A credit that a bank has booked. `id`: the same in every file that has it. `text`: the remittance information. `is_batch`: it is the
    sum of several transfers, of which the file does not tell the amounts."""

    id: str
    amount_minor: int
    currency: str
    value_on: str
    debtor: str
    text: str
    is_batch: bool = False


class BankStatement(NamedTuple):
    """A statement of one account. `name`: as the bank calls it; some banks use their names again each year. `digest`: SHA-256 of
    its canonical XML. `others`: entries that are not booked credits."""

    iban: str
    name: str
    digest: str
    credits: list[BankCredit]
    others: int


class StatementUnreadable(ValueError):
    """The file is no camt.053, or has what it must not. The message says where."""


def read_statements(text: str) -> list[BankStatement]:
    """Return the statements of a file. Raises StatementUnreadable."""
    if len(text.encode(errors="surrogatepass")) > STATEMENT_BYTES_MAX:
        raise StatementUnreadable(f"the file is longer than {STATEMENT_BYTES_MAX} bytes")
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise StatementUnreadable("the file declares a document type, which no bank statement has")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise StatementUnreadable(f"the file is no XML: {error}") from None
    statements = [_read_statement(each) for message in _children(root, "BkToCstmrStmt") for each in _children(message, "Stmt")]
    if not statements:
        raise StatementUnreadable("the file has no statement (BkToCstmrStmt/Stmt)")
    if sum(len(each.credits) + each.others for each in statements) > ENTRIES_MAX:
        raise StatementUnreadable(f"the file has more than {ENTRIES_MAX} entries")
    return statements


def _read_statement(statement: ElementTree.Element) -> BankStatement:
    iban, name = _text(statement, "Acct", "Id", "IBAN"), _text(statement, "Id")
    if not iban or not name:
        raise StatementUnreadable("a statement has no IBAN or no identification")
    if len(name) > NAME_MAX:
        raise StatementUnreadable(f"the identification of a statement is longer than {NAME_MAX} characters")
    credits, others = list[BankCredit](), 0
    equals = Counter[str]()
    for number, entry in enumerate(_children(statement, "Ntry"), 1):
        status = _text(entry, "Sts", "Cd") or _text(entry, "Sts")
        if _text(entry, "CdtDbtInd") == "CRDT" and status == "BOOK" and _text(entry, "RvslInd") not in ("true", "1"):
            credits += [_read_credit(each, iban, f"{name}/{number}", equals) for each in _split(entry)]
        else:
            others += 1
    canonical = ElementTree.canonicalize(ElementTree.tostring(statement, encoding="unicode"), strip_text=True)
    return BankStatement(iban, name, hashlib.sha256(canonical.encode()).hexdigest(), credits, others)


def _list_details(entry: ElementTree.Element) -> list[ElementTree.Element]:
    return [each for group in _children(entry, "NtryDtls") for each in _children(group, "TxDtls")]


def _split(entry: ElementTree.Element) -> list[ElementTree.Element]:
    """Return the parts of an entry that a bank booked as one sum: an entry for each transaction, if each tells its amount and they come
    to that of the entry. Otherwise the entry itself."""
    details, whole = _list_details(entry), next(_children(entry, "Amt"), None)
    if len(details) < 2 or whole is None or whole.get("Ccy") not in CURRENCIES:
        return [entry]
    minor_units, parts, sum_minor = CURRENCIES[whole.get("Ccy", "")].minor_units, list[ElementTree.Element](), 0
    for each in details:
        amount = next(_children(each, "Amt"), None)
        if amount is None:
            amount = next((a for d in _children(each, "AmtDtls") for t in _children(d, "TxAmt") for a in _children(t, "Amt")), None)
        if amount is None or amount.get("Ccy") != whole.get("Ccy") or _text(each, "CdtDbtInd") not in ("", "CRDT"):
            return [entry]
        try:
            sum_minor += _read_minor((amount.text or "").strip(), minor_units, "")
        except StatementUnreadable:
            return [entry]
        part = ElementTree.Element(entry.tag)
        part.extend([amount, *(child for child in entry if child.tag.rpartition("}")[2] not in ("Amt", "NtryDtls"))])
        ElementTree.SubElement(part, "NtryDtls").append(each)
        parts.append(part)
    try:
        return parts if sum_minor == _read_minor((whole.text or "").strip(), minor_units, "") else [entry]
    except StatementUnreadable:
        return [entry]


def _read_credit(entry: ElementTree.Element, iban: str, place: str, equals: Counter[str]) -> BankCredit:
    """Return a credit. `equals`: how often each identity came in the statement so far, which this counts on."""
    amount = next(_children(entry, "Amt"), None)
    if amount is None or amount.text is None:
        raise StatementUnreadable(f"entry {place} has no amount")
    currency = amount.get("Ccy", "")
    if currency not in CURRENCIES:
        raise StatementUnreadable(f"entry {place} has the unknown currency {currency!r}")
    value_on = _text(entry, "ValDt", "Dt") or _text(entry, "BookgDt", "Dt") or _text(entry, "BookgDt", "DtTm")[:10]
    if not _is_day(value_on):
        raise StatementUnreadable(f"entry {place} has no date, or one that is none: {value_on!r}")
    details = _list_details(entry)
    texts = [text.text or "" for each in details for info in _children(each, "RmtInf") for text in _children(info, "Ustrd")]
    texts += [_text(each, "RmtInf", "Strd", "CdtrRefInf", "Ref") for each in details]
    texts += [_text(each, "Refs", "EndToEndId") for each in details]
    text = " ".join(each.strip() for each in texts if each.strip() and each.strip() not in PLACEHOLDERS)
    debtor = next((name for each in details if (name := _find_debtor(each))), "")
    amount_minor = _read_minor(amount.text.strip(), CURRENCIES[currency].minor_units, place)
    identity = _find_identity(entry, details, debtor, text)
    equal = json.dumps([iban, value_on, amount_minor, currency, *identity])
    equals[equal] += 1
    return BankCredit(
        id=hashlib.sha256(f"{equal}/{equals[equal]}".encode()).hexdigest()[:40],
        amount_minor=amount_minor,
        currency=currency,
        value_on=value_on,
        debtor=debtor[:256],
        text=text[:TEXT_MAX],
        is_batch=len(details) > 1,
    )


def _find_identity(entry: ElementTree.Element, details: Sequence[ElementTree.Element], debtor: str, text: str) -> list[str]:
    """Return what distinguishes a credit from others of its account, day and amount."""
    given = (_text(entry, "AcctSvcrRef"), *(_text(each, "Refs", "AcctSvcrRef") for each in details))
    references = [each for each in given if each and each.upper() not in PLACEHOLDERS]
    if references:
        return ["reference", references[0]]
    return ["contents", debtor, text, *(_text(each, "Refs", name) for each in details for name in ("EndToEndId", "TxId", "UETR"))]


def _is_day(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return _DAY.fullmatch(text) is not None


def _find_debtor(details: ElementTree.Element) -> str:
    """Return the debtor's name, which newer versions have one level deeper."""
    return _text(details, "RltdPties", "Dbtr", "Nm") or _text(details, "RltdPties", "Dbtr", "Pty", "Nm")


def _read_minor(text: str, minor_units: int, place: str) -> int:
    match = _AMOUNT.fullmatch(text)
    fraction = (match[2] or "").rstrip("0") if match else ""
    if match is None or len(fraction) > minor_units:
        raise StatementUnreadable(f"entry {place} has the amount {text[:32]!r}, which cannot be")
    minor = int(match[1] + fraction.ljust(minor_units, "0"))
    if not minor or minor * PICO // 10**minor_units > AMOUNT_PICO_MAX:
        raise StatementUnreadable(f"entry {place} has the amount {text[:32]!r}: it is 0, or above what is kept")
    return minor


def _children(element: ElementTree.Element, name: str) -> Iterator[ElementTree.Element]:
    return (child for child in element if child.tag.rpartition("}")[2] == name)


def _text(element: ElementTree.Element, *path: str) -> str:
    """Return the text of the first element at a path; empty if there is none."""
    for name in path:
        found = next(_children(element, name), None)
        if found is None:
            return ""
        element = found
    return (element.text or "").strip()
