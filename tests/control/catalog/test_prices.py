"""Books, drafts, publishing and terms, through the API; and what gateways are told of them."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from tests.control.gateways.test_link import ConfirmationWait, apply, following, read_changes, read_snapshot
from tests.control.harness import Running, TenantSetup, answered, make_tenant
from tests.control.test_routes import refused
from tests.patience import PATIENCE_SECONDS
from tests.threads import beside
from tollway.control import publish as publication
from tollway.domain.faults import Fault
from tollway.domain.prices import PriceTerms
from tollway.domain.snapshot import SNAPSHOT_AGE_SECONDS_MAX, ModelEntry, OrganizationEntry
from tollway.storage import prices as stored
from tollway.storage import schema_prices

BOOKS, DRAFTS, PRICES = "/v1/platform/price_books", "/v1/platform/price_drafts", "/v1/platform/prices"
QUICK, STUCK = "node_" + "0" * 31 + "1", "node_" + "0" * 31 + "2"


def make_model(control: Running, name: str) -> str:
    answered(control.operator().post("/v1/platform/models", json={"name": name, "endpoints": ["chat/completions"]}))
    return name


def make_book(control: Running, name: str, currency: str = "EUR", **fields: Any) -> str:
    made: str = answered(control.operator().post(BOOKS, json={"name": name, "currency": currency, **fields}))["id"]
    return made


def make_draft(control: Running, book_id: str, *lines: dict[str, Any], **fields: Any) -> str:
    made: str = answered(control.operator().post(DRAFTS, json={"book_id": book_id, "lines": list(lines), **fields}))["id"]
    return made


def line(model: str, input: str = "0.27", output: str = "1.1", **fields: Any) -> dict[str, Any]:
    return {"model": model, "input": input, "output": output, **fields}


def publish(control: Running, draft_id: str, **fields: Any) -> dict[str, Any]:
    made: dict[str, Any] = answered(control.operator().post(f"{DRAFTS}/{draft_id}/publish", json=fields))
    return made


def findings(control: Running, draft_id: str) -> list[str]:
    return [found["code"] for found in answered(control.operator().post(f"{DRAFTS}/{draft_id}/check"))["findings"]]


def versions(control: Running, price_list: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = answered(control.operator().get(PRICES, params={"list": price_list, "limit": 100}))["data"]
    return found


class TestBooks:
    def test_of_a_currency_begin_with_its_default_on_first_use(self, control: Running) -> None:
        operator = control.operator()
        made = answered(operator.post(PRICES, json=line(make_model(control, "first"), currency="SEK")))
        book = answered(operator.get(f"{BOOKS}/{made['list']}"))
        assert (book["name"], book["currency"], book["default"], book["organization_id"]) == ("SEK", "SEK", True, None)
        again = answered(operator.post(PRICES, json=line(make_model(control, "second"), currency="SEK")))
        assert again["list"] == made["list"]
        refused(operator.post(BOOKS, json={"name": "another", "currency": "SEK", "default": True}), 409, "conflict", "default")

    def test_are_distinguished_by_name(self, control: Running) -> None:
        operator = control.operator()
        make_book(control, "summer")
        refused(operator.post(BOOKS, json={"name": "summer", "currency": "EUR"}), 409, "conflict", "name")
        refused(operator.post(BOOKS, json={"name": "CHF", "currency": "CHF"}), 400, "invalid_value", "name")
        assert make_book(control, "CHF", "CHF", default=True)

    @pytest.mark.parametrize("currency", ["EURO", "eur", "ZZZ", ""])
    def test_are_in_a_currency_that_exists(self, control: Running, currency: str) -> None:
        refused(control.operator().post(BOOKS, json={"name": "odd", "currency": currency}), 400, "invalid_value", "currency")

    def test_of_an_organization_are_in_its_currency(self, control: Running, alice: TenantSetup) -> None:
        body = {"name": "hers", "currency": "USD", "organization_id": alice.organization_id}
        refused(control.operator().post(BOOKS, json=body), 400, "invalid_value", "currency")
        unknown = {"name": "hers", "currency": "USD", "organization_id": "org_" + "0" * 32}
        refused(control.operator().post(BOOKS, json=unknown), 404, "not_found", "organization_id")

    def test_are_the_operators_business(self, control: Running, alice: TenantSetup) -> None:
        refused(control.client(alice.admin_key).get(BOOKS), 403, "insufficient_scope")


class TestDrafts:
    def test_bind_nobody_until_all_of_their_lines_are_published_at_once(self, control: Running) -> None:
        book, model, other = make_book(control, "drafted"), make_model(control, "d-one"), make_model(control, "d-two")
        draft = make_draft(control, book, line(model), line(model, "0.1", "0.5", tier="batch"), line(other, cached_input="0.02"))
        assert findings(control, draft) == []
        assert versions(control, book) == []
        published = publish(control, draft)
        assert published["state"] == "published"
        found = versions(control, book)
        assert sorted((each["model"], each["tier"], each["cached_input"]) for each in found) == [
            (model, "batch", "0.1"),
            (model, "standard", "0.27"),
            (other, "standard", "0.02"),
        ]
        assert {each["valid_from"] for each in found} == {published["valid_from"]}

    def test_are_changed_line_by_line_while_they_are_open(self, control: Running) -> None:
        operator = control.operator()
        book, model = make_book(control, "edited"), make_model(control, "edited-model")
        draft = make_draft(control, book, line(model), line("slip"))
        later = int(time.time()) + 1000
        body = {"lines": [line(model, "0.3")], "remove": [{"model": "slip"}], "valid_from": later}
        changed = answered(operator.post(f"{DRAFTS}/{draft}", json=body))
        assert [(each["model"], each["input"]) for each in changed["lines"]] == [(model, "0.3")]
        assert changed["valid_from"] == later
        assert answered(operator.post(f"{DRAFTS}/{draft}", json={}))["valid_from"] == later
        assert answered(operator.post(f"{DRAFTS}/{draft}", json={"valid_from": None}))["valid_from"] is None
        refused(operator.post(f"{DRAFTS}/{draft}", json={"lines": [line(model), line(model)]}), 400, "invalid_value", "lines")
        refused(operator.post(f"{DRAFTS}/{draft}", json={"valid_from": later - 5000}), 400, "invalid_price", "valid_from")

    def test_that_are_closed_stay_as_they_are(self, control: Running) -> None:
        operator = control.operator()
        book, model = make_book(control, "closed"), make_model(control, "closed-model")
        first, second = make_draft(control, book, line(model)), make_draft(control, book, line(model))
        publish(control, first)
        answered(operator.post(f"{DRAFTS}/{second}/discard"))
        for draft in (first, second):
            for verb, body in (("", {}), ("/publish", {}), ("/check", None), ("/discard", None)):
                refused(operator.post(f"{DRAFTS}/{draft}{verb}", json=body), 409, "conflict")
        assert answered(operator.get(DRAFTS, params={"book_id": book}))["data"] == []
        closed = answered(operator.get(DRAFTS, params={"book_id": book, "include_closed": True}))["data"]
        assert [each["state"] for each in closed] == ["published", "discarded"]

    def test_with_errors_are_not_published_and_with_warnings_only_knowingly(self, control: Running) -> None:
        operator = control.operator()
        book, model = make_book(control, "checked"), make_model(control, "checked-model")
        wrong = make_draft(control, book, line(model, tier="flex"), line("nobody"))
        assert set(findings(control, wrong)) == {"standard_missing", "model_unknown"}
        for accept in (False, True):
            refused(operator.post(f"{DRAFTS}/{wrong}/publish", json={"accept_warnings": accept}), 400, "invalid_price")
        publish(control, make_draft(control, book, line(model)))
        doubtful = make_draft(control, book, line(model, "2.71", cached_input="3"))
        assert set(findings(control, doubtful)) == {"jump", "cached_dearer"}
        refused(operator.post(f"{DRAFTS}/{doubtful}/publish", json={}), 409, "doubtful_price", "accept_warnings")
        kept = publish(control, doubtful, accept_warnings=True)["findings"]
        assert {each["code"] for each in kept} == {"jump", "cached_dearer"}

    def test_may_begin_with_what_a_book_asks(self, control: Running) -> None:
        operator = control.operator()
        source, target, model = make_book(control, "source"), make_book(control, "target"), make_model(control, "copied")
        publish(control, make_draft(control, source, line(model), line(model, "0.1", "0.4", tier="batch")))
        draft = make_draft(control, target, line(model, "0.28"), from_book_id=source)
        lines = answered(operator.get(f"{DRAFTS}/{draft}"))["lines"]
        assert [(each["tier"], each["input"]) for each in lines] == [("batch", "0.1"), ("standard", "0.28")]
        dollars = make_book(control, "dollars", "USD")
        body = {"book_id": dollars, "from_book_id": source}
        refused(operator.post(DRAFTS, json=body), 400, "invalid_value", "from_book_id")

    @pytest.mark.parametrize("price", ["0.0000001", "-1", "1e3", "1000001"])
    def test_take_plain_decimals_only(self, control: Running, price: str) -> None:
        body = {"book_id": "book_" + "0" * 32, "lines": [line("any", price)]}
        refused(control.operator().post(DRAFTS, json=body), 400, "invalid_value", "lines.[0].input")


class TestTerms:
    def test_compile_the_book_at_the_discount_and_every_later_price_too(self, control: Running) -> None:
        tenant = make_tenant(control, "discounted")
        operator, admin = control.operator(), control.client(tenant.admin_key)
        book, model = make_book(control, "list of the discounted"), make_model(control, "discounted-model")
        answered(operator.post(PRICES, json=line(model, currency="EUR", book_id=book)))
        answered(operator.post(f"/v1/platform/models/{model}/publish"))
        path = f"/v1/platform/organizations/{tenant.organization_id}/price_terms"
        made = answered(operator.post(path, json={"book_id": book, "discount_bp": 1_250}))
        assert (made["list"], made["discount_bp"]) == (f"{book}-1250", 1_250)
        (own,) = [each for each in answered(admin.get("/v1/organization/prices"))["data"] if each["model"] == model]
        assert (own["input"], own["output"], own["service_tier"]) == ("0.23625", "0.9625", "standard")
        flex = answered(operator.post(PRICES, json=line(model, "0.1", "0.5", tier="flex", currency="EUR", book_id=book)))
        (_, own_flex) = sorted(
            (each for each in answered(admin.get("/v1/organization/prices"))["data"] if each["model"] == model),
            key=lambda each: each["service_tier"],
            reverse=True,
        )
        assert (own_flex["input"], own_flex["price_id"]) == ("0.0875", f"{flex['id']}-1250")

    def test_follow_each_other_and_are_never_retroactive(self, control: Running) -> None:
        tenant = make_tenant(control, "moving")
        operator, now = control.operator(), int(time.time())
        book = make_book(control, "moved to")
        path = f"/v1/platform/organizations/{tenant.organization_id}/price_terms"
        answered(operator.post(path, json={"book_id": book, "valid_from": now + 100}))
        refused(operator.post(path, json={"book_id": book, "valid_from": now + 100}), 400, "invalid_price", "valid_from")
        refused(operator.post(path, json={"book_id": book}), 400, "invalid_price", "valid_from")
        refused(operator.post(path, json={"book_id": book, "valid_from": now - 1000}), 400, "invalid_price", "valid_from")
        answered(operator.post(path, json={"book_id": book, "discount_bp": 500, "valid_from": now + 200}))
        assert [each["discount_bp"] for each in answered(operator.get(path))["data"]][-2:] == [0, 500]

    def test_name_a_book_that_the_organization_may_have(self, control: Running, alice: TenantSetup, bob: TenantSetup) -> None:
        operator = control.operator()
        theirs = make_book(control, "bob's own", organization_id=bob.organization_id)
        path = f"/v1/platform/organizations/{alice.organization_id}/price_terms"
        refused(operator.post(path, json={"book_id": theirs}), 404, "not_found", "book_id")
        refused(operator.post(path, json={"book_id": "book_" + "0" * 32}), 404, "not_found", "book_id")
        refused(operator.post(path, json={"book_id": make_book(control, "pounds", "GBP")}), 400, "invalid_value", "book_id")
        refused(operator.post(path, json={"discount_bp": 10_001}), 400, "invalid_value", "discount_bp")
        answered(operator.post(f"/v1/platform/organizations/{bob.organization_id}/price_terms", json={"book_id": theirs}))

    def test_show_a_tenant_its_own_prices_and_no_other(self, control: Running) -> None:
        """A model that has no price on the organization's list is not there at all."""
        one, other = make_tenant(control, "one"), make_tenant(control, "other")
        operator = control.operator()
        model, book = make_model(control, "exclusive"), make_book(control, "exclusive book", organization_id=one.organization_id)
        answered(operator.post(PRICES, json=line(model, currency="EUR", book_id=book)))
        answered(operator.post(f"/v1/platform/models/{model}/publish"))
        answered(operator.post(f"/v1/platform/organizations/{one.organization_id}/price_terms", json={"book_id": book}))
        mine = answered(control.client(one.admin_key).get("/v1/organization/prices"))["data"]
        theirs = answered(control.client(other.admin_key).get("/v1/organization/prices"))["data"]
        assert [each["model"] for each in mine] == [model]
        assert model not in [each["model"] for each in theirs]


