"""Limits: read and replaced as a whole, at the level that they limit, on all models together or on one."""

from collections.abc import Collection, Mapping

from tollway.control import publish
from tollway.control.bounds import quotas
from tollway.domain import ids
from tollway.domain.catalog import find_group
from tollway.domain.events import EventType, new_event
from tollway.domain.faults import MODEL_UNKNOWN, PARAMETER_INVALID, RESOURCE_UNKNOWN, Fault
from tollway.domain.limits import UNLIMITED, LevelLimits, LimitLevel, Limits, LimitSubject, find_problem
from tollway.domain.plans import ALL_MODELS
from tollway.domain.quotas import Quota, QuotaSizes
from tollway.domain.snapshot import Entry, KeyEntry, OrganizationEntry, ProjectEntry
from tollway.storage import catalog, outbox, plans
from tollway.storage import keys as stored_keys
from tollway.storage import limits as storage
from tollway.storage.database import TenantTx, Transaction

_PREFIXES = {
    LimitLevel.END_USER: ids.PROJECT,
    LimitLevel.API_KEY: ids.KEY,
    LimitLevel.SERVICE_ACCOUNT: ids.SERVICE_ACCOUNT,
    LimitLevel.PROJECT: ids.PROJECT,
    LimitLevel.ORGANIZATION: ids.ORGANIZATION,
}

_ENTRIES: dict[LimitLevel, type[Entry]] = {
    LimitLevel.END_USER: ProjectEntry,
    LimitLevel.API_KEY: KeyEntry,
    LimitLevel.PROJECT: ProjectEntry,
    LimitLevel.ORGANIZATION: OrganizationEntry,
}


def organization(tx: TenantTx) -> LimitSubject:
    """Return the organization of the transaction as what limits belong to."""
    return LimitSubject(LimitLevel.ORGANIZATION, tx.organization_id)


def project(project_id: str) -> LimitSubject:
    """Return a project as what limits belong to."""
    return LimitSubject(LimitLevel.PROJECT, project_id)


def end_users(project_id: str) -> LimitSubject:
    """Return each end user of a project as what limits belong to."""
    return LimitSubject(LimitLevel.END_USER, project_id)


def service_account(project_id: str, account_id: str) -> LimitSubject:
    """Return a project's service account as what limits belong to."""
    return LimitSubject(LimitLevel.SERVICE_ACCOUNT, account_id, project_id)


def api_key(project_id: str, key_id: str) -> LimitSubject:
    """Return a project's key as what limits belong to."""
    return LimitSubject(LimitLevel.API_KEY, key_id, project_id)


def get_limits(tx: TenantTx, subject: LimitSubject, model: str | None = None) -> Limits:
    """Return the limits of a subject on a model or a group of models, or on all models together (None).

    Raises RESOURCE_UNKNOWN if the subject does not exist or can no longer act."""
    limits = storage.find_limits(tx, subject) if _is_well_formed(subject) else None
    if limits is None:
        raise Fault(RESOURCE_UNKNOWN)
    return limits if model is None else _list_by_model(tx, subject).get(model, UNLIMITED)


def put_limits(tx: TenantTx, subject: LimitSubject, limits: Limits, now: int, model: str | None = None, *, sizes: QuotaSizes) -> Limits:
    """Replace the limits of a subject on a model or a group of models, or on all models together (None). `sizes`: of the quotas.

    Raises RESOURCE_UNKNOWN, MODEL_UNKNOWN, PARAMETER_INVALID, QUOTA_EXCEEDED.
    """
    check_limits(limits)
    publish.lock(tx)
    before = get_limits(tx, subject, model)
    if model is None:
        storage.put_limits(tx, subject, limits)
    else:
        check_scopes(tx, {model}, "model")
        if before == UNLIMITED and limits != UNLIMITED:
            quotas.require(tx, sizes, Quota.MODEL_LIMITS, now)
        storage.put_model_limits(tx, subject, model, limits)
    _publish(tx, subject, now)
    if limits != before:
        said = {"level": str(subject.level), "id": subject.id, "model": model}
        outbox.append(tx, [new_event(EventType.LIMIT_UPDATED, tx.organization_id, at=now, data=said, key=model or "")])
    return limits


