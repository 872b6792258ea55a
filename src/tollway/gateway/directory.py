"""The current snapshot, indexed for the request path: a dict lookup finds a caller, another a model. No I/O, no lifetime.

Callers are compiled from key, project and organization when first seen, and with them how they are offered each model that they ask
for. All of it is dropped whenever anything changes, in the same call that applies the change; so nothing can outlive a revocation. A
reset builds the new maps beside the old ones, entry by entry, and swaps them at the end: requests see one version or the other, never a
mixture.
"""

import hashlib
from collections.abc import Iterable
from itertools import islice

import msgspec

from tollway.domain.catalog import COUNTED_ENDPOINTS, Deployment, Endpoint, covers_model, is_resident
from tollway.domain.faults import SNAPSHOT_MISSING, SNAPSHOT_OUTDATED, FaultKind
from tollway.domain.keys import USE_SECONDS, USES_MAX, KeyType, SecretUse, shorten_digest
from tollway.domain.limits import Limits
from tollway.domain.prices import PriceVersion, find_price, find_terms
from tollway.domain.snapshot import (
    BudgetEntry,
    CertificateEntry,
    Change,
    DeploymentEntry,
    Entry,
    IssuerEntry,
    KeyEntry,
    ModelEntry,
    OrganizationEntry,
    ProjectEntry,
    SigningKeyEntry,
)
from tollway.domain.tokens import TokenInvalid
from tollway.domain.usage import ServiceTier
from tollway.engines.profile import EngineProfile
from tollway.engines.table import ENGINES, can_compact, can_count, is_translated
from tollway.gateway.certificates import TrustedCertificates
from tollway.gateway.dialects.table import DIALECTS
from tollway.gateway.principal import PrincipalKind, principal_of_key, principal_of_submission, principal_of_token
from tollway.gateway.request import Caller, ModelGrant
from tollway.gateway.tokens import TrustedIssuers, VerifiedToken

USE_US = USE_SECONDS * 1_000_000

USES_NOTED_MAX = 20 * USES_MAX
"""Uses of secrets that wait to be reported. Beyond it they are noted again when the key is used next."""

TOKENS_MAX = 16_384
"""Verified tokens that are remembered, some 30 MB with their callers. Beyond it the one that was verified first is verified again when it
is next used."""

INSTANT_MAX = 2**63 - 1
"""An instant that no request reaches, in microseconds."""


CALLERS_MAX = 16_384
"""Compiled callers that are remembered. Beyond it the first one is forgotten, and compiled again when it is next seen, in some 10 µs."""

RELEASED_CALLERS = 1_000
"""Callers of the version before whose memory is given back at once, in less than a millisecond."""

SHARDS = 1_024
"""Parts of the index of keys. A dict that grows copies itself at once: with a million keys in one, everything would wait for 30 ms."""

DIGEST_BYTES = 32

BATCH_PREFIX = b"batch:"
BACKGROUND_PREFIX = b"background:"
"""Before the id of a key: stands for a digest, by which the lines of its batches, and its responses in the background, find their caller.
No digest has one of them and that length."""

_SUBMISSIONS = {BATCH_PREFIX: PrincipalKind.BATCH, BACKGROUND_PREFIX: PrincipalKind.BACKGROUND}

NO_MODEL_LIMITS: dict[str, Limits] = {}
"""Limits by model of every key that has none. Nobody changes the limits of an entry."""