class TestGateways:
    def test_hear_of_prices_before_the_terms_that_need_them(self, fresh_control: Running) -> None:
        control, operator = fresh_control, fresh_control.operator()
        tenant, model = make_tenant(control, "told"), make_model(control, "told-model")
        version, state = read_snapshot(control.node())
        organization = state["organization", tenant.organization_id]
        assert isinstance(organization, OrganizationEntry)
        assert organization.terms == ()
        default = answered(operator.post(PRICES, json=line(model, currency="EUR")))["list"]
        answered(operator.post(f"/v1/platform/models/{model}/publish"))
        answered(operator.post(f"/v1/platform/organizations/{tenant.organization_id}/price_terms", json={"discount_bp": 100}))
        changes = read_changes(control.node(), version)
        kinds = [change.kind for change in changes]
        assert kinds == ["organization", "model", "model", "organization"]
        final = apply(state, changes)
        assert final == read_snapshot(control.node())[1]
        organization, entry = final["organization", tenant.organization_id], final["model", model]
        assert isinstance(organization, OrganizationEntry)
        assert isinstance(entry, ModelEntry)
        assert [each.list for each in organization.terms] == [default, f"{default}-100"]
        assert organization.terms[0] == PriceTerms(0, default)
        assert {price.list for price in entry.prices} == {default, f"{default}-100"}

    def test_hear_of_a_default_book_that_comes_after_terms_were_set(self, fresh_control: Running) -> None:
        """The default book counts until terms begin and where none are in force, however late it was created."""
        control, operator = fresh_control, fresh_control.operator()
        tenant, own = make_tenant(control, "early"), make_book(control, "own")
        path, later = f"/v1/platform/organizations/{tenant.organization_id}/price_terms", int(time.time()) + 1000
        answered(operator.post(path, json={"book_id": own, "valid_from": later}))
        default = make_book(control, "EUR", default=True)
        organization = read_snapshot(control.node())[1]["organization", tenant.organization_id]
        assert isinstance(organization, OrganizationEntry)
        assert organization.terms == (PriceTerms(0, default), PriceTerms(later * 1_000_000, own))

    def test_hear_of_terms_of_new_organizations(self, fresh_control: Running) -> None:
        control = fresh_control
        book = make_book(control, "EUR", default=True)
        tenant = make_tenant(control, "late")
        organization = read_snapshot(control.node())[1]["organization", tenant.organization_id]
        assert isinstance(organization, OrganizationEntry)
        assert organization.terms == (PriceTerms(0, book),)


