"""An auditor who trusts nobody: the export of a closed period is enough to compute it again, and no planted change goes unnoticed."""

import ast
import hashlib
import json
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.control.metering.test_collect import take
from tests.control.money.test_corrections import APPROVER, ask, decide
from tests.control.money.test_credits import COST, add_grant
from tests.control.money.test_periods import NOW, OCTOBER, SEPTEMBER, close, ended
from tests.link import samples
from tests.link.samples import EPOCH, ORGANIZATION, OTHER_NODE, OTHER_ORGANIZATION, PRICE, admit, final, frames
from tests.storage.databases import fill
from tollway.control.catalog import prices
from tollway.control.money import credits, exports, periods
from tollway.control.money.corrections import WantedAdjustment
from tollway.domain import ids
from tollway.domain.billing_classes import OtherClasses, Quantities
from tollway.domain.corrections import AdjustmentKind, ApprovalDecision
from tollway.domain.credits import MINUTE_US, GrantCategory
from tollway.domain.faults import Fault
from tollway.domain.periods import period_id
from tollway.domain.price_books import BookPrice, compile_price
from tollway.domain.proofs import encode_leaf, hash_price, hash_statement
from tollway.domain.usage import Close, Outcome, Record, Tick, encode
from tollway.storage import prices as stored_prices
from tollway.storage.database import Database
from tollway.storage.record_archive import Archive

VERIFIER = Path(__file__).parents[3] / "verifier" / "tollway_verifier.py"

UNBOUND = re.compile(
    r"export\.exported_at"
    r"|transaction\.booked_at|adjustment\.(reason|actor|target\.(node_id|epoch|seq|period_at))|event\.seq"
)
"""Fields that no other line of the export depends on, or only together with another field; a digest binds reason and actor, below."""

verify_in_process: Callable[[list[str]], int] = runpy.run_path(str(VERIFIER))["main"]


MEDIA = Quantities(5, other=OtherClasses(1, 2, 3, 4, 5, 6, 7, 8))
"""Something of each billing class that few requests use."""


@pytest.fixture
def books(database: Database, archive: Archive) -> tuple[Database, Archive]:
    close_books(database, archive)
    return database, archive