class _Keys:
    """The keys by digest, and the digests of each key by its id: of its present secret, and after it of the secret before."""

    def __init__(self) -> None:
        self._by_digest: list[dict[bytes, KeyEntry]] = [{} for _ in range(SHARDS)]
        self._digests: list[dict[str, bytes]] = [{} for _ in range(SHARDS)]
        self._project_ids: dict[str, str] = {}

    def find(self, digest: bytes) -> KeyEntry | None:
        """Return the key one of whose secrets has this digest."""
        return self._by_digest[hash(digest) % SHARDS].get(digest)

    def list_digests(self, id: str) -> tuple[bytes, ...]:
        """Return the digests of the secrets of a key, the present one first; none for a key that is not here."""
        joined = self._digests[hash(id) % SHARDS].get(id)
        if joined is None:
            return ()
        return (joined,) if len(joined) == DIGEST_BYTES else (joined[:DIGEST_BYTES], joined[DIGEST_BYTES:])

    def put(self, entry: KeyEntry) -> None:
        """Add or replace a key."""
        self.remove(entry.id)
        # What is equal is one object: each line of a snapshot brings its own, 200 bytes of every key.
        msgspec.structs.force_setattr(entry, "project_id", self._project_ids.setdefault(entry.project_id, entry.project_id))
        if not entry.model_limits:
            msgspec.structs.force_setattr(entry, "model_limits", NO_MODEL_LIMITS)
        if not entry.service_account_model_limits:
            msgspec.structs.force_setattr(entry, "service_account_model_limits", NO_MODEL_LIMITS)
        joined = entry.digest
        self._put_digest(entry.digest, entry)
        if entry.previous_digest:
            self._put_digest(entry.previous_digest, msgspec.structs.replace(entry, expires_at=entry.previous_expires_at))
            joined = entry.digest + entry.previous_digest
        self._digests[hash(entry.id) % SHARDS][entry.id] = joined

    def remove(self, id: str) -> None:
        """Remove a key with all of its secrets, if it is here."""
        for digest in self.list_digests(id):
            self.forget(digest)
        self._digests[hash(id) % SHARDS].pop(id, None)

    def forget(self, digest: bytes) -> None:
        """Remove one secret, if it is here."""
        self._by_digest[hash(digest) % SHARDS].pop(digest, None)

    def release_part(self) -> bool:
        """Give back the memory of a part of the keys. Return whether there is more. Only for keys that nobody looks up any more."""
        if self._by_digest:
            self._by_digest.pop().clear()
        elif self._digests:
            self._digests.pop().clear()
        return bool(self._digests)

    def _put_digest(self, digest: bytes, entry: KeyEntry) -> None:
        self._by_digest[hash(digest) % SHARDS][digest] = entry


class _Maps:
    def __init__(self) -> None:
        self.organizations: dict[str, OrganizationEntry] = {}
        self.projects: dict[str, ProjectEntry] = {}
        self.keys = _Keys()
        self.models: dict[str, ModelEntry] = {}
        self.deployments: dict[str, DeploymentEntry] = {}
        self.budgets: dict[str, BudgetEntry] = {}
        self.budgets_by_subject: dict[str, dict[str, BudgetEntry]] = {}
        self.signing_keys: dict[str, SigningKeyEntry] = {}
        self.issuers: dict[str, IssuerEntry] = {}
        self.certificates: dict[str, CertificateEntry] = {}
        self.erased: dict[str, OrganizationEntry] = {}

    def put_organization(self, entry: OrganizationEntry) -> None:
        """Add or replace an organization. One that was erased is none that may act."""
        self.remove_organization(entry.id)
        (self.erased if entry.is_erased else self.organizations)[entry.id] = entry

    def remove_organization(self, id: str) -> None:
        """Remove an organization, if it is there."""
        self.organizations.pop(id, None)
        self.erased.pop(id, None)

    def list_budgets(self, subject_ids: tuple[str, ...]) -> tuple[BudgetEntry, ...]:
        """Return the budgets of these things, in their order."""
        return tuple(each for id in subject_ids for each in self.budgets_by_subject.get(id, {}).values())

    def put_budget(self, entry: BudgetEntry) -> None:
        """Add or replace a budget. What it is a budget of never changes."""
        self.budgets[entry.id] = entry
        self.budgets_by_subject.setdefault(entry.subject_id, {})[entry.id] = entry

    def remove_budget(self, id: str) -> None:
        """Remove a budget, if it is there."""
        entry = self.budgets.pop(id, None)
        if entry is not None:
            of_subject = self.budgets_by_subject[entry.subject_id]
            del of_subject[id]
            if not of_subject:
                del self.budgets_by_subject[entry.subject_id]