class TestAPublishedPrice:
    def test_answers_from_when_it_holds_once_every_gateway_confirmed_it(
        self, fresh_control: Running, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(publication, "CONFIRM_SECONDS_MAX", PATIENCE_SECONDS)  # a busy machine takes longer than a second
        with priced_model(fresh_control, nodes=(QUICK,)) as (model, book, version):
            draft = make_draft(fresh_control, book, line(model, "0.3"))
            with confirming(fresh_control, QUICK, version):
                made = publish(fresh_control, draft)
            assert made["pending_nodes"] == []
            assert made["valid_from"] <= made["holds_from"] <= time.time() + 1
            assert made["holds_by"] >= made["valid_from"] + SNAPSHOT_AGE_SECONDS_MAX

    def test_of_later_holds_from_its_own_instant(self, fresh_control: Running) -> None:
        later = int(time.time()) + 10 * SNAPSHOT_AGE_SECONDS_MAX
        with priced_model(fresh_control, nodes=()) as (model, _, _):
            made = answered(fresh_control.operator().post(PRICES, json=line(model, currency="EUR", valid_from=later)))
        assert (made["valid_from"], made["holds_from"], made["holds_by"]) == (later, later, later)

    @pytest.mark.parametrize("what", ["price", "draft", "terms"])
    def test_names_the_gateways_that_have_not_confirmed_it(
        self, fresh_control: Running, monkeypatch: pytest.MonkeyPatch, what: str
    ) -> None:
        operator, wait = fresh_control.operator(), ConfirmationWait(monkeypatch)
        tenant = make_tenant(fresh_control, "waiting")
        with priced_model(fresh_control, nodes=(QUICK, STUCK)) as (model, book, version):
            draft = make_draft(fresh_control, book, line(model, "0.3"))
            with confirming(fresh_control, QUICK, version, wait):
                match what:
                    case "price":
                        made = answered(operator.post(PRICES, json=line(model, currency="EUR")))
                    case "draft":
                        made = publish(fresh_control, draft)
                    case _:
                        path = f"/v1/platform/organizations/{tenant.organization_id}/price_terms"
                        made = answered(operator.post(path, json={"book_id": book, "discount_bp": 0}))
            assert made["pending_nodes"] == [STUCK]
            assert made["holds_from"] is None
            assert made["holds_by"] >= time.time() + SNAPSHOT_AGE_SECONDS_MAX - 60


@contextmanager
def priced_model(control: Running, *, nodes: tuple[str, ...]) -> Iterator[tuple[str, str, int]]:
    """Publish a model with a price. Yields its name, its book and the version of the snapshot, which all of `nodes` have confirmed."""
    operator, model = control.operator(), make_model(control, "confirmed")
    book = answered(operator.post(PRICES, json=line(model, currency="EUR")))["list"]
    answered(operator.post(f"/v1/platform/models/{model}/publish"))
    version, _ = read_snapshot(control.node())
    with control.clock.set_to(control.plane.now()):  # nodes are alive for seconds
        for node_id in nodes:
            control.node(node_id).post("/v1/link/ack", json={"node_id": node_id, "version": version}).raise_for_status()
        yield model, book, version


@contextmanager
def confirming(control: Running, node_id: str, version: int, wait: ConfirmationWait | None = None) -> Iterator[None]:
    """Confirm each change after `version` for a node as soon as it arrives, until the end of the block, and end `wait` then."""
    ended = threading.Event()

    def confirm() -> None:
        confirmed = version
        with following(control.node(), version) as lines:
            while not ended.wait(0.01):
                arrived = max((each["version"] for each in list(lines) if "kind" in each), default=version)
                if arrived > confirmed:
                    control.node(node_id).post("/v1/link/ack", json={"node_id": node_id, "version": arrived}).raise_for_status()
                    confirmed = arrived
                    if wait is not None:
                        wait.end()

    with beside(confirm):
        try:
            yield
        finally:
            ended.set()


class TestTheDatabase:
    def test_never_changes_what_was_published(self, fresh_control: Running) -> None:
        control = fresh_control
        tenant, model = make_tenant(control, "kept"), make_model(control, "kept-model")
        book = make_book(control, "kept book")
        draft = make_draft(control, book, line(model))
        publish(control, draft)
        path = f"/v1/platform/organizations/{tenant.organization_id}/price_terms"
        answered(control.operator().post(path, json={"book_id": book, "discount_bp": 1}))
        statements = [f"UPDATE {table.name} SET {table.c[0].name} = {table.c[0].name}" for table in schema_prices.APPEND_ONLY]
        statements += [f"DELETE FROM {table.name}" for table in schema_prices.APPEND_ONLY]
        statements += [f"UPDATE price_drafts SET state = 'open' WHERE id = '{draft}'", "DELETE FROM price_drafts"]
        database = control.plane.database
        for statement in statements:
            with pytest.raises((DBAPIError, Fault)), database.platform() as tx:
                tx.connection.execute(sa.text(statement))

    def test_can_show_that_each_version_follows_from_what_was_published(self, fresh_control: Running) -> None:
        control = fresh_control
        tenant, model = make_tenant(control, "proven"), make_model(control, "proven-model")
        path = f"/v1/platform/organizations/{tenant.organization_id}/price_terms"
        for discount_bp in (0, 3_333):
            answered(control.operator().post(PRICES, json=line(model, "0.000001", "0.000007", currency="EUR")))
            answered(control.operator().post(path, json={"discount_bp": discount_bp}))
        with control.plane.database.platform(write=False) as tx:
            pairs = list(stored.iterate_compiled(tx))
        assert len(pairs) == 4
        assert all(compiled == found for compiled, found in pairs)
