"""Snapshot: all that a gateway must know, as a set of entries under one version number.

A snapshot is a sequence of entries; a change is (version, entry or removal). Both planes share this one shape, so that a full
resync, a single change and the copy on a gateway's disk are the same lines. An entry holds what the request path needs and nothing
else: keys as digests, credentials sealed, no names of people or things. Versions are dense and ordered by commit.
"""

from collections.abc import Callable
from typing import get_args

import msgspec

from tollway.domain.budgets import BudgetLevel, BudgetMode, name_place_budget
from tollway.domain.catalog import HEDGE_PERCENT_FIRST, Deployment, Endpoint, Guardrail, GuardrailStages, UnknownParameters
from tollway.domain.certificates import CertificateMapping
from tollway.domain.credits import CreditPlace, CreditScope
from tollway.domain.keys import KeyType
from tollway.domain.limits import UNLIMITED, Limits
from tollway.domain.prices import PriceTerms, PriceVersion
from tollway.domain.project_policies import ALL_TIERS, ServiceTiers
from tollway.domain.tokens import FederationRule, Jwk


class OrganizationEntry(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="organization", omit_defaults=True):
    """An organization that may act. Archived ones are removed. `terms`: by which price list it pays, ordered by valid_from; without
    any, every model is closed to it. `model_limits`: its limits on single models, by name. `queue_weight`: its share in the queues of
    models, beside those of other organizations. `response_retention_seconds`: how long its responses are stored; None stores none.

    `is_erased`: it was archived and erased. Gateways remove what their directories hold of it, and it stays in the snapshot for those that
    come back later. A gateway that does not know this field serves nothing for it either, because it has neither projects nor keys."""

    id: str
    currency: str
    terms: tuple[PriceTerms, ...] = ()
    limits: Limits = UNLIMITED
    model_limits: dict[str, Limits] = {}
    queue_weight: int = 1
    response_retention_seconds: int | None = None
    is_erased: bool = False


class ProjectEntry(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="project", omit_defaults=True):
    """A project that may act. `models`: what its keys may use; None for every published model but those of `denied_models`. `model_limits`:
    its limits on single models, by name. `end_user_limits`: those of each of its end users on all models together;
    `end_user_model_limits`: those on single models and groups, by name. `residency`: the regions of deployments that may serve it; None for
    any. `service_tiers`: those of its requests. `logs_content`: whether the content of its requests is logged."""

    id: str
    organization_id: str
    limits: Limits = UNLIMITED
    models: tuple[str, ...] | None = None
    model_limits: dict[str, Limits] = {}
    end_user_limits: Limits = UNLIMITED
    residency: tuple[str, ...] | None = None
    denied_models: tuple[str, ...] = ()
    service_tiers: ServiceTiers = ALL_TIERS
    logs_content: bool = False
    end_user_model_limits: dict[str, Limits] = {}

    def list_end_user_limits(self) -> tuple[tuple[str, Limits], ...]:
        """Return the limits of each end user, each with what it is on: a model, a group of models, or empty for all models together."""
        of_all = () if self.end_user_limits == UNLIMITED else (("", self.end_user_limits),)
        return (*of_all, *self.end_user_model_limits.items())


class KeyEntry(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="key", omit_defaults=True, gc=False):
    """An inference key by digest. A revoked key is removed. `models` narrows the project's; `expires_at` is exclusive. There may be a
    million of them, and none can be part of a cycle, so the garbage collector does not look at them.

    `previous_digest`: of the secret before a rotation, which is valid until `previous_expires_at` (exclusive); empty if there is none.

    `service_account_id`: the account that it belongs to, whose limits its entry repeats, because an account alone is nothing that a request
    names.

    `endpoints`: the endpoints that it may call; None for all. `addresses`: the ranges (`domain.networks`) from which it may be used; None
    for any. `output_tokens_max`: most output tokens of one sequence, beside the model's own bound; None for no other.
    """

    id: str
    digest: bytes
    type: KeyType
    project_id: str
    limits: Limits = UNLIMITED
    models: tuple[str, ...] | None = None
    expires_at: int | None = None
    model_limits: dict[str, Limits] = {}
    service_account_id: str | None = None
    service_account_limits: Limits = UNLIMITED
    service_account_model_limits: dict[str, Limits] = {}
    previous_digest: bytes = b""
    previous_expires_at: int | None = None
    endpoints: tuple[Endpoint, ...] | None = None
    addresses: tuple[str, ...] | None = None
    output_tokens_max: int | None = None


class ModelEntry(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="model", omit_defaults=True):
    """A published model: `id` is its public name. `prices` are of all price lists and service tiers, ordered by valid_from, never empty.
    `groups`: the groups of models that it is in. `fallbacks`: names of models, which need not be published. `hedge_after_ms`,
    `hedge_percent`, `latency_goal_ms`, `response_cache_seconds`, `guardrail`, `guardrail_stages`: see `catalog.Model`."""

    id: str
    endpoints: tuple[Endpoint, ...]
    created_at: int
    prices: tuple[PriceVersion, ...]
    output_tokens_max: int | None = None
    context_length: int | None = None
    unknown_parameters: UnknownParameters = UnknownParameters.REFUSE
    retry_started: bool = True
    share_cache: bool = False
    groups: tuple[str, ...] = ()
    fallbacks: tuple[str, ...] = ()
    hedge_after_ms: int | None = None
    hedge_percent: int = HEDGE_PERCENT_FIRST
    latency_goal_ms: int | None = None
    response_cache_seconds: int = 0
    guardrail: Guardrail = Guardrail.OFF
    guardrail_stages: GuardrailStages = GuardrailStages.BOTH