class Directory:
    """All that this gateway knows, at `version`. `obstacle`: the fault with which every request is answered while there is no snapshot, or
    one that is too old to go by; None while requests can be served. `end_user_key`: with which the names of end users are hashed, at most
    64 bytes."""

    def __init__(self, end_user_key: bytes = b"") -> None:
        self.version = 0
        self.end_user_key = end_user_key
        self.obstacle: FaultKind | None = SNAPSHOT_MISSING
        self._is_expired = False
        self._maps = _Maps()
        self._building: _Maps | None = None
        self._replaced: _Keys | None = None
        self._dropped_callers: dict[bytes, Caller] = {}
        self._callers: dict[bytes, Caller] = {}
        self._prices: dict[str, dict[tuple[str, ServiceTier], tuple[PriceVersion, ...]]] = {}
        self._uses: dict[bytes, SecretUse] = {}
        self._trusted: TrustedIssuers | None = None
        self._certificates: TrustedCertificates | None = None
        self.certificates_version = 0
        self._tokens: dict[bytes, VerifiedToken] = {}

    # Asked by the phases.

    def find_caller(self, digest: bytes, now_us: int) -> Caller | None:
        """The caller whose key has this digest and has not expired, if key, project and organization are all in the snapshot.

        A key that is found expired is forgotten: from its next use on it is one that never was, so that the time it takes shows nobody
        that it was. Only a change brings it back.
        """
        caller = self._callers.get(digest)
        if caller is not None and (caller.expires_at is None or caller.expires_at > now_us):
            if now_us >= caller.use_due_at:
                self._note_use(caller, digest, now_us)
            return caller
        maps = self._maps
        key = maps.keys.find(digest)
        if key is None:
            return self._find_submitter(digest, now_us) if len(digest) != DIGEST_BYTES else None
        if key.expires_at is not None and key.expires_at <= now_us:
            maps.keys.forget(digest)
            self._callers.pop(digest, None)
            return None
        caller = self._compile_caller(key, digest, None)
        if caller is not None:
            self._note_use(caller, digest, now_us)
        return caller

    def _find_submitter(self, digest: bytes, now_us: int) -> Caller | None:
        """Return the caller of what a key has submitted, whose id follows one of _SUBMISSIONS in `digest`, while the key is valid."""
        prefix, _, key_id = digest.partition(b":")
        kind = _SUBMISSIONS.get(prefix + b":")
        digests = () if kind is None else self._maps.keys.list_digests(key_id.decode("latin-1"))
        key = self._maps.keys.find(digests[0]) if digests else None
        if kind is None or key is None or (key.expires_at is not None and key.expires_at <= now_us):
            return None
        return self._compile_caller(key, digest, None, kind)

    def find_token_caller(self, digest: bytes, token: bytes, now_us: int) -> Caller | None:
        """The caller whose key an access token stands for, if that is valid and in the snapshot. `digest`: SHA-256 of the whole token.

        Raises TokenInvalid. A token is verified once, and remembered until an issuer changes: what it stands for is looked up each time.
        """
        token_caller = self._find_verified(digest, now_us)
        if token_caller is not None:
            return token_caller
        verified = self._tokens.get(digest)
        if verified is None:
            if self._trusted is None:
                self._trusted = TrustedIssuers(self._maps.signing_keys.values(), self._maps.issuers.values())
            verified = self._remember(digest, self._trusted.verify(token, now_us))
        elif verified.expires_at <= now_us:
            self._forget_token(digest)
            raise TokenInvalid("it has expired")
        return self._compile_verified(digest, verified, PrincipalKind.TOKEN, now_us)

    def find_certificate_caller(self, digest: bytes, organization_id: str, der: bytes, now_us: int) -> Caller | None:
        """The caller whose key a client certificate stands for in an organization, if that is valid and in the snapshot. `digest`: of both.

        Raises CertificateInvalid. A certificate is verified once, as a token is, until a certificate or an issuer changes.
        """
        caller = self._find_verified(digest, now_us)
        if caller is not None:
            return caller
        verified = self._tokens.get(digest)
        if verified is None or verified.expires_at <= now_us:
            if self._certificates is None:
                self._certificates = TrustedCertificates(self._maps.certificates.values())
            verified = self._remember(digest, self._certificates.verify(organization_id, der, now_us))
        return self._compile_verified(digest, verified, PrincipalKind.CERTIFICATE, now_us)

    def list_certificates(self) -> list[bytes]:
        """Every certificate (DER) that an organization trusts."""
        return [entry.certificate for entry in self._maps.certificates.values()]

    def _find_verified(self, digest: bytes, now_us: int) -> Caller | None:
        """Return the caller of a token or a certificate that was compiled before and has not ended."""
        caller = self._callers.get(digest)
        if caller is None or (caller.expires_at is not None and caller.expires_at <= now_us):
            return None
        if now_us >= caller.use_due_at:
            self._note_use(caller, digest, now_us)
        return caller

    def _remember(self, digest: bytes, verified: VerifiedToken) -> VerifiedToken:
        if len(self._tokens) >= TOKENS_MAX:
            self._forget_token(next(iter(self._tokens)))
        self._tokens[digest] = verified
        return verified

    def _compile_verified(self, digest: bytes, verified: VerifiedToken, kind: PrincipalKind, now_us: int) -> Caller | None:
        """Return the caller of the key that a token or a certificate stands for, if it is in the snapshot and has not expired."""
        digests = self._maps.keys.list_digests(verified.key_id)
        key = self._maps.keys.find(digests[0]) if digests else None
        if key is None or (key.expires_at is not None and key.expires_at <= now_us):
            return None
        caller = self._compile_caller(key, digest, verified, kind)
        if caller is not None:
            self._note_use(caller, digest, now_us)
        return caller

    def _forget_token(self, digest: bytes) -> None:
        del self._tokens[digest]
        self._callers.pop(digest, None)

    def _compile_caller(
        self, key: KeyEntry, digest: bytes, token: VerifiedToken | None, kind: PrincipalKind = PrincipalKind.API_KEY
    ) -> Caller | None:
        """Return the caller of a key, or of what stands for it, if its project and organization are in the snapshot."""
        maps = self._maps
        project = maps.projects.get(key.project_id)
        organization = maps.organizations.get(project.organization_id) if project is not None else None
        if project is None or organization is None:
            return None
        salt = hashlib.sha256(b"tollway cache salt\0" + organization.id.encode()).hexdigest()[:32]
        is_test = key.type is KeyType.TEST  # it is never billed
        budgets = () if is_test else maps.list_budgets((key.id, project.id, organization.id))
        principal = principal_of_key(key, project, organization)
        if token is not None:
            principal = principal_of_token(token, principal, kind)
        elif kind is not PrincipalKind.API_KEY:
            principal = principal_of_submission(principal, kind)
        if len(self._callers) >= CALLERS_MAX:
            del self._callers[next(iter(self._callers))]
        caller = self._callers[digest] = Caller(principal, f'"{salt}"'.encode(), budgets, digest, self.version)
        return caller

    def is_revoked(self, caller: Caller) -> bool:
        """Return whether the secret of a caller that was found before has been revoked or retired since, or its project or organization
        archived. One that has merely expired is not revoked: what it began, it may end."""
        if caller.version == self.version:
            return False
        maps = self._maps
        secrets = maps.keys.list_digests(caller.principal.id)
        if (
            (caller.digest in secrets or (bool(secrets) and caller.principal.kind is not PrincipalKind.API_KEY))
            and caller.project.id in maps.projects
            and caller.organization.id in maps.organizations
        ):
            caller.version = self.version
            return False
        return True

    def _note_use(self, caller: Caller, digest: bytes, now_us: int) -> None:
        if caller.principal.kind is not PrincipalKind.API_KEY:
            caller.use_due_at = now_us + USE_US
            secrets = self._maps.keys.list_digests(caller.principal.id)
            if len(secrets) != 1:  # neither a token nor a batch says which of two secrets it was made with
                return
            digest = secrets[0]
        if len(self._uses) < USES_NOTED_MAX or digest in self._uses:
            self._uses[digest] = SecretUse(caller.principal.id, shorten_digest(digest), now_us)
            caller.use_due_at = now_us + USE_US

    def take_uses(self) -> list[SecretUse]:
        """Return uses of secrets that were not reported yet, USES_MAX at most, and forget them."""
        return [self._uses.pop(digest) for digest in list(islice(self._uses, USES_MAX))]

    def find_grant(self, caller: Caller, name: str, endpoint: Endpoint, at: int) -> ModelGrant | None:
        """The published model of exactly this name, if the caller may use it, as it is offered at an endpoint at instant `at`."""
        grant = caller.grants.get((name, endpoint))
        if grant is None or not grant.valid_from <= at < grant.valid_until:
            grant = self._compile_grant(caller, name, endpoint, at)
            if grant is not None:
                caller.grants[name, endpoint] = grant
        return grant

    def _compile_grant(self, caller: Caller, name: str, endpoint: Endpoint, at: int) -> ModelGrant | None:
        model = self._maps.models.get(name)
        if model is None or not caller.principal.may_use(name):
            return None
        model = cap_output(model, caller.principal.output_tokens_max)
        terms = caller.organization.terms
        in_force = find_terms(terms, at)
        price_list = None if in_force is None else in_force.list
        turns = [term.valid_from for term in terms] + [price.valid_from for price in model.prices]
        is_served, is_translated_somewhere = find_service(model, endpoint, self._list_deployments_of(name, caller))
        tiers = caller.project.service_tiers
        default_tier = tiers.default
        prices: dict[ServiceTier, PriceVersion | None]
        if caller.principal.kind is PrincipalKind.BATCH:  # whatever tier a line asks for
            default_tier = ServiceTier.BATCH
            prices = dict.fromkeys(ServiceTier, find_price(self.list_prices(model, price_list, default_tier), at))
        else:
            prices = {tier: find_price(self.list_prices(model, price_list, tier), at) for tier in ServiceTier if tiers.allows(tier)}
        return ModelGrant(
            model,
            {tier: price for tier, price in prices.items() if price is not None},
            max((turn for turn in turns if turn <= at), default=0),
            min((turn for turn in turns if turn > at), default=INSTANT_MAX),
            is_served=is_served,
            is_translated=is_translated_somewhere,
            known_fields=self._list_known_fields(name, endpoint, caller),
            cache_salt=caller.cache_salt,
            default_tier=default_tier,
            terms_valid_from=0 if in_force is None else in_force.valid_from,
            budgets=tuple(
                each.find_place(caller.project.id, model.id) for each in caller.budgets if covers_model(each.model, model.id, model.groups)
            ),
            has_running_usage=all(engine.continuous_usage for engine in self._list_engines(name, caller)),
        )

    def list_prices(self, model: ModelEntry, price_list: str | None, tier: ServiceTier) -> tuple[PriceVersion, ...]:
        """The model's prices on a price list in a service tier, ordered by valid_from; none if it is closed there."""
        by_series = self._prices.get(model.id)
        if by_series is None:
            grouped: dict[tuple[str, ServiceTier], list[PriceVersion]] = {}
            for price in model.prices:
                grouped.setdefault((price.list, price.tier), []).append(price)
            by_series = self._prices[model.id] = {series: tuple(prices) for series, prices in grouped.items()}
        return () if price_list is None else by_series.get((price_list, tier), ())

    def find_model(self, name: str) -> ModelEntry | None:
        """The published model of exactly this name."""
        return self._maps.models.get(name)

    def list_models(self) -> list[ModelEntry]:
        """Every published model, by name."""
        return sorted(self._maps.models.values(), key=lambda model: model.id)

    def _list_known_fields(self, model: str, endpoint: Endpoint, caller: Caller) -> frozenset[str]:
        """Return the request fields that every deployment understands to which a caller may be routed: the dialect's and those common to
        their engines."""
        engines = self._list_engines(model, caller)
        common = frozenset.intersection(*(engine.fields for engine in engines)) if engines else frozenset()
        return frozenset(DIALECTS[endpoint].fields) | common

    def _list_engines(self, model: str, caller: Caller) -> list[EngineProfile]:
        """Return the engines of the deployments to which a caller may be routed."""
        names = {deployment.engine for deployment in self._list_deployments_of(model, caller)}
        return [ENGINES[name] for name in names]

    def _list_deployments_of(self, model: str, caller: Caller) -> list[Deployment]:
        """Return the deployments of a model to which a caller may be routed."""
        deployments = (entry.deployment for entry in self._maps.deployments.values())
        return [
            deployment
            for deployment in deployments
            if deployment.model == model and deployment.test is caller.is_test and is_resident(deployment, caller.residency)
        ]

    def digest_model(self, model: ModelEntry, caller: Caller) -> bytes:
        """Return a digest of a model as it is offered to a caller, with the deployments to which that may be routed: another one after any
        change of them."""
        deployments = sorted(self._list_deployments_of(model.id, caller), key=lambda each: each.id)
        return hashlib.sha256(msgspec.json.encode((model, deployments))).digest()

    def list_deployments(self) -> list[DeploymentEntry]:
        """Every deployment that may be routed to."""
        return list(self._maps.deployments.values())

    def list_budgets(self) -> dict[str, BudgetEntry]:
        """Return every budget, by id."""
        return self._maps.budgets

    def list_erased(self) -> list[str]:
        """Return the ids of the organizations that were erased."""
        return list(self._maps.erased)

    # Told by the link.

    def begin_reset(self) -> None:
        """Start building a new snapshot beside the current one."""
        self._building = _Maps()

    def add(self, entry: Entry) -> None:
        """Add an entry to the snapshot being built."""
        assert self._building is not None
        _put(self._building, entry)

    def finish_reset(self, version: int) -> None:
        """The snapshot being built is whole: from now on it is the current one."""
        assert self._building is not None
        self._replaced, self._maps, self._building = self._maps.keys, self._building, None
        self._forget_tokens()
        self._drop_callers()
        self._prices.clear()
        self.version = version
        self.obstacle = SNAPSHOT_OUTDATED if self._is_expired else None

    def release_part(self) -> bool:
        """Give back a part of the memory of the version before the latest. Return whether there is more: a million keys, or the callers of
        thousands, at once would make every request wait."""
        for _ in range(min(RELEASED_CALLERS, len(self._dropped_callers))):
            self._dropped_callers.popitem()
        if self._replaced is not None and not self._replaced.release_part():
            self._replaced = None
        return bool(self._dropped_callers) or self._replaced is not None

    def set_expired(self, is_expired: bool) -> None:
        """Say whether the snapshot is too old to go by. Requests that were admitted before go on."""
        self._is_expired = is_expired
        if self.obstacle is not SNAPSHOT_MISSING:
            self.obstacle = SNAPSHOT_OUTDATED if is_expired else None

    def apply(self, change: Change) -> None:
        """Take one step. The caller guarantees order; a version that is not newer is ignored, so nothing is ever undone by delay."""
        if change.version <= self.version:
            return
        maps = self._maps
        if change.kind in ("issuer", "signing_key", "certificate"):
            self._forget_tokens()
        if change.entry is not None:
            _put(maps, change.entry)
        elif change.kind == "key":
            maps.keys.remove(change.id)
        elif change.kind == "budget":
            maps.remove_budget(change.id)
        elif change.kind == "organization":
            maps.remove_organization(change.id)
        else:
            by_kind = {
                "project": maps.projects,
                "model": maps.models,
                "signing_key": maps.signing_keys,
                "issuer": maps.issuers,
                "certificate": maps.certificates,
                "deployment": maps.deployments,
            }
            of_kind = by_kind.get(change.kind)
            if of_kind is not None:  # a kind of a later version is passed over
                of_kind.pop(change.id, None)  # type: ignore[attr-defined]
        self._drop_callers()
        self._prices.clear()
        self.version = change.version

    def _drop_callers(self) -> None:
        """Compile callers anew from here on. `release_part` gives back the memory of those before."""
        self._callers, self._dropped_callers = {}, self._callers

    def _forget_tokens(self) -> None:
        """Have every token verified again: an issuer, or what its tokens stand for, has changed."""
        self._trusted = None
        self._certificates = None
        self.certificates_version += 1
        self._tokens.clear()