def close_books(database: Database, archive: Archive) -> None:
    """Close September with all there can be: two gateways, other tenants, failures, a void, a replace and a credit. Close October with a
    late event and a correction of September's. Grants are burned in part, expire and are voided in September, and end in October."""
    begin = EPOCH // MINUTE_US * MINUTE_US
    add_grant(database, COST // 2, 11, category=GrantCategory.PROMOTIONAL, priority=1)
    add_grant(database, 10 * COST, 12, expires_at=begin + MINUTE_US)
    add_grant(database, 10**9, 13, category=GrantCategory.GOODWILL, priority=9)
    add_grant(database, 10**15, 14, priority=5, effective_at=OCTOBER.start_at)
    with database.platform() as tx:
        credits.void_grant(tx, ORGANIZATION, ids.new_id(ids.CREDIT_GRANT, EPOCH, 13), EPOCH)
    other = {"organization_id": OTHER_ORGANIZATION, "price_version": samples.OTHER_PRICE.id}
    failed = final(admit(6), outcome=Outcome.UPSTREAM_ERROR, used=Quantities(100), first_token_at=None, error="upstream_cut")
    records: list[Record] = [*ended(1, EPOCH), *ended(2, EPOCH + 9, **other), *ended(3, EPOCH + 5), *ended(4, SEPTEMBER.end_at - 1)]
    tried = final(admit(30, test=True, key_id="key_test"))
    spoken = final(admit(10), used=MEDIA)
    records += [
        *ended(5, EPOCH),
        spoken.admit,
        spoken,
        failed.admit,
        failed,
        tried.admit,
        tried,
        Tick(at=OCTOBER.start_at),
        *ended(7, OCTOBER.start_at + 7),
    ]
    body = frames(records)
    take(database, archive, body[:5])
    take(database, archive, body[5:], first_seq=6)
    take(database, archive, frames([*ended(8, EPOCH), Close(at=EPOCH)], node_id=OTHER_NODE), node_id=OTHER_NODE)
    wanted = {"event_id": samples.request_id(1), "reason": 'said "no" — ü', "kind": AdjustmentKind.VOID}
    decide(database, ask(database, WantedAdjustment(**wanted), limit_pico=0), ApprovalDecision.APPROVED, APPROVER)  # type: ignore[arg-type]
    replacement = {"kind": AdjustmentKind.REPLACE, "replacement": Quantities(7, 0, 3, 1, 1, OtherClasses(cache_write=2)), "reason": "r"}
    ask(database, WantedAdjustment(event_id=samples.request_id(3), **replacement))  # type: ignore[arg-type]
    ask(database, WantedAdjustment(event_id=samples.request_id(4), kind=AdjustmentKind.CREDIT, credit_pico=77, reason="r"))
    close(database, SEPTEMBER.start_at)
    rest = frames([*records, *ended(9, EPOCH + 1), Close(at=OCTOBER.end_at)])[len(records) :]
    take(database, archive, rest, first_seq=len(records) + 1)
    ask(database, WantedAdjustment(event_id=samples.request_id(8), kind=AdjustmentKind.VOID, reason="r"))
    close(database, OCTOBER.start_at)


def export(books: tuple[Database, Archive], start_at: int = SEPTEMBER.start_at) -> list[bytes]:
    database, archive = books
    open_tx = lambda: database.tenant(ORGANIZATION, write=False)  # noqa: E731
    return list(exports.export(open_tx, archive, period_id(ORGANIZATION, start_at), NOW))


def run(*arguments: str) -> tuple[int, str]:
    """The verifier as an auditor runs it: isolated, without site packages."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-W", "error", str(VERIFIER), *arguments], capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout + done.stderr


def export_discounted_month(database: Database, archive: Archive) -> list[dict[str, Any]]:
    """Return the lines of a closed month in which an organization paid by the default book, and from some day on 15 % less."""
    discounted = compile_price(book_price_of(database), PRICE.currency, 1_500)
    with database.tenant(ORGANIZATION) as tx:
        prices.set_terms(tx, book_id=None, discount_bp=1_500, valid_from=None, now=EPOCH + 500)
    hashed = hash_price(discounted, EPOCH + 500)
    later = ended(2, EPOCH + 9_000, price_version=discounted.id, price_hash=hashed)
    take(database, archive, frames([*ended(1, EPOCH + 100), *later, Close(at=OCTOBER.end_at)]))
    close(database, SEPTEMBER.start_at)
    return [json.loads(line) for line in export((database, archive))]


def book_price_of(database: Database) -> BookPrice:
    """Return the published price of the samples."""
    with database.platform(write=False) as tx:
        return stored_prices.list_book_prices(tx, PRICE.list)[0]


def restate(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the lines with the digests of conditions and credit, the number of lines and the hash of the period that follow from them."""
    digest, of_credit = hashlib.sha256(), hashlib.sha256()
    for line in lines:
        if line["type"] in ("outcome_policy", "price", "terms", "grant", "credit"):
            covering = of_credit if line["type"] in ("grant", "credit") else digest
            covering.update(json.dumps(line, separators=(",", ":"), ensure_ascii=False).encode() + b"\n")
    found = []
    for line in lines:
        if line["type"] == "period":
            line = line | {"conditions_digest": digest.hexdigest()}
            line |= {"credits_digest": of_credit.hexdigest()} if "credits_digest" in line else {}
            statement = {name: value for name, value in line.items() if name not in ("type", "period_hash")}
            line["period_hash"] = hash_statement(statement).hex()
        found.append(line | {"lines": len(lines) - 1} if line["type"] == "end" else line)
    return found


class TestTheVerifier:
    def test_is_one_file_that_anybody_can_run_and_read(self) -> None:
        source = VERIFIER.read_text()
        tree = ast.parse(source, feature_version=(3, 9))
        assert source.count("\n") <= 900
        imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
        imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert {name.partition(".")[0] for name in imported} <= sys.stdlib_module_names
        assert "tollway." not in " ".join(imported)

    @pytest.mark.parametrize("start_at", [SEPTEMBER.start_at, OCTOBER.start_at])
    def test_comes_to_the_same_sums_and_root(self, books: tuple[Database, Archive], tmp_path: Path, start_at: int) -> None:
        file = tmp_path / "export"
        file.write_bytes(b"".join(export(books, start_at)))
        with books[0].platform(write=False) as tx:
            closed = periods.get_period(tx, period_id(ORGANIZATION, start_at)).closed
        assert closed is not None
        code, said = run(str(file), "--root", closed.merkle_root.hex())
        assert (code, said[:17]) == (0, "everything agrees")
        assert f"{closed.events} events ({int(start_at == OCTOBER.start_at)} of them late), {closed.adjustments} corrections" in said
        assert run(str(file), "--root", "00" * 32)[0] == 1

    def test_burns_credit_again_and_finds_burning_that_its_order_would_not_do(
        self, books: tuple[Database, Archive], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Somebody who lets a month burn other grants, with entries, digest and hash that follow from it, is found by the computation."""
        file = tmp_path / "export"
        for start_at, moves in ((SEPTEMBER.start_at, {"burn"}), (OCTOBER.start_at, {"burn", "expire", "void"})):
            lines = [json.loads(line) for line in export(books, start_at)]
            assert {line["move"] for line in lines if line["type"] == "credit"} == moves
            for at, line in enumerate(lines):
                if line["type"] == "credit":
                    less = int(line["amount_pico"]) - 1
                    entries = [{**each, "amount_pico": each["amount_pico"][:1].strip("0123456789") + str(less)} for each in line["entries"]]
                    planted = line | {"amount_pico": str(less), "entries": entries}
                    for forged in ([*lines[:at], planted, *lines[at + 1 :]], [*lines[:at], *lines[at + 1 :]]):
                        file.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in restate(forged)), "utf-8")
                        assert verify_in_process([str(file)]) == 1
                        assert "what it books on credit" in capsys.readouterr().out

    def test_event_states_no_later_class_that_costs_nothing(self, books: tuple[Database, Archive], tmp_path: Path) -> None:
        lines = [json.loads(line) for line in export(books)]
        stated = {line["payload"].count("cache_write"): set(line["amounts_pico"]) for line in lines if line["type"] == "event"}
        first = {"input", "cached_input", "output", "reasoning", "request"}
        assert stated[0] == first and stated[1] > first
        for line in lines:
            if line["type"] == "event":
                line["amounts_pico"] = dict.fromkeys(("seconds", "images"), "0") | line["amounts_pico"]
        file = tmp_path / "export"
        file.write_bytes(b"".join(json.dumps(line, separators=(",", ":"), ensure_ascii=False).encode() + b"\n" for line in lines))
        assert verify_in_process([str(file)]) == 0

    def test_finds_every_planted_change(self, books: tuple[Database, Archive], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        lines = [json.loads(line) for line in export(books)]
        file, tried, missed = tmp_path / "export", 0, []
        for at, line in enumerate(lines):
            for place, changed in mutations(line, line["type"]):
                if UNBOUND.fullmatch(place):
                    continue
                planted = [*lines[:at], changed, *lines[at + 1 :]]
                file.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in planted), "utf-8")
                tried += 1
                if verify_in_process([str(file)]) == 0:
                    missed.append(place)
        capsys.readouterr()
        assert " ".join(sorted(set(missed))) == ""
        assert tried > 300

    def test_finds_lines_that_are_missing_doubled_or_swapped(self, books: tuple[Database, Archive], tmp_path: Path) -> None:
        lines, file = export(books), tmp_path / "export"
        for at, line in enumerate(lines):
            kind = json.loads(line)["type"]
            for planted in (lines[:at] + lines[at + 1 :], lines[:at], [*lines[: at + 1], line, *lines[at + 1 :]]):
                file.write_bytes(b"".join(planted))
                assert verify_in_process([str(file)]) != 0, kind

    def test_finds_a_forged_reason_or_actor(self, books: tuple[Database, Archive], tmp_path: Path) -> None:
        text, file = b"".join(export(books)).decode(), tmp_path / "export"
        for honest, forged in (("said ", "sayd "), ('"actor":"key_a', '"actor":"key_c')):
            assert honest in text
            file.write_text(text.replace(honest, forged, 1), "utf-8")
            assert verify_in_process([str(file)]) == 1

    def test_finds_that_credits_were_left_out_by_the_hash_of_the_period(self, books: tuple[Database, Archive], tmp_path: Path) -> None:
        """Somebody who takes the corrections out of everything that the export says still cannot meet the published hash."""
        lines = [json.loads(line) for line in export(books)]
        published = next(line["period_hash"] for line in lines if line["type"] == "period")
        moved: dict[str, int] = {}
        kept = []
        for line in lines:
            if line["type"] == "adjustment" or line.get("cause", {}).get("kind") == "adjustment":
                continue
            if line["type"] == "transaction":
                for entry in line["entries"]:
                    moved[entry["account"]] = moved.get(entry["account"], 0) + int(entry["amount_pico"])
            if line["type"] == "period":
                line |= {"adjustments": 0, "adjustments_digest": hashlib.sha256().hexdigest(), "adjustments_pico": "0"}
                statement = {name: value for name, value in line.items() if name not in ("type", "period_hash")}
                line["period_hash"] = hash_statement(statement).hex()
            if line["type"] == "account":
                if line["id"] not in moved:
                    continue
                line["amount_pico"] = str(moved[line["id"]])
            kept.append(line)
        kept[-1]["lines"] = len(kept) - 1
        file = tmp_path / "export"
        file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept), "utf-8")
        assert run(str(file))[0] == 0
        assert run(str(file), "--hash", published)[0] == 1
        file.write_bytes(b"".join(export(books)))
        assert run(str(file), "--hash", published)[0] == 0

    def test_finds_a_cheaper_price_with_everything_that_follows_from_it_but_the_root(
        self, books: tuple[Database, Archive], tmp_path: Path
    ) -> None:
        """Somebody who prepares a whole other export still cannot meet the root that was published."""
        file = tmp_path / "export"
        file.write_bytes(b"".join(export(books, OCTOBER.start_at)))
        with books[0].platform(write=False) as tx:
            september = periods.get_period(tx, period_id(ORGANIZATION, SEPTEMBER.start_at)).closed
        assert september is not None
        assert run(str(file), "--root", september.merkle_root.hex())[0] == 1

    def test_refuses_terms_prices_or_details_of_the_closing_that_are_missing_or_changed_under_the_published_hash(
        self, database: Database, archive: Archive, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Whoever changes what the month was billed under, with every digest that follows from it, cannot meet the published hash."""
        lines = export_discounted_month(database, archive)
        published = next(line["period_hash"] for line in lines if line["type"] == "period")
        assert {line["list"] for line in lines if line["type"] == "terms"} == {PRICE.list, f"{PRICE.list}-1500"}
        file, missed, tried = tmp_path / "export", list[str](), 0

        def is_refused(changed: list[dict[str, Any]], *options: str) -> bool:
            file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in restate(changed)), "utf-8")
            return verify_in_process([str(file), *options]) != 0

        assert not is_refused(lines, "--hash", published)
        for at, line in enumerate(lines):
            if line["type"] not in ("period", "outcome_policy", "price", "terms"):
                continue
            if line["type"] != "period":
                tried += 1
                if not is_refused([*lines[:at], *lines[at + 1 :]], "--hash", published):
                    missed.append(f"{line['type']} (dropped)")
            for place, changed in mutations(line, line["type"]):
                if place in ("period.period_hash", "period.conditions_digest"):
                    continue  # made again by `restate`
                tried += 1
                if not is_refused([*lines[:at], changed, *lines[at + 1 :]], "--hash", published):
                    missed.append(place)
        capsys.readouterr()
        assert missed == []
        assert tried > 100

    def test_finds_a_unit_price_that_is_not_the_published_one_at_its_discount(
        self, database: Database, archive: Archive, tmp_path: Path
    ) -> None:
        lines = export_discounted_month(database, archive)
        discounted = next(line for line in lines if line["type"] == "price" and line["list"].endswith("-1500"))
        discounted["published_unit_price_pico"]["output"] = str(int(discounted["published_unit_price_pico"]["output"]) + 1000)
        file = tmp_path / "export"
        file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in restate(lines)), "utf-8")
        code, said = run(str(file))
        assert (code, "at the discount of the list" in said) == (1, True)

    @pytest.mark.parametrize("content", [b"", b"{}\n", b"\xff\xfe", b"[]\n", b'{"type":"export","format":"other"}\n', b"null\n" * 3])
    def test_says_what_cannot_be_read(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "export").write_bytes(content)
        assert run(str(tmp_path / "export"))[0] == 2
        assert run("--proof", str(tmp_path / "export"))[0] == 2

    def test_checks_a_proof_and_finds_every_change_of_it(self, books: tuple[Database, Archive], tmp_path: Path) -> None:
        with books[0].tenant(ORGANIZATION, write=False) as tx:
            proof = periods.prove(tx, period_id(ORGANIZATION, SEPTEMBER.start_at), samples.request_id(4))
        told = {
            "request_id": samples.request_id(4),
            "leaf": encode_leaf(proof.leaf).decode(),
            "leaf_index": proof.index,
            "tree_size": proof.tree_size,
            "path": [node.hex() for node in proof.path],
            "merkle_root": proof.root.hex(),
        }
        file = tmp_path / "proof"
        file.write_text(json.dumps(told))
        code, said = run("--proof", str(file), "--root", proof.root.hex())
        assert (code, said.startswith(f"{samples.request_id(4)} is in the period")) == (0, True)
        for place, changed in mutations(told, "proof"):
            if place == "proof.tree_size" and "tree_size" in changed:
                continue  # a neighbouring size can have the same path; the published period says both, size and root
            file.write_text(json.dumps(changed))
            assert verify_in_process(["--proof", str(file)]) != 0, changed