class DeploymentEntry(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="deployment", omit_defaults=True):
    """A deployment that may be routed to."""

    id: str
    deployment: Deployment


class BudgetEntry(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="budget", omit_defaults=True):
    """A budget that binds requests, or that only alerts and counts a part of the requests of its subject, which gateways name in their
    records. What may be spent of it a gateway learns with its lease. `subject_id`: of the key, project or organization. `model`: a model or
    a group of models whose requests alone are counted; empty for all. `tag`: a key and its value in `metadata`
    (`domain.budgets.format_tag`) of requests that alone are counted; empty for all. `fallback_model`: the model by which
    requests are served that it would refuse; empty for none. `end_user`, `throttle_requests_per_minute`: as `domain.budgets.Budget` has
    them. `scopes`: of a prepaid budget: what its organization's grants with a scope are for, which is counted by place; empty for any
    other. `place_project_id`: of such a part of one (`find_place`), its project, beside `model`."""

    id: str
    organization_id: str
    level: BudgetLevel
    subject_id: str
    mode: BudgetMode
    model: str = ""
    tag: str = ""
    fallback_model: str = ""
    end_user: str = ""
    throttle_requests_per_minute: int = 0
    scopes: tuple[CreditScope, ...] = ()
    place_project_id: str = ""

    def find_place(self, project_id: str, model: str) -> "BudgetEntry":
        """Return the budget, or its part, that counts requests of a project for a model: of a prepaid one the part for the place, where
        credit with a scope can be used there."""
        if not any(each.covers(project_id, model) for each in self.scopes):
            return self
        id = name_place_budget(self.id, CreditPlace(project_id, model))
        return msgspec.structs.replace(self, id=id, model=model, place_project_id=project_id, scopes=())


class SigningKeyEntry(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="signing_key", omit_defaults=True):
    """A public key that verifies access tokens of this platform. `id`: the key id that their headers name. `issuer`: what
    their `iss` is."""

    id: str
    issuer: str
    key: Jwk


class IssuerEntry(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="issuer", omit_defaults=True):
    """An organization's own issuer whose tokens gateways accept. `id`: of the identity provider. `rules`: enabled ones, the first that
    matches counts; each names a key of the organization."""

    id: str
    organization_id: str
    issuer: str
    audience: str
    keys: tuple[Jwk, ...]
    rules: tuple[FederationRule, ...]


class CertificateEntry(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="certificate", omit_defaults=True):
    """A certificate that an organization trusts. `certificate`: DER. `rules`: those of projects in which it is active, the first that
    matches counts; each names a key of the organization."""

    id: str
    organization_id: str
    certificate: bytes
    rules: tuple[CertificateMapping, ...]


Entry = (
    OrganizationEntry
    | ProjectEntry
    | KeyEntry
    | ModelEntry
    | DeploymentEntry
    | BudgetEntry
    | SigningKeyEntry
    | IssuerEntry
    | CertificateEntry
)


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One step: at `version` the entry (kind, id) became `entry`, or went away if None."""

    version: int
    kind: str
    id: str
    entry: Entry | None


class SnapshotHead(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """First line of a snapshot: format, the version it shows, and how many entry lines follow. `is_verbatim`: of a copy on a gateway's
    disk, whether its lines are those that control sent. Programs before this field kept only what they knew themselves."""

    format: int
    version: int
    entries: int
    is_verbatim: bool = False


SNAPSHOT_AGE_SECONDS_MAX = 86_400
"""Longest time for which a gateway serves without a confirmation by control that it has missed no change. It bounds how old the prices,
keys and limits are that a gateway goes by while it cannot reach control; the setting of a gateway may be shorter, not longer."""

FORMAT = 1
"""Version of snapshot, change and record exchange. Both sides understand N and N-1. Gateways pass over fields and kinds of entries that
they do not know, so what restricts requests and may not be passed over needs the next format."""

_KINDS = frozenset(str(each.__struct_config__.tag) for each in get_args(Entry))


class _Kind(msgspec.Struct, frozen=True):
    kind: str


def decode_entry(line: bytes) -> Entry | None:
    """Return the entry of a line; None for one of a kind that this version does not know. Raises ValueError or RecursionError."""
    try:
        return _decode_entry(line)
    except msgspec.ValidationError:
        if is_known(_decode_kind(line).kind):
            raise
        return None


_decode_entry: Callable[[bytes], Entry] = msgspec.json.Decoder(Entry).decode
_decode_kind: Callable[[bytes], _Kind] = msgspec.json.Decoder(_Kind).decode


def is_known(kind: str) -> bool:
    """Return whether this version knows a kind of entries."""
    return kind in _KINDS


def change(version: int, entry: Entry) -> Change:
    """The change that puts `entry` in place at `version`."""
    return Change(version=version, kind=kind_of(entry), id=entry.id, entry=entry)


def kind_of(entry: Entry) -> str:
    """The entry's kind as it stands on the wire: the `tag` of its class, such as "organization"."""
    return str(type(entry).__struct_config__.tag)
