#!/usr/bin/env python3
"""Check an invoice of Tollway without trusting Tollway. Python 3.9 or later, standard library only, beside tollway_verifier.py.

    python3 tollway_invoice_verifier.py EXPORT INVOICE [--digest HEX]

An export is what GET /v1/organization/periods/<id>/export answers (`tollway periods export`); an invoice, or a credit note that corrects
usage, is what GET /v1/organization/invoices/<id>/files/json answers (`tollway invoices download --format json`). The digest is the SHA-256
of the document that was published with it. Exit code: 0 if everything agrees, 1 at the first difference, which is printed, 2 if a file
cannot be read.

The export is computed again first, as tollway_verifier.py does. From its records and corrections follow the lines of the document:
quantity x unit price, rounded half up once for each; from these the allowances, the tax and the totals. The Merkle root on the document
is compared with that of the records. What a document says of its parties is theirs to compare.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from zoneinfo import ZoneInfo

_SPEC = importlib.util.spec_from_file_location("tollway_verifier", Path(__file__).with_name("tollway_verifier.py"))
verifier = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(verifier)
CLASSES, Difference, Unreadable = verifier.CLASSES, verifier.Difference, verifier.Unreadable
require, same = verifier.require, verifier.same


class Export(verifier.Export):
    """An export, with its usage and corrections as invoices bill them."""

    def __init__(self):
        super().__init__()
        self.billed = {}  # (late, model, tier, class, unit price): amount
        self.corrected, self.own = {}, set()  # event id: its corrections; and those of them that are booked in this period

    def take_event(self, row):
        super().take_event(row)
        event = verifier.Event(row, self)
        for name, _, unit, amount in event.lines:
            if amount:
                key = (event.ended_at < self.period["start_at"], event.model, event.price["service_tier"], name, unit)
                self.billed[key] = self.billed.get(key, 0) + amount
        if event.id in self.corrected:
            self.own.add(event.id)

    def take_adjustment(self, row):
        target = verifier.Event(row["target"], self)
        # An invoice is of the period in which its requests are booked. Exports of old versions do not say it: there it is the month.
        served = row["target"].get("period_at", day_of(target.ended_at, self.period["time_zone"])[:7])
        super().take_adjustment(row)
        self.corrected.setdefault(target.id, []).append((target.model, served, int(row["amount_pico"])))


# ---- The document --------------------------------------------------------------------------------------------------------

INVOICE_FORMAT = "tollway-invoice-1"
PER_MILLION = {"token", "character", "pixel"}
OTHER_UNITS = {"seconds": "second", "characters": "character", "images": "image", "pixels": "pixel", "request": "request"}
DECIMALS = {
    **dict.fromkeys(["BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG", "RWF", "UGX", "VND", "VUV", "XAF", "XOF", "XPF"], 0),
    **dict.fromkeys(["BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"], 3),
}


def half_up(amount, step):
    """The number of steps nearest to an amount, a tie away from zero."""
    whole = (2 * abs(amount) + step) // (2 * step)
    return -whole if amount < 0 else whole


def day_of(instant, zone):
    """The day of an instant (microseconds) in a time zone."""
    moment = datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(microseconds=instant)  # noqa: UP017 (Python 3.9)
    return moment.astimezone(ZoneInfo(zone)).date().isoformat()


class Invoice:
    """An invoice or credit note, by its canonical JSON. Raises Unreadable or Difference."""

    def __init__(self, text):
        try:
            self.document = document = verifier.parse(text)
            if document["format"] != INVOICE_FORMAT:
                raise Unreadable(f"the format is {document['format']!r}; this program reads {INVOICE_FORMAT!r}")
            self.digest = hashlib.sha256(text.rstrip("\n").encode()).hexdigest()
            self.step = 10 ** (12 - DECIMALS.get(document["currency"], 2))
            self.is_credit = document["kind"] == "credit_note"
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Unreadable(f"this is no invoice: {error!r}") from None

    def check_sums(self):
        """Each line, the tax and the totals, which follow from the document alone."""
        document, totals, tax = self.document, self.document["totals"], self.document["tax"]
        for line in document["lines"]:
            where, amount = f"line {line['number']}", int(line["quantity"]) * int(line["unit_price_pico"])
            same(f"{where}: quantity x unit price", int(line["amount_pico"]), amount)
            same(f"{where}: its net amount", line["net_minor"], half_up(amount, self.step))
            same(f"{where}: its residual", int(line["residual_pico"]), amount - line["net_minor"] * self.step)
            inside = document["service"]["first"] <= line["service"]["first"] <= line["service"]["last"] <= document["service"]["last"]
            require(inside, f"{where}: its period is not inside that of the document")
        left, left_minor = sum(int(line["amount_pico"]) for line in document["lines"]), max(totals["lines_minor"], 0)
        for each in document["allowances"]:
            amount = int(each["amount_pico"])
            left -= amount
            net = left_minor if left == 0 else min(half_up(amount, self.step), left_minor)
            same(f"the allowance {each['kind']}", each["net_minor"], net)
            left_minor -= net
        same("the sum of the lines", totals["lines_minor"], sum(line["net_minor"] for line in document["lines"]))
        same("the sum of the allowances", totals["allowances_minor"], sum(each["net_minor"] for each in document["allowances"]))
        same("the net amount", totals["net_minor"], totals["lines_minor"] - totals["allowances_minor"])
        same("the tax", totals["tax_minor"], half_up(totals["net_minor"] * tax["rate_bp"], 10_000))
        same("the tax by rate", [tax["taxable_minor"], tax["tax_minor"]], [totals["net_minor"], totals["tax_minor"]])
        same("the gross amount", totals["gross_minor"], totals["net_minor"] + totals["tax_minor"])

    def check_period(self, export):
        """Lines of usage and corrections, from the records of the period."""
        document, period = self.document, self.document["period"]
        require(period is not None, "the document bills no period: an export says nothing of it")
        same("the organization of the invoice", document["organization_id"], export.organization)
        same("the currency of the invoice", document["currency"], export.currency)
        for name in ("id", "start_at", "end_at", "time_zone", "events", "merkle_root", "period_hash"):
            same(f"the period of the invoice: its {name}", period[name], export.period[name])
        same("the Merkle root on the invoice", period["merkle_root"], export.tree.root().hex())
        sign = -1 if self.is_credit else 1
        usage = [line for line in document["lines"] if line["kind"] in ("usage", "late_usage")]
        if document["corrects"] is None and not self.is_credit:
            same("the lines of usage", [self.describe(line) for line in usage], self.list_usage(export))
            burned, unbilled = {}, f"{export.organization}/unbilled/{export.currency}"
            for amount, entries in export.credits.values():
                if unbilled in entries:
                    (grant,) = (account.split("/")[1].partition(":")[2] for account in entries if account != unbilled)
                    category = export.grants[grant].category
                    burned[category] = burned.get(category, 0) + int(amount)
            agreed = [[line["description"], int(line["amount_pico"])] for line in document["lines"] if line["kind"] == "contract"]
            added, given_back = self.list_contracts(export)
            same("the lines of contracts", agreed, added)
            burned.update(given_back)
            same("the allowances", {each["kind"]: int(each["amount_pico"]) for each in document["allowances"]}, burned)
        else:
            is_own = any(line["kind"] in ("usage", "late_usage", "contract") for line in document["lines"])
            require(document["cancels"] or not is_own, "a document that corrects another one bills usage, or contracts")
        sums = {}
        for event_id, corrections in export.corrected.items():
            for model, served, amount in corrections:
                where = "own" if event_id in export.own else served
                for place in {(model, where), (model, "own" if where == "own" else "earlier")}:
                    sums[place] = sums.get(place, 0) + amount
        for line in () if document["cancels"] else document["lines"]:
            if line["kind"] == "correction":
                found = [amount for (model, _), amount in sums.items() if model == line["model"]]
                where = f"line {line['number']}: what corrections of {line['model']} come to"
                require(sign * int(line["amount_pico"]) in found, f"{where} is {line['amount_pico']}, it should be one of {found}")

    def list_usage(self, export):
        """The lines of usage as they should be."""
        rows = []
        order = sorted(export.billed, key=lambda each: (each[0], each[1], each[2], CLASSES.index(each[3]), each[4]))
        for late, model, tier, name, unit_price in order:
            amount, unit = export.billed[late, model, tier, name, unit_price], OTHER_UNITS.get(name, "token")
            base = 1_000_000 if unit in PER_MILLION else 1
            rows.append(["late_usage" if late else "usage", model, tier, name, amount // unit_price, unit, base, unit_price, amount])
        return rows

    @staticmethod
    def list_contracts(export):
        """The lines of contracts, as description and amount, and the allowances for what they give back, by kind."""
        added, given_back = [], {}
        kinds = {"service_credit": "service_credit", "drawdown": "commitment"}
        for line in (line for part in export.charge[0]["parts"] for line in part["lines"]) if export.charge else ():
            amount, kind = int(line["amount_pico"]), line["kind"]
            if amount > 0 and kind != "lapse":
                name = line["name"] or ", ".join(filter(None, (line["model"], line["billing_class"])))
                added.append([f"{kind}: {name}" if name else kind, amount])
            elif amount < 0:
                kind = kinds.get(kind, "discount")
                given_back[kind] = given_back.get(kind, 0) - amount
        return added, given_back

    @staticmethod
    def describe(line):
        texts = [line["kind"], line["model"], line["service_tier"], line["billing_class"], int(line["quantity"]), line["unit"]]
        return [*texts, line["price_base"], int(line["unit_price_pico"]), int(line["amount_pico"])]

    def summary(self):
        gross, decimals = self.document["totals"]["gross_minor"], DECIMALS.get(self.document["currency"], 2)
        whole, rest = divmod(gross, 10**decimals)
        amount = f"{whole}.{rest:0{decimals}d}" if decimals else f"{whole}"
        return f"{self.document['kind']} {self.document['number']} agrees: {amount} {self.document['currency']}\ndigest {self.digest}"


# ---- The command line ----------------------------------------------------------------------------------------------------


def verify(export_path, invoice_path, digest):
    """Check both files; returns what to say. Raises Difference, Unreadable, OSError, UnicodeDecodeError."""
    with open(invoice_path, encoding="utf-8") as file:
        invoice = Invoice(file.read())
    export = Export()
    try:
        invoice.check_sums()
        with open(export_path, encoding="utf-8", newline="\n") as file:
            for line in file:
                export.read(line)
        export.check(None, None)
        invoice.check_period(export)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Unreadable(f"a file is not complete: {error!r}") from None
    if digest is not None:
        same("the digest that you gave", digest.lower(), invoice.digest)
    return f"{export.summary()}\n{invoice.summary()}"


def main(arguments):
    """Run; returns the exit code."""
    parser = argparse.ArgumentParser(description="Check an invoice of Tollway without trusting Tollway.")
    parser.add_argument("export", help="an export of the closed period that it bills")
    parser.add_argument("invoice", help="the canonical document")
    parser.add_argument("--digest", help="the digest that it must have, in hexadecimal")
    options = parser.parse_args(arguments)
    try:
        print(verify(options.export, options.invoice, options.digest))
    except Difference as difference:
        print(f"DIFFERENCE: {difference}")
        return 1
    except (Unreadable, OSError, UnicodeDecodeError) as error:
        print(f"cannot be read: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
