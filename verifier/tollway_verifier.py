#!/usr/bin/env python3
"""Check a bill of Tollway without trusting Tollway. One file, Python 3.9 or later, standard library only.

    python3 tollway_verifier.py EXPORT [--hash HEX]           a closed billing period, computed again from its records
    python3 tollway_verifier.py --proof FILE [--root HEX]     one request's proof that it is in a period

An export is what GET /v1/organization/periods/<id>/export answers (`tollway periods export`); a proof is what
GET /v1/organization/periods/<id>/proofs/<request id> answers (`tollway periods proof`). Hash and root are those that
were published when the period was closed: the hash covers all of it, the root its requests. Exit code: 0 if everything agrees, 1 at the
first difference, which is printed, 2 if a file cannot be read.

What is computed again, from the records that the gateways wrote ("payload", byte for byte) and the published prices alone:

  1. Every record's SHA-256, whose it is, when it was served, and that no record stands twice.
  2. What of it is billed (by its outcome policy) and what that costs: quantity x unit price, integers of 10**-12 of the currency.
  3. The Merkle tree (RFC 6962) over all records, and its root.
  4. Every transaction of the ledger: its id follows from its cause, it books exactly the records that it names, it sums to zero; every
     record that costs something is booked exactly once.
  5. Every correction: at the price of the record that it corrects, never more back than was billed, approved by another key.
  6. That each unit price is the published one at the discount of the organization's price list.
  7. Which grants of credit the period's usage burns, in the order of burning, and what the close of the period booked on each: that, and
     what was left of those that had ended.
  8. What contracts add to the period: tiers, free units, discounts, service credits, commitments, fees and minimums, from its sums. What a
     commitment had come to before the period is taken from the export.
  9. The period's totals, what it moved on each account, and the digests of its corrections, of the prices, terms and outcome policies
     that apply in it, of credit, of contracts, and of the gateways' watermarks.

What this cannot see is a request that was never recorded: keep your own list of request ids (the header x-request-id).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from bisect import bisect_right

FORMAT = "tollway-audit-3"
FIRST_CLASSES = ("input", "cached_input", "output", "reasoning", "request")

# Classes that a price may leave out, and the class whose price each has then; None: it costs nothing.
LATER_CLASSES = {
    "cache_write": "input",
    "audio_input": "input",
    "image_input": "input",
    "audio_output": "output",
    "image_output": "output",
    "seconds": None,
    "characters": None,
    "images": None,
    "pixels": None,
}
CLASSES = (*FIRST_CLASSES[:-1], *LATER_CLASSES, "request")

# How long after a price or terms ended a gateway may still admit by them: its snapshot may be 24 hours old, clocks 10 minutes apart.
CLOCKS_APART_US = 600_000_000
PRICE_LAG_US = 24 * 3600 * 1_000_000 + CLOCKS_APART_US

# Credit: usage burns it by the minute of its admission. The platform's account that bears a grant, and an instant after all others.
MINUTE_US = 60_000_000
FUNDING = {"paid": "prepayments", "promotional": "promotional_expense", "goodwill": "goodwill_expense"}
NEVER = 2**53 - 1


class Difference(Exception):
    """Something is not what it should be."""


class Unreadable(Exception):
    """The file is not what it is taken for."""


def require(condition, text):
    """Raise Difference unless `condition` holds."""
    if not condition:
        raise Difference(text)


def same(what, found, right):
    """Raise Difference unless what stands in the file is what it should be."""
    if found != right:
        raise Difference(f"{what} is {found!r}, it should be {right!r}")


def once(pairs):
    """A JSON object in which no name may stand twice."""
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a name stands twice in an object")
    return dict(pairs)


def parse(text):
    """The value of a strict JSON text. Raises ValueError, as `int` does for a number with a fraction."""
    return json.loads(text, object_pairs_hook=once, parse_float=int, parse_constant=int)


def write(value):
    """The canonical JSON of a value: no spaces, fields in the order in which they stand."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


# ---- The Merkle tree of RFC 6962, section 2.1 ---------------------------------------------------------------------------


def hash_node(left, right):
    return hashlib.sha256(b"\x01" + left + right).digest()


class Tree:
    """The root over leaves as they come, holding one hash for each power of two in their number."""

    def __init__(self):
        self.size = 0
        self.stack = []  # roots of full subtrees, the largest first

    def add(self, leaf):
        node, size = hashlib.sha256(b"\x00" + leaf).digest(), self.size
        while size & 1:
            node, size = hash_node(self.stack.pop(), node), size >> 1
        self.stack.append(node)
        self.size += 1

    def root(self):
        if not self.stack:
            return hashlib.sha256().digest()
        node = self.stack[-1]
        for left in reversed(self.stack[:-1]):
            node = hash_node(left, node)
        return node


def root_from(leaf, index, size, path):  # RFC 9162, section 2.1.3.2
    """The root that a proof leads to; None if it cannot be one."""
    if not 0 <= index < size:
        return None
    node, last, result = index, size - 1, hashlib.sha256(b"\x00" + leaf).digest()
    for sibling in path:
        if last == 0:
            return None
        if node & 1 or node == last:
            result = hash_node(sibling, result)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            result = hash_node(result, sibling)
        node, last = node >> 1, last >> 1
    return result if last == 0 else None


