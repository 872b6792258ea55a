"""Files for the bank of the seller (ISO 20022): direct debits (pain.008.001.08, customer direct debit initiation) and credit transfers
(pain.001.001.09, customer credit transfer initiation) of SEPA.

Elements and their contents are those of the implementation guidelines of the European Payments Council for customers and banks. A group
(`PmtInf`) has the debits of one scheme and sequence type, or all transfers. `BtchBookg` is false: the bank is asked to book each one as an
entry of its own, by which it is found. The same debits or transfers give the same bytes.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from tollway.control.invoicing.xml_elements import element, group
from tollway.domain.billing_parties import LegalEntity
from tollway.domain.credit_transfers import CreditTransfer
from tollway.domain.direct_debits import Debit
from tollway.domain.money import format_minor
from tollway.domain.sepa import CURRENCY, write_text

DEBITS, TRANSFERS = (f"urn:iso:std:iso:20022:tech:xsd:{name}" for name in ("pain.008.001.08", "pain.001.001.09"))
"""Namespaces of the formats."""

NAME_MAX = 70
TEXT_MAX = 140


def render_debits(message_id: str, seller: LegalEntity, collect_on: str, debits: Sequence[Debit], now: int) -> str:
    """Return a file with some debits. `message_id`: at most 32 characters. `collect_on`: the day of collection (YYYY-MM-DD)."""
    groups: dict[tuple[str, str], list[Debit]] = {}
    for debit in debits:
        groups.setdefault((str(debit.mandate.scheme), str(debit.sequence)), []).append(debit)
    body = group(
        "CstmrDrctDbtInitn",
        _header(message_id, seller, debits, now),
        *(
            _group(f"{message_id}-{number}", seller, collect_on, scheme, sequence, members)
            for number, ((scheme, sequence), members) in enumerate(sorted(groups.items()), 1)
        ),
    )
    return _document(DEBITS, body)


def render_transfers(message_id: str, seller: LegalEntity, execute_on: str, transfers: Sequence[CreditTransfer], now: int) -> str:
    """Return a file with some transfers. `message_id`: at most 32 characters. `execute_on`: the day of execution (YYYY-MM-DD)."""
    body = group(
        "CstmrCdtTrfInitn",
        _header(message_id, seller, transfers, now),
        group(
            "PmtInf",
            element("PmtInfId", f"{message_id}-1"),
            element("PmtMtd", "TRF"),
            element("BtchBookg", "false"),
            *_list_sums(transfers),
            group("PmtTpInf", group("SvcLvl", element("Cd", "SEPA"))),
            group("ReqdExctnDt", element("Dt", execute_on)),
            group("Dbtr", element("Nm", write_text(seller.name, NAME_MAX))),
            group("DbtrAcct", group("Id", element("IBAN", seller.bank_account.iban))),
            group("DbtrAgt", _bank(seller.bank_account.bic)),
            element("ChrgBr", "SLEV"),
            *(_transfer(each) for each in transfers),
        ),
    )
    return _document(TRANSFERS, body)


def _header(message_id: str, seller: LegalEntity, orders: Sequence[Debit | CreditTransfer], now: int) -> str:
    made_at = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=now)).strftime("%Y-%m-%dT%H:%M:%SZ")
    return group(
        "GrpHdr",
        element("MsgId", message_id),
        element("CreDtTm", made_at),
        *_list_sums(orders),
        group("InitgPty", element("Nm", write_text(seller.name, NAME_MAX))),
    )


def _document(namespace: str, body: str) -> str:
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<Document xmlns="{namespace}">{body}</Document>\n'


def _list_sums(orders: Sequence[Debit | CreditTransfer]) -> tuple[str, str]:
    total = sum(each.amount_minor for each in orders)
    return element("NbOfTxs", str(len(orders))), element("CtrlSum", format_minor(total, 2))


def _group(id: str, seller: LegalEntity, collect_on: str, scheme: str, sequence: str, debits: Sequence[Debit]) -> str:
    creditor = group("Othr", element("Id", seller.creditor_id), group("SchmeNm", element("Prtry", "SEPA")))
    return group(
        "PmtInf",
        element("PmtInfId", id),
        element("PmtMtd", "DD"),
        element("BtchBookg", "false"),
        *_list_sums(debits),
        group(
            "PmtTpInf",
            group("SvcLvl", element("Cd", "SEPA")),
            group("LclInstrm", element("Cd", scheme)),
            element("SeqTp", sequence),
        ),
        element("ReqdColltnDt", collect_on),
        group("Cdtr", element("Nm", write_text(seller.name, NAME_MAX))),
        group("CdtrAcct", group("Id", element("IBAN", seller.bank_account.iban))),
        group("CdtrAgt", _bank(seller.bank_account.bic)),
        element("ChrgBr", "SLEV"),
        group("CdtrSchmeId", group("Id", group("PrvtId", creditor))),
        *(_debit(each) for each in debits),
    )


def _bank(bic: str) -> str:
    """Return a bank: by its BIC, or as one that the IBAN tells."""
    return group("FinInstnId", element("BICFI", bic) or group("Othr", element("Id", "NOTPROVIDED")))


def _debit(debit: Debit) -> str:
    mandate = debit.mandate
    return group(
        "DrctDbtTxInf",
        group("PmtId", element("EndToEndId", debit.end_to_end_id)),
        element("InstdAmt", format_minor(debit.amount_minor, 2), Ccy=CURRENCY),
        group("DrctDbtTx", group("MndtRltdInf", element("MndtId", mandate.reference), element("DtOfSgntr", mandate.signed_on))),
        group("DbtrAgt", _bank(mandate.bic)),
        group("Dbtr", element("Nm", write_text(debit.debtor, NAME_MAX))),
        group("DbtrAcct", group("Id", element("IBAN", mandate.iban))),
        group("RmtInf", element("Ustrd", write_text(debit.end_to_end_id, TEXT_MAX))),
    )


def _transfer(transfer: CreditTransfer) -> str:
    return group(
        "CdtTrfTxInf",
        group("PmtId", element("EndToEndId", transfer.end_to_end_id)),
        group("Amt", element("InstdAmt", format_minor(transfer.amount_minor, 2), Ccy=CURRENCY)),
        group("CdtrAgt", group("FinInstnId", element("BICFI", transfer.bic))),
        group("Cdtr", element("Nm", write_text(transfer.holder, NAME_MAX))),
        group("CdtrAcct", group("Id", element("IBAN", transfer.iban))),
        group("RmtInf", element("Ustrd", transfer.text)),
    )
