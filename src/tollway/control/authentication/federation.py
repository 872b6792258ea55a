"""Identity providers of an organization and their rules: which tokens of other issuers stand for which service account.

Each rule has an API key of its own, which is made with it and revoked with it, and whose secret is thrown away. So a token that a rule maps
has a key like any other: with limits, budgets, usage and revocation. Whoever makes a rule can give it no more than a key that they could
make.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tollway.control import publish
from tollway.control.identity import issuer_keys
from tollway.control.identity import keys as api_keys
from tollway.control.identity.issuer_keys import KeysUnavailable
from tollway.control.identity.keys import Grantor, Ingredients, WantedKey
from tollway.control.tenancy import tenants
from tollway.domain import ids
from tollway.domain.catalog import Endpoint
from tollway.domain.faults import PARAMETER_INVALID, RESOURCE_UNKNOWN, STATE_CONFLICT, Fault
from tollway.domain.federation import PROVIDERS_MAX, RULES_MAX, IdentityProvider, ProviderRule
from tollway.domain.keys import KeyType
from tollway.domain.pages import Page, PageWindow
from tollway.domain.quotas import QuotaSizes
from tollway.domain.snapshot import IssuerEntry, KeyEntry
from tollway.domain.tokens import Jwk, find_matcher_error
from tollway.storage import federation as storage
from tollway.storage import keys as stored_keys
from tollway.storage.database import Database, PlatformTx, TenantTx
from tollway.worker_threads import run_in_thread

FETCH_US = 300 * 1_000_000
"""Time after which the keys of an issuer are fetched again."""

RETRY_US = 60 * 1_000_000
"""The same after an attempt that failed, and the earliest time after a token with an unknown key."""

STALE_US = 86_400 * 1_000_000
"""Time for which keys stay in force while their issuer cannot be reached."""


def check_provider(provider: IdentityProvider) -> None:
    """Raise PARAMETER_INVALID for an issuer, an audience or an address that cannot be a provider's."""
    for name, url in (("issuer", provider.issuer), ("verification.discovery_url", provider.discovery_url)):
        error = None if url is None or (provider.is_uploaded and name == "issuer") else issuer_keys.find_address_error(url)
        if error is not None:
            raise Fault(PARAMETER_INVALID, param=name, message=f"Invalid value for {name}: {error}.")
    if provider.is_direct and provider.organization_id not in provider.audience:
        message = f"Tokens are accepted without an exchange only with an audience that contains {provider.organization_id}."
        raise Fault(PARAMETER_INVALID, param="audience", message=message)


def fetch_keys(provider: IdentityProvider) -> tuple[Jwk, ...]:
    """Return the keys of a provider's issuer. Raises PARAMETER_INVALID, with the reason, if they cannot be had. Call it without a
    transaction: it may take seconds."""
    try:
        return tuple(issuer_keys.fetch_now(provider.issuer, provider.discovery_url, provider.organization_id))
    except KeysUnavailable as error:
        raise Fault(PARAMETER_INVALID, param="issuer", message=f"The keys of the issuer could not be fetched: {error}.") from None


def put_provider(tx: TenantTx, provider: IdentityProvider, now: int, *, is_new: bool) -> int:
    """Store an identity provider. Return the version of the snapshot that says so. Raises STATE_CONFLICT for another provider with the same
    issuer and audience, an archived organization or too many."""
    publish.lock(tx)
    tenants.require_active_organization(tx)
    if storage.has_provider(tx, provider.issuer, provider.audience, provider.id):
        raise Fault(STATE_CONFLICT, param="issuer", message="Another identity provider has this issuer and audience.")
    if is_new and storage.count_providers(tx) >= PROVIDERS_MAX:
        raise Fault(STATE_CONFLICT, message=f"An organization has at most {PROVIDERS_MAX} identity providers.")
    storage.put_provider(tx, provider, None if provider.is_uploaded else now + FETCH_US, is_new=is_new)
    return publish.publish(tx, IssuerEntry, [provider.id], now)


