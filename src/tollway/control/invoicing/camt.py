"""Bank statements in the format camt.053 (ISO 20022, bank-to-customer statement): the credits that were booked, and
direct debits that came back.

Every version of the message is read, by the names of its elements without their namespace. Entries that are not booked yet, other
debits and reversals are counted and left to the bank's own view. Amounts are decimals, which become integers without a float.

A credit is known again by the bank's reference (`AcctSvcrRef`). Many banks write none, or the same placeholder into every entry; then by
its sender, its text and the sender's reference (`EndToEndId`). Credits of one statement that are equal in all of that are numbered, so that
each counts.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree

from tollway.domain.currencies import CURRENCIES
from tollway.domain.direct_debits import describe_reason
from tollway.domain.payments import parse_minor
from tollway.domain.periods import is_day
from tollway.domain.sepa import CURRENCY

STATEMENT_BYTES_MAX = 900_000
"""Largest file, which is one field of a request: about a thousand entries. A bank cuts longer statements into several."""

ENTRIES_MAX = 20_000
"""Most entries of a file: the smallest ones have about fifty bytes."""

ELEMENTS_MAX = 60_000
"""Elements of a file with their attributes: banks write about 30 bytes for each. Empty ones have five, and cost as much CPU to read."""

DEPTH_MAX = 64
"""Elements within each other: the standard has 15. What is deeper cannot be written again by a function that calls itself."""

NAMESPACES_MAX = 16
"""Namespaces of a file: the standard's, and a bank's own. To write an element in canonical form costs time for each that is declared."""

TEXT_MAX = 512
"""Characters of the remittance information that are kept."""

NAME_MAX = 64
"""Characters of the identification of a statement; the standard has 35."""

PLACEHOLDERS = frozenset({"NONREF", "NOREF", "NOTPROVIDED", "NOT PROVIDED"})
"""Texts that banks write where there is no reference."""


class BankCredit(NamedTuple):
    """A credit that a bank has booked. `id`: the same in every file that has it. `text`: the remittance information. `is_batch`: it is the
    sum of several transfers, of which the file does not tell the amounts. `end_to_end_id`: the sender's reference.
    `return_reason`: of a transfer of the account itself that came back, the code and words of the bank."""

    id: str
    amount_minor: int
    currency: str
    value_on: str
    debtor: str
    text: str
    is_batch: bool = False
    end_to_end_id: str = ""
    return_reason: str = ""


class BankDebit(NamedTuple):
    """A transfer that a bank has executed, in cents of the euro. `end_to_end_id`: its reference."""

    amount_minor: int
    end_to_end_id: str


class BankReturn(NamedTuple):
    """A direct debit that the bank of the debtor gave back, after it was collected. `end_to_end_id`: reference of the debit.
    `amount_minor`: of the debit; None where the entry does not tell it from charges. `reason`: code and words of the bank."""

    id: str
    amount_minor: int | None
    value_on: str
    end_to_end_id: str
    reason: str


class BankStatement(NamedTuple):
    """A statement of one account. `name`: as the bank calls it; some banks use their names again each year. `digest`: SHA-256 of
    its canonical XML. `debits`: transfers among `others` of which the file tells the reference. `others`: entries that are neither booked
    credits nor returned debits, and credits of nothing. `balances`: None where the bank does not state them."""

    iban: str
    name: str
    digest: str
    credits: list[BankCredit]
    returns: list[BankReturn]
    debits: list[BankDebit]
    others: int
    balances: "Balances | None"


class Balances(NamedTuple):
    """Booked balances of a statement, in the smallest unit of its currency; below zero they are owed to the bank. `closing_on`: day of the
    closing balance (YYYY-MM-DD)."""

    opening_minor: int
    closing_minor: int
    closing_on: str


class StatementUnreadable(ValueError):
    """The file is no camt.053, or has what it must not. The message says where."""


def read_statements(text: str) -> list[BankStatement]:
    """Return the statements of a file. Raises StatementUnreadable."""
    if len(text.encode(errors="surrogatepass")) > STATEMENT_BYTES_MAX:
        raise StatementUnreadable(f"the file is longer than {STATEMENT_BYTES_MAX} bytes")
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise StatementUnreadable("the file declares a document type, which no bank statement has")
    try:
        root = ElementTree.fromstring(text, ElementTree.XMLParser(target=_BoundedBuilder()))
    except StatementUnreadable:
        raise
    except (ElementTree.ParseError, ValueError) as error:
        raise StatementUnreadable(f"the file is no XML: {error}") from None
    statements = [_read_statement(each) for message in _children(root, "BkToCstmrStmt") for each in _children(message, "Stmt")]
    if not statements:
        raise StatementUnreadable("the file has no statement (BkToCstmrStmt/Stmt)")
    if sum(len(each.credits) + len(each.returns) + each.others for each in statements) > ENTRIES_MAX:
        raise StatementUnreadable(f"the file has more than {ENTRIES_MAX} entries")
    return statements


class _BoundedBuilder(ElementTree.TreeBuilder):
    """Builds the tree of a file up to DEPTH_MAX, ELEMENTS_MAX and NAMESPACES_MAX, beyond which it raises StatementUnreadable."""

    def __init__(self) -> None:
        super().__init__()
        self._depth = self._elements = 0
        self._namespaces = set[str]()

    def start(self, tag: Any, attrs: dict[Any, Any], /) -> ElementTree.Element:
        """Begin an element."""
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise StatementUnreadable(f"the file has more than {DEPTH_MAX} elements within each other")
        self._elements += 1 + len(attrs)
        if self._elements > ELEMENTS_MAX:
            raise StatementUnreadable(f"the file has more than {ELEMENTS_MAX} elements and attributes")
        self._namespaces.update(name.rpartition("}")[0] for name in (tag, *attrs))
        if len(self._namespaces) > NAMESPACES_MAX:
            raise StatementUnreadable(f"the file has more than {NAMESPACES_MAX} namespaces")
        return super().start(tag, attrs)

    def end(self, tag: Any, /) -> ElementTree.Element:
        """End an element."""
        self._depth -= 1
        return super().end(tag)


_ENTRY_NAMES = frozenset({"Amt", "CdtDbtInd", "RvslInd", "Sts", "BookgDt", "ValDt", "AcctSvcrRef"})
"""Elements of an entry that are read, beside its transactions: of each the first one."""


def _reduce_entry(entry: ElementTree.Element) -> ElementTree.Element:
    """Return what is read of an entry. It is looked through once for each of its transactions, of which there may be thousands."""
    named, details = dict[str, ElementTree.Element](), list[ElementTree.Element]()
    for child in entry:
        name = child.tag.rpartition("}")[2]
        if name == "NtryDtls":
            details.append(child)
        elif name in _ENTRY_NAMES:
            named.setdefault(name, child)
    reduced = ElementTree.Element(entry.tag)
    reduced.extend([*named.values(), *details])
    return reduced


def _read_statement(statement: ElementTree.Element) -> BankStatement:
    iban, name = _text(statement, "Acct", "Id", "IBAN"), _text(statement, "Id")
    if not iban or not name:
        raise StatementUnreadable("a statement has no IBAN or no identification")
    if len(name) > NAME_MAX:
        raise StatementUnreadable(f"the identification of a statement is longer than {NAME_MAX} characters")
    credits, returns, debits, others = list[BankCredit](), list[BankReturn](), list[BankDebit](), 0
    equals = Counter[str]()
    for number, whole in enumerate(_children(statement, "Ntry"), 1):
        entry = _reduce_entry(whole)
        status = _text(entry, "Sts", "Cd") or _text(entry, "Sts")
        if _text(entry, "CdtDbtInd") == "CRDT" and status == "BOOK" and _text(entry, "RvslInd") not in ("true", "1"):
            read = [_read_credit(each, iban, f"{name}/{number}", equals) for each in _split(entry)]
            credits += [each for each in read if each.amount_minor]
            others += sum(not each.amount_minor for each in read)
        elif _text(entry, "CdtDbtInd") == "DBIT" and status == "BOOK" and (found := _list_returned(entry)):
            returns += [_read_return(entry, each, iban, f"{name}/{number}", equals) for each in found]
        else:
            others += 1
            if _text(entry, "CdtDbtInd") == "DBIT" and status == "BOOK":
                debits += _list_debits(entry, f"{name}/{number}")
    canonical = ElementTree.canonicalize(ElementTree.tostring(statement, encoding="unicode"), strip_text=True)
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    return BankStatement(iban, name, digest, credits, returns, debits, others, _read_balances(statement, name))


def _read_balances(statement: ElementTree.Element, name: str) -> Balances | None:
    """Return the balances between which the booked entries lie; None where the bank does not state both, or has entries in another
    currency. Raises StatementUnreadable where the entries do not come to their difference: a part of the statement is missing."""
    opening = closing = None
    for each in _children(statement, "Bal"):
        match _text(each, "Tp", "CdOrPrtry", "Cd"):
            case "OPBD" | "PRCD" if opening is None:
                opening = each
            case "CLBD":
                closing = each
    if opening is None or closing is None:
        return None
    booked = [each for each in _children(statement, "Ntry") if (_text(each, "Sts", "Cd") or _text(each, "Sts")) == "BOOK"]
    amounts = [_find(each, "Amt") for each in (opening, closing, *booked)]
    currencies = {"" if each is None else each.get("Ccy", "") for each in amounts}
    if len(currencies) != 1 or not currencies <= CURRENCIES.keys():
        return None
    opening_minor, closing_minor, *moved = (_read_signed(each, f"balance or entry of {name}") for each in (opening, closing, *booked))
    if opening_minor + sum(moved) != closing_minor:
        raise StatementUnreadable(f"the entries of {name} do not come to the difference of its balances: a part of it is missing")
    closing_on = _text(closing, "Dt", "Dt") or _text(closing, "Dt", "DtTm")[:10]
    return Balances(opening_minor, closing_minor, closing_on) if is_day(closing_on) else None


def _read_signed(element: ElementTree.Element, place: str) -> int:
    """Return the amount of a balance or an entry, below zero for a debit."""
    amount = _find(element, "Amt")
    assert amount is not None, "the currency of each was read before"
    minor = _read_minor((amount.text or "").strip(), CURRENCIES[amount.get("Ccy", "")].minor_units, place)
    return -minor if _text(element, "CdtDbtInd") == "DBIT" else minor


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
    value_on = _read_day(entry, place)
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
        end_to_end_id=next((id for each in details if (id := _text(each, "Refs", "EndToEndId"))), "")[:TEXT_MAX],
        return_reason=next((reason for each in _list_returned(entry) if (reason := _read_reason(each))), ""),
    )


def _list_debits(entry: ElementTree.Element, place: str) -> list[BankDebit]:
    """Return the transfers of a debit in euros: of one, its amount is that of the entry unless it tells its own."""
    details, found = _list_details(entry), list[BankDebit]()
    for each in details:
        own = [amount for path in (("Amt",), ("AmtDtls", "TxAmt", "Amt")) if (amount := _find(each, *path)) is not None]
        amount = own[0] if own else _find(entry, "Amt") if len(details) == 1 else None
        reference = _text(each, "Refs", "EndToEndId")
        if amount is not None and amount.get("Ccy") == CURRENCY and reference and reference not in PLACEHOLDERS:
            found.append(BankDebit(_read_minor((amount.text or "").strip(), CURRENCIES[CURRENCY].minor_units, place), reference))
    return found


def _list_returned(entry: ElementTree.Element) -> list[ElementTree.Element]:
    """Return the transactions of an entry that came back, for a reason that the bank gives."""
    details = _list_details(entry)
    return [each for each in details if _text(each, "RtrInf", "Rsn", "Cd") or _text(each, "RtrInf", "Rsn", "Prtry")]


def _read_return(entry: ElementTree.Element, details: ElementTree.Element, iban: str, place: str, equals: Counter[str]) -> BankReturn:
    """Return a debit that came back. The amount of the entry may have the charges of both banks in it: the transaction tells that of the
    debit."""
    value_on, reference = _read_day(entry, place), _text(details, "Refs", "EndToEndId")[:TEXT_MAX]
    given = next((each for path in _ORIGINAL_AMOUNTS if (each := _find(details, *path)) is not None), None)
    amount_minor = None
    if given is not None and given.get("Ccy") == CURRENCY:
        amount_minor = _read_minor((given.text or "").strip(), CURRENCIES[CURRENCY].minor_units, place)
    code = _text(details, "RtrInf", "Rsn", "Cd") or _text(details, "RtrInf", "Rsn", "Prtry")
    identity = [_text(entry, "AcctSvcrRef"), reference, code, *(_text(details, "Refs", name) for name in ("AcctSvcrRef", "TxId", "MsgId"))]
    equal = json.dumps(["return", iban, value_on, amount_minor, *identity])
    equals[equal] += 1
    return BankReturn(
        id=hashlib.sha256(f"{equal}/{equals[equal]}".encode()).hexdigest()[:40],
        amount_minor=amount_minor,
        value_on=value_on,
        end_to_end_id=reference,
        reason=_read_reason(details),
    )


def _read_reason(details: ElementTree.Element) -> str:
    code = _text(details, "RtrInf", "Rsn", "Cd") or _text(details, "RtrInf", "Rsn", "Prtry")
    return describe_reason(code, _text(details, "RtrInf", "AddtlInf"))[:TEXT_MAX]


_ORIGINAL_AMOUNTS = (("AmtDtls", "InstdAmt", "Amt"), ("AmtDtls", "TxAmt", "Amt"), ("Amt",))


def _read_day(entry: ElementTree.Element, place: str) -> str:
    value_on = _text(entry, "ValDt", "Dt") or _text(entry, "BookgDt", "Dt") or _text(entry, "BookgDt", "DtTm")[:10]
    if not is_day(value_on):
        raise StatementUnreadable(f"entry {place} has no date, or one that is none: {value_on!r}")
    return value_on


def _find_identity(entry: ElementTree.Element, details: Sequence[ElementTree.Element], debtor: str, text: str) -> list[str]:
    """Return what distinguishes a credit from others of its account, day and amount."""
    given = (_text(entry, "AcctSvcrRef"), *(_text(each, "Refs", "AcctSvcrRef") for each in details))
    references = [each for each in given if each and each.upper() not in PLACEHOLDERS]
    if references:
        return ["reference", references[0]]
    return ["contents", debtor, text, *(_text(each, "Refs", name) for each in details for name in ("EndToEndId", "TxId", "UETR"))]


def _find_debtor(details: ElementTree.Element) -> str:
    """Return the debtor's name, which newer versions have one level deeper."""
    return _text(details, "RltdPties", "Dbtr", "Nm") or _text(details, "RltdPties", "Dbtr", "Pty", "Nm")


def _read_minor(text: str, minor_units: int, place: str) -> int:
    try:
        return parse_minor(text, minor_units)
    except ValueError as error:
        raise StatementUnreadable(f"entry {place} has the amount {text[:32]!r}, which cannot be: {error}") from None


def _children(element: ElementTree.Element, name: str) -> Iterator[ElementTree.Element]:
    return (child for child in element if child.tag.rpartition("}")[2] == name)


def _text(element: ElementTree.Element, *path: str) -> str:
    """Return the text of the first element at a path; empty if there is none."""
    found = _find(element, *path)
    return "" if found is None else (found.text or "").strip()


def _find(element: ElementTree.Element, *path: str) -> ElementTree.Element | None:
    """Return the first element at a path; None if there is none."""
    for name in path:
        found = next(_children(element, name), None)
        if found is None:
            return None
        element = found
    return element
