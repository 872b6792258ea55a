"""Explanations of access to inference: whether gateways let a key's request pass, and by which rule.

The decision is the gateways' own (`gateway.inference_access`), made over what they receive of the key. `ControlPlane.explain_inference` is
how this plane asks it, as neither plane imports the other.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from tollway.control import publish
from tollway.domain import ids
from tollway.domain.faults import RESOURCE_UNKNOWN, Fault
from tollway.domain.inference_access import InferenceDecision, InferenceQuestion
from tollway.domain.snapshot import DeploymentEntry, Entry, KeyEntry, ModelEntry, OrganizationEntry, ProjectEntry
from tollway.storage import catalog as stored_catalog
from tollway.storage import keys as stored_keys
from tollway.storage import tenants as stored_tenants
from tollway.storage.database import TenantTx

ExplainsInference = Callable[[Sequence[Entry], str, InferenceQuestion], InferenceDecision]
"""Explains what a gateway with these entries does with a request of the key with this id."""

KEYS_MAX = 100
"""Keys of a service account that are explained, the oldest first."""


class KeyDecision(NamedTuple):
    """The decision about a request of one key."""

    key_id: str
    decision: InferenceDecision


def explain(tx: TenantTx, explains: ExplainsInference, subject_id: str, question: InferenceQuestion) -> list[KeyDecision]:
    """Explain a request of an API key, or of each key of a service account. Raises RESOURCE_UNKNOWN."""
    if ids.is_id(ids.SERVICE_ACCOUNT, subject_id) and stored_tenants.has_service_account(tx, subject_id):
        key_ids = stored_keys.list_service_account_keys(tx, subject_id)[:KEYS_MAX]
    elif ids.is_id(ids.KEY, subject_id) and stored_keys.has_inference_key(tx, subject_id):
        key_ids = [subject_id]
    else:
        raise Fault(RESOURCE_UNKNOWN)
    entries = _list_entries(tx, key_ids, question.model)
    return [KeyDecision(key_id, explains(entries, key_id, question)) for key_id in key_ids]


def _list_entries(tx: TenantTx, key_ids: Sequence[str], model: str | None) -> list[Entry]:
    """Return what gateways are told of the keys, and of the model that they ask for."""
    with tx.as_platform() as platform:
        keys = publish.find_entries(platform, KeyEntry, key_ids)
        project_ids = sorted({key.project_id for key in keys if isinstance(key, KeyEntry)})
        entries = [
            *publish.find_entries(platform, OrganizationEntry, [tx.organization_id]),
            *publish.find_entries(platform, ProjectEntry, project_ids),
            *keys,
        ]
        if model is not None:
            deployments = stored_catalog.find_deployments(platform, model)
            entries += publish.find_entries(platform, ModelEntry, [model])
            entries += publish.find_entries(platform, DeploymentEntry, [each.id for each in deployments])
    return entries