def change_provider(tx: TenantTx, before: IdentityProvider, changed: IdentityProvider, now: int) -> int:
    """Store another state of an identity provider that was `before`. Return the version of the snapshot that says so. Raises
    RESOURCE_UNKNOWN; STATE_CONFLICT if somebody else changed it meanwhile, and as `put_provider` does. Keys that are not changed are left
    as they were fetched meanwhile."""
    publish.lock(tx)
    stored = get_provider(tx, before.id)
    if replace(stored, keys=before.keys, fetched_at=before.fetched_at) != before:
        raise Fault(STATE_CONFLICT, message="The identity provider was changed meanwhile. Try again.")
    if (changed.keys, changed.fetched_at) == (before.keys, before.fetched_at):
        changed = replace(changed, keys=stored.keys, fetched_at=stored.fetched_at)
    return put_provider(tx, changed, now, is_new=False)


def get_provider(tx: TenantTx, provider_id: str) -> IdentityProvider:
    """Return an identity provider. Raises RESOURCE_UNKNOWN."""
    provider = storage.find_provider(tx, provider_id) if ids.is_id(ids.IDENTITY_PROVIDER, provider_id) else None
    if provider is None:
        raise Fault(RESOURCE_UNKNOWN)
    return provider


def list_providers(tx: TenantTx, window: PageWindow) -> Page[IdentityProvider]:
    """Return the identity providers of the organization."""
    return storage.list_providers(tx, window)


def delete_provider(tx: TenantTx, provider_id: str, now: int) -> int:
    """Delete an identity provider. Return the version that says so. Raises RESOURCE_UNKNOWN; STATE_CONFLICT while it has rules."""
    publish.lock(tx)
    get_provider(tx, provider_id)
    if storage.list_rules(tx, provider_id, None, PageWindow(None, 1, False)).items:
        raise Fault(STATE_CONFLICT, message="The identity provider has rules. Delete them first.")
    storage.delete_provider(tx, provider_id)
    return publish.publish(tx, IssuerEntry, [provider_id], now)


# ---- Rules --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyMaking:
    """Ingredients of the key of a new rule, and whoever makes it."""

    ingredients: Ingredients
    grantor: Grantor
    sizes: QuotaSizes


def create_rule(tx: TenantTx, rule: ProviderRule, making: KeyMaking, now: int) -> ProviderRule:
    """Store a rule and make its key. Raises RESOURCE_UNKNOWN, STATE_CONFLICT (too many rules, an archived project), PARAMETER_INVALID,
    QUOTA_EXCEEDED."""
    publish.lock(tx)
    get_provider(tx, rule.provider_id)
    _check_matchers(rule)
    if len(storage.list_rules(tx, rule.provider_id, None, PageWindow(None, RULES_MAX, False)).items) >= RULES_MAX:
        raise Fault(STATE_CONFLICT, message=f"An identity provider has at most {RULES_MAX} rules.")
    account = tenants.get_service_account(tx, rule.project_id, rule.service_account_id)
    wanted = WantedKey(
        type=KeyType.LIVE,
        name=f"Federation rule {rule.id}",
        service_account=account,
        grantor=making.grantor,
        endpoints=rule.endpoints,
    )
    api_keys.create_project_key(tx, rule.project_id, wanted, id=rule.key_id, ingredients=making.ingredients, sizes=making.sizes, now=now)
    storage.put_rule(tx, rule, is_new=True)
    publish.publish(tx, IssuerEntry, [rule.provider_id], now)
    return rule


def get_rule(tx: TenantTx, provider_id: str, rule_id: str) -> ProviderRule:
    """Return a rule of a provider. Raises RESOURCE_UNKNOWN."""
    get_provider(tx, provider_id)
    rule = storage.find_rule(tx, rule_id) if ids.is_id(ids.FEDERATION_RULE, rule_id) else None
    if rule is None or rule.provider_id != provider_id:
        raise Fault(RESOURCE_UNKNOWN)
    return rule


def list_rules(tx: TenantTx, provider_id: str, service_account_id: str | None, window: PageWindow) -> Page[ProviderRule]:
    """Return the rules of a provider. Raises RESOURCE_UNKNOWN."""
    get_provider(tx, provider_id)
    return storage.list_rules(tx, provider_id, service_account_id, window)