def hash_statement(statement):
    """The hash of a JSON object: names in order, without spaces, all text ASCII."""
    return hashlib.sha256(json.dumps(statement, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def hash_price(price, terms_valid_from):
    """The hash of a price and of the terms by which it was paid, as a record carries it."""
    return hash_statement({**price, "terms_valid_from": terms_valid_from})


def discounted(unit, price_list):
    """A published unit price on a price list: <book> at full price, <book>-<basis points> at a discount, rounded half to even."""
    discount = int(price_list.partition("-")[2] or 0)
    whole, rest = divmod(unit * (10_000 - discount), 10_000)
    return whole + (rest > 5_000 or (rest == 5_000 and whole % 2))


# ---- What a record costs -----------------------------------------------------------------------------------------------


def bill(record, policy):
    """The quantities that are billed of a record, by class: all of them, or none, and the request itself if it was completed.

    Nothing where it was sent with a test key, or to an endpoint that the policy leaves out.
    """
    used = record.get("used", {})
    used = {**used, **used.get("other", {})}
    tokens = {name: used.get(name, 0) for name in CLASSES[:-1]}
    require(all(type(count) is int and count >= 0 for count in tokens.values()), "a quantity is no count")
    outcome = record["outcome"]
    delivered = tokens["output"] + tokens["reasoning"] + tokens["audio_output"] + tokens["image_output"] > 0
    if record["admit"].get("test") or record["admit"]["endpoint"] in policy["unbilled_endpoints"]:
        return dict.fromkeys(CLASSES, 0)
    if outcome in policy["bills"] or (outcome in policy["bills_after_first_token"] and delivered):
        return {**tokens, "request": 1 if outcome in policy["bills_request"] else 0}
    return dict.fromkeys(CLASSES, 0)


def units_of(stated):
    """The unit price of every class, given those that a price states."""
    units = {name: int(stated[name]) for name in FIRST_CLASSES}
    for name, base in LATER_CLASSES.items():
        units[name] = int(stated[name]) if name in stated else units[base] if base else 0
    return units


def rate(quantities, price):
    """The rated lines: (class, quantity, unit price, amount) for each class that is billed."""
    lines, units = [], units_of(price["unit_price_pico"])
    for name in CLASSES:
        quantity, unit = quantities.get(name, 0), units[name]
        if quantity and (unit or name != "request"):
            lines.append((name, quantity, unit, quantity * unit))
    return lines


def amounts_of(lines):
    """Return the amount of each class, also of those without lines."""
    found = dict.fromkeys(CLASSES, 0)
    for name, _, _, amount in lines:
        found[name] += amount
    return found


class Event:
    """A record with all that follows from it. Raises Difference where the export says otherwise."""

    def __init__(self, row, export):
        payload = row["payload"].encode()
        record = parse(payload)
        admit = record["admit"]
        self.id = admit["request_id"]
        self.place = (row["node_id"], row["epoch"], row["seq"])
        self.model = admit["model"]
        self.is_test = admit.get("test", False)
        self.ended_at = record["ended_at"]
        where = f"event {self.id}"
        same(f"{where}: its organization", admit["organization_id"], export.organization)
        self.price = export.prices.get(admit["price_version"])
        require(self.price is not None, f"{where}: its price {admit['price_version']} is not in the export")
        same(f"{where}: the model of its price", self.price["model"], self.model)
        tier = admit.get("service_tier", "standard")
        same(f"{where}: the service tier of its price", self.price["service_tier"], tier)
        same(f"{where}: the currency of its price", self.price["currency"], export.currency)
        export.check_admission(self.price, admit, where)
        policy = export.policies.get(admit["outcome_policy"])
        require(policy is not None, f"{where}: its outcome policy {admit['outcome_policy']} is not in the export")
        self.tier, self.outcome, self.admitted_at = tier, record["outcome"], admit["admitted_at"]
        self.first_token_at = record.get("first_token_at")
        self.lines = rate(bill(record, policy), self.price)
        self.amounts = amounts_of(self.lines)
        self.total = sum(self.amounts.values())
        self.burns = (admit["admitted_at"] // MINUTE_US * MINUTE_US, admit["project_id"], self.model)
        stated = {**dict.fromkeys(LATER_CLASSES, "0"), **row["amounts_pico"]}
        same(f"{where}: its amounts", stated, {name: str(pico) for name, pico in self.amounts.items()})
        self.leaf = write(
            {
                "event_id": self.id,
                "content_hash": hashlib.sha256(payload).hexdigest(),
                "organization_id": admit["organization_id"],
                "project_id": admit["project_id"],
                "key_id": admit["key_id"],
                "model": self.model,
                "service_tier": tier,
                "admitted_at": admit["admitted_at"],
                "ended_at": self.ended_at,
                "outcome": record["outcome"],
                "outcome_policy": admit["outcome_policy"],
                "price_version": admit["price_version"],
                "currency": export.currency,
                "lines": [
                    {"billing_class": name, "quantity": quantity, "unit_price_pico": str(unit), "amount_pico": str(amount)}
                    for name, quantity, unit, amount in self.lines
                ],
                "amount_pico": str(self.total),
            }
        )


# ---- The ledger --------------------------------------------------------------------------------------------------------


def transaction_id(instant, cause):
    """48 bits of the millisecond of an instant, and 80 bits of the SHA-256 over the cause."""
    return f"tx_{instant // 1000 & 0xFFFFFFFFFFFF:012x}{hashlib.sha256(cause.encode()).hexdigest()[:20]}"


class Booking:
    """A transaction for events of one epoch, and what those of the export that it names come to."""

    def __init__(self, row):
        self.id = row["id"]
        self.cause = {name: row["cause"][name] for name in ("node_id", "epoch", "first_seq", "last_seq", "events")}
        self.entries = entries_of(row)
        self.events, self.first, self.last, self.ended_at = 0, 2**63, -1, 0
        self.costs = {}

    def add(self, event):
        """Add the next event. Events arrive in order of id, not of seq."""
        seq = event.place[2]
        self.events, self.first = self.events + 1, min(self.first, seq)
        if seq > self.last:
            self.last, self.ended_at = seq, event.ended_at
        for name, amount in event.amounts.items():
            if amount:
                self.costs[event.model, name] = self.costs.get((event.model, name), 0) + amount

    def check(self, export):
        """Compare with what it says."""
        cause, where = self.cause, f"transaction {self.id}"
        same(f"{where}: its number of events", cause["events"], self.events)
        same(f"{where}: its first and last seq", [cause["first_seq"], cause["last_seq"]], [self.first, self.last])
        records = f"{cause['node_id']}/{cause['epoch']}/{cause['first_seq']}/{cause['last_seq']}"
        text = f"usage/{export.organization}/{records}/{export.period['start_at']}"
        same(f"{where}: its id", self.id, transaction_id(self.ended_at, text))
        right = {f"platform/revenue:{model}:{name}/{export.currency}": -amount for (model, name), amount in self.costs.items()}
        right[f"{export.organization}/unbilled/{export.currency}"] = sum(self.costs.values())
        same(f"{where}: what it books", self.entries, right)


def entries_of(row):
    """The entries of a transaction by account. Raises Difference unless they sum to zero."""
    entries = {}
    for entry in row["entries"]:
        require(entry["account"] not in entries, f"transaction {row['id']} has two entries on {entry['account']}")
        entries[entry["account"]] = int(entry["amount_pico"])
    same(f"transaction {row['id']}: the sum of its entries", sum(entries.values()), 0)
    return entries


# ---- Credit ------------------------------------------------------------------------------------------------------------


class Grant:
    """Credit of which something was left before the period."""

    def __init__(self, row):
        self.id, self.category, self.created_at, self.models = row["id"], row["category"], row["created_at"], row["models"]
        self.project, self.effective_at, self.voided_at = row["project_id"], row["effective_at"], row["voided_at"]
        self.left = int(row["amount_pico"]) - int(row["used_before_pico"])
        require(self.category in FUNDING and 0 < self.left <= int(row["amount_pico"]), f"grant {self.id} has nothing left, or too much")
        expires_at = NEVER if row["expires_at"] is None else row["expires_at"]
        self.ends_at = expires_at if self.voided_at is None else min(expires_at, self.voided_at)
        is_scoped = self.project is not None or self.models is not None
        self.order = (not is_scoped, row["priority"], expires_at, row["cost_basis_bp"], self.created_at, self.id)

    def covers(self, minute_at, project, model):
        """Return whether usage of a minute can burn it."""
        is_in_time = self.effective_at <= minute_at < self.ends_at
        return is_in_time and self.project in (None, project) and (self.models is None or model in self.models)


def burn(grants, usage):
    """Return what usage, by (minute, project, model), burns of grants in their order, by id; take it from what is left of each."""
    ordered, burned = sorted(grants, key=lambda each: each.order), {}
    for place in sorted(usage):
        pico = usage[place]
        for grant in ordered:
            if pico == 0:
                break
            part = min(pico, grant.left)
            if part > 0 and grant.covers(*place):
                grant.left, pico = grant.left - part, pico - part
                burned[grant.id] = burned.get(grant.id, 0) + part
    return burned


# ---- Contracts ---------------------------------------------------------------------------------------------------------

FAILED = ("upstream_error", "timeout", "gateway_crash")
ON_USAGE = ("tiered_price", "free_units", "discount", "service_credit", "drawdown")
NO_SKU = ("", "", "")


def rate_tiers(price, quantity):
    """Return what a quantity costs by the tiers of a price."""
    amount = below = 0
    for tier in price["tiers"]:
        edge = quantity if tier["up_to"] is None else min(quantity, tier["up_to"])
        if price["schedule"] == "volume" and edge < quantity:
            continue
        if price["schedule"] == "volume":
            return quantity * int(tier["unit_price_pico"])
        amount, below = amount + (edge - below) * int(tier["unit_price_pico"]), edge
    return amount


def sku_of(row):
    """The model, tier and class of a tiered price or of free units."""
    return (row["model"], row["service_tier"], row["billing_class"])


class Contract:
    """A contract that covers a part of the period, with the usage of that part."""

    def __init__(self, row, period):
        self.id, self.terms, self.start_at, self.end_at = row["id"], row["terms"], row["valid_from"], row["valid_until"]
        self.span = (period["start_at"], period["end_at"])
        self.is_first, self.is_last = self.start_at >= self.span[0], self.end_at is not None and self.end_at <= self.span[1]
        self.start_at = max(self.start_at, self.span[0])
        self.end_at = self.span[1] if self.end_at is None else min(self.end_at, self.span[1])
        require(self.start_at < self.end_at, f"contract {self.id} is not valid in the period")
        self.consumed, self.drawn = int(row["consumed_before_pico"]), int(row["drawn_before_pico"])
        self.usage, self.measures = {}, [[0, 0] for _ in self.terms["service_levels"]]
        require(self.consumed >= 0 and self.drawn >= 0, f"contract {self.id} came to less than nothing before the period")

    def add(self, event):
        """Add an event that ended in the part; a late one counts at the start of the period."""
        if not self.start_at <= max(event.ended_at, self.span[0]) < self.end_at:
            return
        for name, quantity, _, amount in event.lines:
            if amount:
                total = self.usage.setdefault((event.model, event.tier, name), [0, 0])
                total[0], total[1] = total[0] + quantity, total[1] + amount
        for level, measure in zip(self.terms["service_levels"], self.measures):  # noqa: B905 (Python 3.9)
            if level["objective"] == "availability":
                is_counted, is_met = True, event.outcome not in FAILED
            else:
                is_counted = event.first_token_at is not None
                is_met = is_counted and event.first_token_at - event.admitted_at <= level["within_ms"] * 1000
            if is_counted and not event.is_test:
                measure[0], measure[1] = measure[0] + 1, measure[1] + is_met

    def prorate(self, amount):
        """The share of an amount for the part, by time."""
        start_at, length = self.span[0], self.span[1] - self.span[0]
        return amount * (self.end_at - start_at) // length - amount * (self.start_at - start_at) // length

    def charge(self, owed):
        """The part as it should be, and how much may be given back after it. `owed`: how much it may give back."""
        terms, lines = self.terms, []

        def line(kind, amount, quantity=0, sku=NO_SKU, name=""):
            model, tier, billing_class = sku
            row = {"kind": kind, "amount_pico": str(amount), "model": model, "service_tier": tier, "billing_class": billing_class}
            lines.append({**row, "quantity": str(quantity), "name": name})

        def give_back(kind, amount, quantity=0, sku=NO_SKU):
            nonlocal owed
            amount = min(amount, owed)
            if amount > 0:
                owed -= amount
                line(kind, -amount, quantity, sku)

        def changed():
            return sum(int(each["amount_pico"]) for each in lines)

        for price in sorted(terms["tiered_prices"], key=sku_of):
            quantity, amount = self.usage.get(sku_of(price), (0, 0))
            change = rate_tiers(price, quantity) - amount
            if change > 0:
                owed += change
                line("tiered_price", change, quantity, sku_of(price))
            give_back("tiered_price", -change, quantity, sku_of(price))
        for free in sorted(terms["free_units"], key=sku_of):
            total, amount = self.usage.get(sku_of(free), (0, 0))
            quantity = min(self.prorate(int(free["quantity"])), total)
            if quantity:
                give_back("free_units", amount * quantity // total, quantity, sku_of(free))
        used = sum(amount for _, amount in self.usage.values())
        give_back("discount", (used + changed()) * terms["discount_bp"] // 10_000)
        net = used + changed()
        for level, (counted, met) in zip(terms["service_levels"], self.measures):  # noqa: B905 (Python 3.9)
            if met * 10_000 < counted * level["target_bp"]:
                give_back("service_credit", net * level["credit_bp"] // 10_000, counted - met)
        commitment = terms["commitment"] or {"amount_pico": "0", "is_prepaid": False}
        committed, is_prepaid, drawn = int(commitment["amount_pico"]), commitment["is_prepaid"], self.drawn
        if is_prepaid:
            before = changed()
            give_back("drawdown", min(net, committed - drawn))
            drawn += before - changed()
        for fee in terms["fees"]:
            seats = terms["seats"] if fee["is_per_seat"] else 0
            amount = self.prorate(int(fee["amount_pico"]) * (seats or 1))
            if amount:
                line("seat_fee" if seats else "platform_fee", amount, seats, name=fee["name"])
        missing = self.prorate(int(terms["minimum_pico"])) - net
        if missing > 0:
            line("minimum", missing)
        if is_prepaid and self.is_first:
            line("prepayment", committed)
        if is_prepaid and self.is_last and committed > drawn:
            line("lapse", committed - drawn)
        if committed and not is_prepaid and self.is_last and committed > self.consumed + net:
            line("true_up", committed - self.consumed - net)
        part = {
            "contract_id": self.id,
            "start_at": self.start_at,
            "end_at": self.end_at,
            "used_pico": str(used),
            "net_pico": str(net),
            "consumed_before_pico": str(self.consumed),
            "drawn_before_pico": str(self.drawn),
            "measures": [{"counted": counted, "met": met} for counted, met in self.measures],
            "lines": lines,
        }
        return part, owed


# ---- An export ---------------------------------------------------------------------------------------------------------

# Order of lines. Those of CONDITIONS are what events were admitted under: the hash of the period covers them by a digest.
CONDITIONS = ("outcome_policy", "price", "terms")
ORDER = (
    "export",
    "organization",
    "period",
    *CONDITIONS,
    "transaction",
    "grant",
    "credit",
    "contract",
    "contract_charge",
    "adjustment",
    "event",
    "account",
    "end",
)


class Export:
    """An export as it is read, line by line. Memory grows with the transactions, not with the events; where the organization has credit,
    also with the minutes, projects and models in which it used something."""

    def __init__(self):
        self.lines = 0
        self.rank = -1
        self.organization = self.currency = ""
        self.period = {}
        self.policies = {}
        self.prices = {}
        self.terms = []
        self.conditions_digest = hashlib.sha256()
        self.admissions = {}  # (price, hash that records carry): from when to when requests can have been admitted under both
        self.by_epoch = {}  # (node, epoch): its transactions for events
        self.firsts = {}  # the same in order of their first seq, once they are complete
        self.corrections = {}  # adjustment id: its transaction
        self.transactions = set()
        self.tree = Tree()
        self.last_event = ""
        self.late = 0
        self.totals = dict.fromkeys(CLASSES, 0)
        self.moved, self.accounts = {}, {}
        self.adjustments, self.adjusted, self.adjustments_digest = 0, 0, hashlib.sha256()
        self.adjusted_own = 0  # by corrections of the period's own events
        self.grants, self.credits, self.usage, self.credits_digest = {}, {}, {}, hashlib.sha256()  # usage: what each place costs
        self.contracts, self.charge, self.contracts_digest = [], None, hashlib.sha256()
        self.burned = self.contracts_total = 0
        self.given, self.targets = {}, {}  # event id: what corrections booked here add to it; its leaf, until it is met
        self.target_periods = {}  # event id: the start of the period in which it is booked, until it is met
        self.ended = False

    def read(self, line):
        """Read one line."""
        require(not self.ended, "something follows the end")
        try:
            row = parse(line)
            kind = row.pop("type")
            rank = ORDER.index(kind)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Unreadable(f"line {self.lines + 1} is no line of an export: {error}") from None
        require(rank >= self.rank and (self.lines > 0 or rank == 0), f"line {self.lines + 1} ({kind}) stands in the wrong place")
        self.rank = rank
        if kind in CONDITIONS:
            self.conditions_digest.update(write({"type": kind, **row}) + b"\n")
        if kind in ("grant", "credit"):
            self.credits_digest.update(write({"type": kind, **row}) + b"\n")
        if kind in ("contract", "contract_charge"):
            self.contracts_digest.update(write({"type": kind, **row}) + b"\n")
        try:
            getattr(self, f"take_{kind}")(row)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Difference(f"line {self.lines + 1} ({kind}) is not complete: {error!r}") from None
        self.lines += 1

    def take_export(self, row):
        if row["format"] != FORMAT:
            raise Unreadable(f"the format is {row['format']!r}; this program reads {FORMAT!r}")

    def take_organization(self, row):
        self.organization, self.currency = row["id"], row["currency"]

    def take_period(self, row):
        names = ("events", "merkle_root", "amounts_pico", "adjustments", "adjustments_digest", "adjustments_pico", "conditions_digest")
        self.period = {**row, **{name: row[name] for name in names}}
        same("the hash of the period", row["period_hash"], hash_statement({name: row[name] for name in row if name != "period_hash"}))
        same("the organization of the period", [row["organization_id"], row["currency"]], [self.organization, self.currency])
        require(row["start_at"] < row["end_at"] <= row["frozen_at"] <= row["closed_at"], "the period was closed before it was over")
        digest = hashlib.sha256(f"period/{self.organization}/{row['start_at']}".encode()).hexdigest()
        same("the id of the period", row["id"], f"period_{max(row['start_at'], 0) // 1000 & 0xFFFFFFFFFFFF:012x}{digest[:20]}")
        watermarks = hashlib.sha256()
        for epoch in row["report"]["epochs"]:
            where = f"epoch {epoch['node_id']}/{epoch['epoch']}"
            if epoch["cover"] == "tick":
                require(epoch["known_until"] >= row["end_at"], f"{where} is not known up to the end of the period")
                require(epoch["known_until"] <= row["frozen_at"] + CLOCKS_APART_US, f"{where} is known up to an instant in the future")
            else:
                require(epoch["cover"] == "close" or "lost" in epoch, f"{where} is not covered")
            if "lost" in epoch:
                lost = epoch["lost"]
                require(lost["approver"] and lost["approver"] != lost["actor"], f"{where} was declared lost by one operator alone")
            watermarks.update(f"{epoch['node_id']} {epoch['epoch']} {epoch['next_seq']} {epoch['chain']}\n".encode())
        same("the digest of the watermarks", row["watermark_digest"], watermarks.hexdigest())

    def take_outcome_policy(self, row):
        self.policies[row["version"]] = row

    def take_price(self, row):
        require(row["id"] not in self.prices, f"price {row['id']} stands twice")
        units = units_of(row["unit_price_pico"])
        require(all(unit >= 0 for unit in units.values()), f"price {row['id']} is below zero")
        compiled = {name: discounted(unit, row["list"]) for name, unit in units_of(row["published_unit_price_pico"]).items()}
        same(f"price {row['id']}: its unit prices, at the discount of the list {row['list']},", units, compiled)
        self.prices[row["id"]] = row

    def take_terms(self, row):
        self.terms.append(row)

    def check_admission(self, price, admit, where):
        """Compare the hash that a record carries with its price and terms, and the instant of its admission with the time of both."""
        place = (price["id"], admit["price_hash"])
        if place not in self.admissions:
            stated = {name: value for name, value in price.items() if name not in ("valid_until", "published_unit_price_pico")}
            found = [
                terms
                for terms in self.terms
                if terms["list"] == price["list"] and hash_price(stated, terms["valid_from"]) == admit["price_hash"]
            ]
            require(found, f"{where}: its price and terms are not those under which it was admitted")
            ends = [row["valid_until"] for row in (price, found[0]) if row["valid_until"] is not None]
            self.admissions[place] = (max(price["valid_from"], found[0]["valid_from"]), min(ends) + PRICE_LAG_US if ends else None)
        first, end = self.admissions[place]
        require(first <= admit["admitted_at"], f"{where}: its price was not valid yet when it was admitted")
        require(end is None or admit["admitted_at"] < end, f"{where}: its price was not valid any more when it was admitted")

    def take_transaction(self, row):
        require(row["id"] not in self.transactions, f"transaction {row['id']} stands twice")
        self.transactions.add(row["id"])
        cause = row["cause"]
        require(cause["kind"] in ("usage", "adjustment"), f"transaction {row['id']} has a cause of no known kind")
        if cause["kind"] == "usage":
            self.by_epoch.setdefault((cause["node_id"], cause["epoch"]), []).append(Booking(row))
        else:
            require(cause["adjustment_id"] not in self.corrections, f"adjustment {cause['adjustment_id']} is booked twice")
            self.corrections[cause["adjustment_id"]] = row
        for account, amount in entries_of(row).items():
            self.moved[account] = self.moved.get(account, 0) + amount

    def take_grant(self, row):
        require(row["id"] > max(self.grants, default=""), f"grant {row['id']} stands twice, or out of order")
        require(row["effective_at"] < self.period["end_at"], f"grant {row['id']} begins after the period")
        self.grants[row["id"]] = Grant(row)

    def take_credit(self, row):
        require(row["id"] not in self.credits, f"transaction {row['id']} stands twice")
        self.credits[row["id"]] = (row["amount_pico"], entries_of(row))

    def check_credits(self):
        """Compare what was booked on grants with what the period's usage burns, and with what is left of those that ended before it."""
        start_at, right = self.period["start_at"], {}

        def book(grant, move, pico, kind, owner="platform"):
            cause = f"credit/{self.organization}/{grant.id}/{move}/{start_at}"
            accounts = {f"{self.organization}/credit:{grant.id}/{self.currency}": pico, f"{owner}/{kind}/{self.currency}": -pico}
            right[transaction_id(start_at, cause)] = (str(pico), accounts)

        burned = burn(self.grants.values(), self.usage)
        self.burned = sum(burned.values())
        for id, pico in burned.items():
            book(self.grants[id], "burn", pico, "unbilled", self.organization)
        for grant in self.grants.values():
            if grant.ends_at <= start_at and grant.left:
                is_voided = grant.ends_at == grant.voided_at
                book(grant, "void" if is_voided else "expire", grant.left, FUNDING[grant.category] if is_voided else "breakage")
        for id in {**self.credits, **right}:
            same(f"transaction {id}: what it books on credit", self.credits.get(id), right.get(id))
        digest = self.credits_digest.hexdigest() if self.grants else None
        same("the digest of credit", self.period.get("credits_digest"), digest)

    def take_contract(self, row):
        contract = Contract(row, self.period)
        require(not self.contracts or self.contracts[-1].end_at <= contract.start_at, f"contract {contract.id} overlaps another")
        self.contracts.append(contract)

    def take_contract_charge(self, row):
        require(self.charge is None, "what contracts add stands twice")
        self.charge = (row, entries_of(row))

    def check_contracts(self):
        """Compare what contracts add to the period with what they come to."""
        digest = self.contracts_digest.hexdigest() if self.contracts else None
        same("the digest of contracts", self.period.get("contracts_digest"), digest)
        if not self.contracts:
            require(self.charge is None, "there is a charge without a contract")
            return 0
        require(self.charge is not None, "what contracts add is missing")
        row, entries = self.charge
        start_at, parts, owed = self.period["start_at"], [], max(sum(self.totals.values()) + min(self.adjusted_own, 0) - self.burned, 0)
        for contract in self.contracts:
            part, owed = contract.charge(owed)
            parts.append(part)
        same("what contracts come to", row["parts"], parts)
        same("the id of what contracts add", row["id"], transaction_id(start_at, f"contract/{self.organization}/{start_at}"))
        moved, billed = {}, 0
        for each in (line for part in parts for line in part["lines"]):
            amount, kind = int(each["amount_pico"]), each["kind"]
            account = "deferred_revenue" if kind in ("prepayment", "drawdown") else f"contract_revenue:{kind}"
            if kind == "lapse":
                moved["deferred_revenue"] = moved.get("deferred_revenue", 0) + amount
                account = "breakage"
            else:
                billed += amount
            moved[account] = moved.get(account, 0) - amount
        right = {f"platform/{account}/{self.currency}": amount for account, amount in moved.items() if amount}
        if billed:
            right[f"{self.organization}/unbilled/{self.currency}"] = billed
        same("what contracts book", entries, right)
        same("what contracts add to the period", self.period["contracts_pico"], str(billed))
        return billed

    def take_event(self, row):
        event = Event(row, self)
        require(event.id > self.last_event, f"event {event.id} stands twice, or out of order")
        self.last_event = event.id
        require(event.ended_at < self.period["end_at"], f"event {event.id} was served after the period")
        if event.id in self.targets:
            same(f"event {event.id}: what it says, as its correction has it", self.targets.pop(event.id), event.leaf)
            stated = self.target_periods.pop(event.id, self.period["start_at"])
            same(f"event {event.id}: its period, as its correction has it", stated, self.period["start_at"])
            self.adjusted_own += self.given[event.id]
        self.late += event.ended_at < self.period["start_at"]
        self.tree.add(event.leaf)
        for name, amount in event.amounts.items():
            self.totals[name] += amount
        for contract in self.contracts:
            contract.add(event)
        if self.grants and event.total:
            self.usage[event.burns] = self.usage.get(event.burns, 0) + event.total
        booking = self.find_booking(*event.place)
        if booking is not None:
            booking.add(event)
        else:
            same(f"event {event.id}: what it costs, as no transaction books it,", event.total, 0)

    def find_booking(self, node, epoch, seq):
        """The transaction that names a record; None if there is none."""
        place = (node, epoch)
        if place not in self.firsts:
            ordered = sorted(self.by_epoch.get(place, ()), key=lambda booking: booking.cause["first_seq"])
            # A record that was rated after its quarantine is booked alone, inside the span of its batch, which does not count it.
            singles = {one.cause["first_seq"]: one for one in ordered if one.cause["first_seq"] == one.cause["last_seq"]}
            bookings = [one for one in ordered if one.cause["first_seq"] < one.cause["last_seq"]]
            require(len(singles) + len(bookings) == len(ordered), "a transaction books what another does too, or no record")
            for at, one in enumerate(bookings[1:]):
                require(bookings[at].cause["last_seq"] < one.cause["first_seq"], f"transaction {one.id} books what another does too")
            self.firsts[place] = (singles, [booking.cause["first_seq"] for booking in bookings], bookings)
        singles, firsts, bookings = self.firsts[place]
        index = bisect_right(firsts, seq) - 1
        return singles.get(seq) or (bookings[index] if index >= 0 and seq <= bookings[index].cause["last_seq"] else None)

    def take_adjustment(self, row):
        stated = row.pop("target")
        target = Event(stated, self)
        where = f"adjustment {row['id']}"
        if "period_at" in stated:  # exports of old versions do not say in which period the event is booked
            same(f"{where}: the period of its event", self.target_periods.setdefault(target.id, stated["period_at"]), stated["period_at"])
        same(f"{where}: its event, as another correction has it", self.targets.setdefault(target.id, target.leaf), target.leaf)
        same(f"{where}: its organization", row["organization_id"], self.organization)
        same(f"{where}: its event", row["event_id"], target.id)
        require(not target.is_test, f"{where} corrects a request of a test key, which is never billed")
        is_own = row["approver"] is not None and row["approver_origin"] == row["actor_origin"]
        require(not is_own, f"{where} was approved with a key that whoever asked for it could have made")
        amount = int(row["amount_pico"])
        if row["kind"] == "credit":
            moved = {f"platform/credits:{target.model}/{self.currency}": -amount}
            require(amount < 0, f"{where} is a credit that gives nothing back")
        else:
            require(row["kind"] in ("void", "replace"), f"{where} is of no known kind")
            require((row["kind"] == "replace") == (row["replacement"] is not None), f"{where} has the quantities of another kind")
            after = dict.fromkeys(CLASSES, 0)
            if row["replacement"] is not None:
                after = amounts_of(rate(row["replacement"], target.price))
            change = {name: after[name] - target.amounts[name] for name in CLASSES}
            same(f"{where}: what it changes", amount, sum(change.values()))
            moved = {f"platform/revenue:{target.model}:{name}/{self.currency}": -pico for name, pico in change.items() if pico}
        self.given[target.id] = self.given.get(target.id, 0) + amount
        require(target.total + self.given[target.id] >= 0, f"{where} gives back more than event {target.id} cost")
        moved[f"{self.organization}/unbilled/{self.currency}"] = amount
        booked = self.corrections.pop(row["id"], None)
        require(booked is not None, f"{where} is not booked")
        same(f"transaction {booked['id']}: its id", booked["id"], transaction_id(row["created_at"], f"adjustment/{row['id']}"))
        same(f"transaction {booked['id']}: what it books", entries_of(booked), moved)
        self.adjustments_digest.update(write(row) + b"\n")
        self.adjustments += 1
        self.adjusted += amount

    def take_account(self, row):
        require(row["id"] not in self.accounts, f"account {row['id']} stands twice")
        self.accounts[row["id"]] = int(row["amount_pico"])

    def take_end(self, row):
        same("the number of lines", row["lines"], self.lines)
        self.ended = True

    def check(self, root, period_hash):
        """Compare what all lines come to with what the period says. Raises Difference."""
        if not self.lines:
            raise Unreadable("the file is empty")
        require(self.ended, f"the export is cut: it ends after {self.lines} lines")
        for bookings in self.by_epoch.values():
            for booking in bookings:
                booking.check(self)
        require(not self.corrections, f"{', '.join(self.corrections)}: booked, and not in the export")
        period = self.period
        is_earlier = all(start_at < period["start_at"] for start_at in self.target_periods.values())
        require(is_earlier, "a correction is about an event of the period that is not in the export, or of a later one")
        same("the number of events of the period", period["events"], self.tree.size)
        same("the Merkle root of the period", period["merkle_root"], self.tree.root().hex())
        if root is not None:
            same("the Merkle root that you gave", root.lower(), self.tree.root().hex())
        if period_hash is not None:
            same("the hash of the period that you gave", period_hash.lower(), period["period_hash"])
        same("what the period comes to by class", period["amounts_pico"], {name: str(pico) for name, pico in self.totals.items() if pico})
        same("the number of corrections", period["adjustments"], self.adjustments)
        same("the digest of the prices and terms", period["conditions_digest"], self.conditions_digest.hexdigest())
        self.check_credits()
        self.contracts_total = self.check_contracts()
        same("the digest of the corrections", period["adjustments_digest"], self.adjustments_digest.hexdigest())
        same("what the corrections come to", period["adjustments_pico"], str(self.adjusted))
        same("what the period moved by account", self.accounts, self.moved)
        unbilled = self.moved.get(f"{self.organization}/unbilled/{self.currency}", 0)
        same("what the period moved on the account of the organization", unbilled, sum(self.totals.values()) + self.adjusted)

    def summary(self):
        total = sum(self.totals.values()) + self.adjusted + self.contracts_total
        amount = f"{'-' if total < 0 else ''}{abs(total) // 10**12}.{abs(total) % 10**12:012d} {self.currency}"
        covers = [epoch["cover"] for epoch in self.period["report"]["epochs"]]
        written_off = sum(each["records"] for each in self.period["report"].get("written_off", ()))
        return (
            f"everything agrees: {self.tree.size} events ({self.late} of them late), {self.adjustments} corrections, "
            f"{len(self.transactions)} transactions, {len(self.credits)} on credit, {len(self.contracts)} contracts, "
            f"{len(covers)} gateway runs ({covers.count('lost')} declared lost), "
            f"{written_off} records written off\n"
            f"total {amount}\nMerkle root {self.tree.root().hex()}\nhash {self.period['period_hash']}"
        )


# ---- The command line ----------------------------------------------------------------------------------------------------


def verify_export(path, root, period_hash=None):
    """Check an export; returns what to say. Raises Difference, Unreadable, OSError, UnicodeDecodeError."""
    export = Export()
    with open(path, encoding="utf-8", newline="\n") as file:
        for line in file:
            export.read(line)
    export.check(root, period_hash)
    return export.summary()


def verify_proof(path, root):
    """Check a proof; returns what to say. Raises Difference, Unreadable, OSError."""
    with open(path, encoding="utf-8") as file:
        try:
            proof = parse(file.read())
            leaf, path_hashes = proof["leaf"], [bytes.fromhex(node) for node in proof["path"]]
            found = root_from(leaf.encode(), proof["leaf_index"], proof["tree_size"], path_hashes)
            said, event, told = parse(leaf), proof["request_id"], proof["merkle_root"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Unreadable(f"this is no proof: {error!r}") from None
    same("the request of the leaf", said["event_id"], event)
    require(found is not None, "the path does not fit the place of the leaf")
    same("the root in the proof", told, found.hex())
    if root is not None:
        same("the Merkle root that you gave", root.lower(), found.hex())
    return f"{event} is in the period with the Merkle root {found.hex()}, billed {said['amount_pico']} pico-{said['currency']}"


def main(arguments):
    """Run; returns the exit code."""
    parser = argparse.ArgumentParser(description="Check a bill of Tollway without trusting Tollway.")
    parser.add_argument("export", nargs="?", help="an export of a closed period")
    parser.add_argument("--proof", help="a proof that one request is in a period")
    parser.add_argument("--root", help="the Merkle root that it must lead to, in hexadecimal")
    parser.add_argument("--hash", help="the hash of the period that an export must have, in hexadecimal")
    options = parser.parse_args(arguments)
    if (options.export is None) == (options.proof is None):
        parser.error("give either an export or --proof FILE")
    try:
        if options.proof is None:
            print(verify_export(options.export, options.root, options.hash))
        else:
            print(verify_proof(options.proof, options.root))
    except Difference as difference:
        print(f"DIFFERENCE: {difference}")
        return 1
    except (Unreadable, OSError, UnicodeDecodeError) as error:
        print(f"cannot be read: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