def check_scopes(tx: Transaction, scopes: Collection[str], param: str) -> None:
    """Raise MODEL_UNKNOWN if one of `scopes` is neither a model that tenants can use nor a group of models that has one, nor empty."""
    unknown = catalog.find_unknown_scopes(tx, scopes)
    if unknown:
        group = find_group(unknown[0])
        what = f"model '{unknown[0]}'" if group is None else f"group of models '{group}' with a published model"
        raise Fault(MODEL_UNKNOWN, param=param, message=f"There is no {what}.")


def _list_by_model(tx: TenantTx, subject: LimitSubject) -> dict[str, Limits]:
    return storage.list_model_limits(tx, subject.level, [subject.id]).get(subject.id, {})


def list_binding_limits(tx: TenantTx, project_id: str | None, key_id: str | None, account_id: str | None = None) -> list[LevelLimits]:
    """Return every limit that binds a key or a service account of a project, or a project, or the whole organization: innermost level
    first, those on all models before those on one. Raises RESOURCE_UNKNOWN."""
    subjects = [organization(tx)]
    if project_id is not None:
        subjects.insert(0, project(project_id))
        if key_id is not None:
            key = stored_keys.find_project_key(tx, project_id, key_id) if _is_well_formed(api_key(project_id, key_id)) else None
            if key is None:
                raise Fault(RESOURCE_UNKNOWN)
            if key.service_account is not None:
                subjects.insert(0, service_account(project_id, key.service_account.id))
            subjects.insert(0, api_key(project_id, key_id))
        elif account_id is not None:
            subjects.insert(0, service_account(project_id, account_id))
        subjects.insert(0, end_users(project_id))
    found: list[LevelLimits] = []
    for subject in subjects:
        of_all = get_limits(tx, subject)
        if subject.level is LimitLevel.ORGANIZATION:
            by_model = plans.get_organization_limits(tx).resolve()
        else:
            by_model = ({} if of_all == UNLIMITED else {ALL_MODELS: of_all}) | _list_by_model(tx, subject)
        found += [LevelLimits(subject.level, subject.id, limits, model) for model, limits in by_model.items()]
    return found


def list_rate_limits(tx: TenantTx, project_id: str) -> dict[str, Limits]:
    """Return the limits of a project on each published model, by name. Raises RESOURCE_UNKNOWN."""
    get_limits(tx, project(project_id))
    own = _list_by_model(tx, project(project_id))
    return {name: own.get(name, UNLIMITED) for name in catalog.list_published_names(tx)}


def update_rate_limit(
    tx: TenantTx, project_id: str, model: str, changes: Mapping[str, int | None], now: int, *, sizes: QuotaSizes
) -> Limits:
    """Change some of the limits of a project on one model. Raises as `put_limits`."""
    publish.lock(tx)
    before = get_limits(tx, project(project_id), model)
    return put_limits(tx, project(project_id), Limits(**{**before.to_dict(), **changes}), now, model, sizes=sizes)


def check_limits(limits: Limits, place: str = "") -> None:
    """Raise PARAMETER_INVALID for limits that are out of range or that can never take effect. `place`: what their fields stand in."""
    problem = find_problem(limits)
    if problem is not None:
        raise Fault(PARAMETER_INVALID, param=place + problem.dimension, message=problem.message)


def _is_well_formed(subject: LimitSubject) -> bool:
    is_nested = subject.level in (LimitLevel.API_KEY, LimitLevel.SERVICE_ACCOUNT)
    return ids.is_id(_PREFIXES[subject.level], subject.id) and (not is_nested or ids.is_id(ids.PROJECT, subject.project_id))


def _publish(tx: TenantTx, subject: LimitSubject, now: int) -> None:
    """Publish the entries that show the limits of a subject: a service account is shown by its keys."""
    if subject.level is LimitLevel.SERVICE_ACCOUNT:
        publish.publish(tx, KeyEntry, stored_keys.list_service_account_keys(tx, subject.id), now)
    else:
        publish.publish(tx, _ENTRIES[subject.level], [subject.id], now)
