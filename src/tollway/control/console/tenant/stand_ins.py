"""Parts that the pages of workload identities and of certificates share: the service account that a token or a certificate stands for, and
what one of them must say."""

from tollway.control.api.identity import service_accounts
from tollway.control.api.schemas import PageQuery
from tollway.control.console.routing import Page
from tollway.domain.faults import PARAMETER_INVALID, Fault

OFFERED_MAX = 100
"""Service accounts of a project that a form offers."""


def offer_accounts(page: Page, project_id: str) -> dict[str, str]:
    """Return the names of the service accounts of a project that a form offers, by id; none without a project, or to whoever may not see
    them. Raises RESOURCE_UNKNOWN."""
    if not project_id or not page.allows(service_accounts.list_service_accounts, project_id):
        return {}
    query = PageQuery(limit=OFFERED_MAX)
    return {each.id: each.name for each in page.call(service_accounts.list_service_accounts, project_id=project_id, query=query).data}


def read_matchers(text: str) -> dict[str, str]:
    """Return what a field says that must be so, one a line (`name: value`). Raises PARAMETER_INVALID."""
    matchers: dict[str, str] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        name, colon, value = (each.strip() for each in line.partition(":"))
        if not colon or not name or name in matchers:
            message = "What must be so is written one a line, such as `sub: repo:acme/*`, each name once."
            raise Fault(PARAMETER_INVALID, param="matchers", message=message)
        matchers[name] = value
    return matchers