def change_rule(tx: TenantTx, rule: ProviderRule, now: int) -> ProviderRule:
    """Store another state of a rule, and where it names other endpoints than before, of the bound on its key's: one that was set on the key
    itself stays otherwise. Raises PARAMETER_INVALID; STATE_CONFLICT where its key was revoked. Take `publish.lock` before the rule is
    read, so that no other change is undone."""
    publish.lock(tx)
    before = get_rule(tx, rule.provider_id, rule.id)
    _check_matchers(rule)
    key = stored_keys.find_project_key(tx, rule.project_id, rule.key_id)
    if key is None:
        raise Fault(STATE_CONFLICT, message="The key of the rule was revoked. Delete the rule and make another one.")
    if rule.endpoints != before.endpoints:
        stored_keys.update_key(tx, replace(key, endpoints=rule.endpoints))
        publish.publish(tx, KeyEntry, [rule.key_id], now)
    storage.put_rule(tx, rule, is_new=False)
    publish.publish(tx, IssuerEntry, [rule.provider_id], now)
    return rule


def delete_rule(tx: TenantTx, provider_id: str, rule_id: str, now: int) -> int:
    """Delete a rule and revoke its key, and with it every token that stands for it. Return the version that says so. Raises
    RESOURCE_UNKNOWN."""
    publish.lock(tx)
    rule = get_rule(tx, provider_id, rule_id)
    storage.delete_rule(tx, rule_id)
    publish.publish(tx, IssuerEntry, [provider_id], now)
    return publish.publish(tx, KeyEntry, stored_keys.revoke_key(tx, rule.key_id, now), now)


def _check_matchers(rule: ProviderRule) -> None:
    error = find_matcher_error(rule.matchers)
    if error is not None:
        raise Fault(PARAMETER_INVALID, param="attribute_matchers", message=f"Invalid value for attribute_matchers: {error}.")


def parse_scopes(scopes: Sequence[str]) -> tuple[Endpoint, ...]:
    """Return the endpoints that scopes name. Raises PARAMETER_INVALID for anything else, and for none."""
    if not scopes or not set(scopes) <= set(Endpoint):
        raise Fault(PARAMETER_INVALID, param="permissions.scopes", message="A scope is an endpoint such as chat/completions.")
    return tuple(each for each in Endpoint if each in scopes)


# ---- Keys of issuers ----------------------------------------------------------------------------------------------------


def list_due(tx: PlatformTx, now: int, count_max: int) -> list[IdentityProvider]:
    """Return identity providers whose keys are to be fetched at `now`."""
    return storage.list_due(tx, now, count_max)


async def refresh_keys(
    database: Database, audited: Database, providers: Sequence[IdentityProvider], now: Callable[[], int]
) -> list[tuple[str, str]]:
    """Fetch the keys of issuers and publish those that changed. Return the providers whose issuer failed, each with the reason: their keys
    stay in force for STALE_US. `audited`: the database that records a change of keys in the audit trail; a fetch alone is none."""
    failed = []
    for provider in providers:
        try:
            keys: tuple[Jwk, ...] | None = await issuer_keys.fetch(provider.issuer, provider.discovery_url, provider.organization_id)
        except KeysUnavailable as error:
            keys = None
            failed.append((provider.id, str(error)))
        await run_in_thread(_store_keys, database, audited, provider, keys, now())
    return failed


def _store_keys(database: Database, audited: Database, provider: IdentityProvider, keys: tuple[Jwk, ...] | None, now: int) -> None:
    """Store the keys that were fetched for `provider` as it was then; None if they could not be. Nothing is stored if its issuer, its
    source of keys or its keys were changed meanwhile: whoever changed them has fetched or uploaded others."""
    is_stale = keys is None and provider.fetched_at is not None and now - provider.fetched_at > STALE_US
    kept = () if is_stale else provider.keys if keys is None else keys
    is_changed = kept != provider.keys
    with (audited if is_changed else database).tenant(provider.organization_id) as tx:
        publish.lock(tx)
        stored = storage.find_provider(tx, provider.id)
        if stored is None or _source_of_keys(stored) != _source_of_keys(provider):
            return
        storage.put_keys(tx, provider.id, kept, None if keys is None else now, now + (RETRY_US if keys is None else FETCH_US))
        if is_changed:
            publish.publish(tx, IssuerEntry, [provider.id], now)


def _source_of_keys(provider: IdentityProvider) -> tuple[object, ...]:
    return provider.issuer, provider.discovery_url, provider.is_uploaded, provider.keys, provider.fetched_at