def cap_output(model: ModelEntry, tokens: int | None) -> ModelEntry:
    """Return a model whose answers have at most `tokens` output tokens, or fewer if it says so itself; None leaves it as it is."""
    if tokens is None or (model.output_tokens_max is not None and model.output_tokens_max <= tokens):
        return model
    return msgspec.structs.replace(model, output_tokens_max=tokens)


def find_service(model: ModelEntry, endpoint: Endpoint, deployments: Iterable[Deployment]) -> tuple[bool, bool]:
    """Return whether a model with these deployments has an endpoint, and whether one of them has it by translation only."""
    deployments = list(deployments)
    is_served = (DIALECTS[endpoint].model_endpoint or endpoint) in model.endpoints
    if endpoint in COUNTED_ENDPOINTS:
        is_served = is_served and all(can_count(each, endpoint) for each in deployments)
    if endpoint is Endpoint.COMPACT:
        is_served = is_served and all(map(can_compact, deployments))
    return is_served, any(is_translated(each, endpoint) for each in deployments)


def _put(maps: _Maps, entry: Entry) -> None:
    match entry:
        case KeyEntry():
            maps.keys.put(entry)
        case ProjectEntry():
            maps.projects[entry.id] = entry
        case OrganizationEntry():
            maps.put_organization(entry)
        case ModelEntry():
            maps.models[entry.id] = entry
        case DeploymentEntry():
            maps.deployments[entry.id] = entry
        case BudgetEntry():
            maps.put_budget(entry)
        case SigningKeyEntry():
            maps.signing_keys[entry.id] = entry
        case IssuerEntry():
            maps.issuers[entry.id] = entry
        case CertificateEntry():
            maps.certificates[entry.id] = entry
