"""Pages of plans, and what operators say about the limits of an organization on its page of limits."""

from tests.control.browsing import Browser
from tests.control.console.pages import find_token, root_of
from tests.control.harness import Running, TenantSetup, answered

PLANS = "/console/platform/plans"


def test_operator_makes_a_plan_that_an_organization_has_until_it_has_another(
    control: Running, operator: Browser, used: TenantSetup
) -> None:
    operator.open(PLANS)
    assert "That was refused" in operator.send(PLANS, 400, name="starter", requests_per_minute="many").text
    one = operator.send(PLANS, name="starter", requests_per_minute="600").url.path
    identifier = one.rpartition("/")[2]
    operator.send(f"{one}/change", name="growth", requests_per_minute="700", tokens_per_minute="9000")
    operator.send(f"{one}/budget", currency="EUR", amount="500")
    found = answered(control.operator().get(f"/v1/platform/plans/{identifier}"))
    limits = {name: value for name, value in found["limits"].items() if value is not None and name != "object"}
    assert (found["name"], limits, found["monthly_budgets"]) == (
        "growth",
        {"requests_per_minute": 700, "tokens_per_minute": 9_000},
        {"EUR": "500"},
    )
    page = f"{root_of(used)}/limits"
    operator.open(page)
    operator.send(f"{page}/plan", plan_id=identifier)
    sources = f"/v1/platform/organizations/{used.organization_id}/limit_sources"
    assert answered(control.operator().get(sources))["plan"]["id"] == identifier and "plan growth" in operator.page.text
    operator.send(f"{page}/organization", requests_per_minute="800")
    assert answered(control.operator().get(sources))["own"]["requests_per_minute"] == 800
    assert "That was refused" in operator.send(f"{page}/override", 400, days="3", requests_per_minute="9").text
    operator.open(page)
    assert "That was refused" in operator.send(f"{page}/override", 400, days="7").text
    operator.open(page)
    operator.send(f"{page}/override", days="7", requests_per_minute="900")
    assert "requests per minute: 900" in operator.page.text
    operator.send(f"{page}/override/end")
    assert answered(control.operator().get(sources))["overrides"] == []
    operator.open(one)
    assert "That was refused" in operator.send(f"{one}/delete", 409, confirmation="growth").text
    operator.open(page)
    operator.send(f"{page}/plan", plan_id="")
    operator.send(f"{page}/organization", requests_per_minute="")
    operator.open(one)
    operator.send(f"{one}/budget", currency="EUR", amount="")
    assert operator.send(f"{one}/delete", confirmation="growth").url.path == PLANS and operator.open(one).status_code == 404


def test_organization_sees_its_plan_where_it_binds_and_cannot_change_it(owner: Browser, auditor: Browser, used: TenantSetup) -> None:
    page = f"{root_of(used)}/limits"
    for viewer in (owner, auditor):
        shown = viewer.open(page).text
        assert ("What the limits of the organization are made of" in shown) == (viewer is auditor)
        assert f'action="{page}/' not in shown
        for form in ("plan", "organization", "override/end"):
            assert viewer.post(f"{page}/{form}", {"form_token": find_token(viewer)}).status_code == 403, form
            viewer.open(page)