class TestTheExport:
    def test_is_refused_until_the_period_is_closed_and_to_others(self, books: tuple[Database, Archive]) -> None:
        database, archive = books
        for organization_id, start_at, code in ((OTHER_ORGANIZATION, SEPTEMBER.start_at, "not_found"), (ORGANIZATION, 0, "not_found")):
            with pytest.raises(Fault, match=code):
                exports.export(lambda of=organization_id: database.tenant(of, write=False), archive, period_id(ORGANIZATION, start_at), NOW)  # type: ignore[misc]
        with pytest.raises(Fault, match="conflict"):
            theirs = period_id(OTHER_ORGANIZATION, SEPTEMBER.start_at)
            exports.export(lambda: database.tenant(OTHER_ORGANIZATION, write=False), archive, theirs, NOW)

    def test_holds_the_records_as_they_were_written_even_if_we_would_write_them_otherwise(
        self, sqlite_template: Any, tmp_path: Path
    ) -> None:
        archive = Archive(tmp_path / "archive")
        with sqlite_template.copied(tmp_path) as url:
            database = Database.open(url)
            fill(database)
            odd = encode(final(admit(1))).replace(b'"attempts":1', b'"attempts":1,"later":"x"')
            assert b"later" in odd
            take(database, archive, frames([odd, *ended(2, EPOCH), Close(at=EPOCH)]))
            close(database, SEPTEMBER.start_at)
            lines = export((database, archive))
            assert next(json.loads(line)["payload"] for line in lines if b'"type":"event"' in line) == odd.decode()
            (tmp_path / "export").write_bytes(b"".join(lines))
            assert run(str(tmp_path / "export"))[0] == 0
            database.close()

    def test_of_another_tenant_shares_nothing(self, books: tuple[Database, Archive]) -> None:
        assert OTHER_ORGANIZATION not in b"".join(export(books)).decode()


def mutations(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Each way to change one leaf of a JSON value, with the place of the leaf."""
    if isinstance(value, dict):
        for name, inner in value.items():
            for where, changed in mutations(inner, f"{place}.{name}"):
                yield where, value | {name: changed}
            if name not in ("type", "adjustment_id"):
                yield f"{place}.{name}", {key: kept for key, kept in value.items() if key != name}
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            for where, changed in mutations(inner, f"{place}.{at}"):
                yield where, [*value[:at], changed, *value[at + 1 :]]
            yield f"{place}.{at}", value[:at] + value[at + 1 :]
    elif isinstance(value, str):
        if place.endswith(".payload"):
            for name, inner in mutations(json.loads(value), place):
                yield name, json.dumps(inner, separators=(",", ":"))
        else:
            digits = re.sub(r"[0-9a-f](?=[^0-9a-f]*$)", lambda found: "1" if found.group() != "1" else "2", value)
            yield place, digits if digits != value else f"{value}x"
    elif isinstance(value, bool):
        yield place, not value
    elif isinstance(value, int):
        yield place, value + 1
        yield place, value - 1
