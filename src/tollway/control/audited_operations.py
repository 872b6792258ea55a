"""Table of the operations of the REST API that leave a record in the audit trail, each with its event: the one place that decides it.

Every operation that may change something, which is every one but a GET, is in EVENTS or in UNRECORDED; the application refuses to start
otherwise. A GET is recorded if it is in EVENTS. An event has the name that OpenAI's audit log gives it where that has one.
"""

from collections.abc import Mapping

EVENTS: Mapping[str, str] = {
    # Keys
    "create_project_key": "api_key.created",
    "update_project_key": "api_key.updated",
    "delete_project_key": "api_key.deleted",
    "rotate_project_key": "api_key.updated",
    "retire_project_key_secret": "api_key.updated",
    "create_admin_key": "api_key.created",
    "delete_admin_key": "api_key.deleted",
    "rotate_admin_key": "api_key.updated",
    "retire_admin_key_secret": "api_key.updated",
    "create_operator_key": "api_key.created",
    "delete_operator_key": "api_key.deleted",
    # Tenants
    "create_organization": "organization.created",
    "update_own_organization": "organization.updated",
    "modify_organization": "organization.updated",
    "archive_organization": "organization.archived",
    "create_project": "project.created",
    "update_project": "project.updated",
    "archive_project": "project.archived",
    "create_service_account": "service_account.created",
    "delete_service_account": "service_account.deleted",
    "update_service_account": "service_account.updated",
    "create_service_account_key": "api_key.created",
    # People and roles
    "update_user": "user.updated",
    "delete_user": "user.deleted",
    "create_project_user": "user.added",
    "update_project_user": "user.updated",
    "delete_project_user": "user.deleted",
    "create_invite": "invite.sent",
    "delete_invite": "invite.deleted",
    "accept_invite": "invite.accepted",
    "create_group": "group.created",
    "update_group": "group.updated",
    "delete_group": "group.deleted",
    "create_group_user": "group.member_added",
    "delete_group_user": "group.member_removed",
    "create_project_group": "group.joined_project",
    "delete_project_group": "group.left_project",
    "create_role": "role.created",
    "update_role": "role.updated",
    "delete_role": "role.deleted",
    "create_project_role": "role.created",
    "update_project_role": "role.updated",
    "delete_project_role": "role.deleted",
    "create_user_role": "role.assignment.created",
    "delete_user_role": "role.assignment.deleted",
    "create_project_user_role": "role.assignment.created",
    "delete_project_user_role": "role.assignment.deleted",
    "create_group_role": "role.assignment.created",
    "delete_group_role": "role.assignment.deleted",
    "create_project_group_role": "role.assignment.created",
    "delete_project_group_role": "role.assignment.deleted",
    "create_provider": "identity_provider.created",
    "update_provider": "identity_provider.updated",
    "delete_provider": "identity_provider.deleted",
    "create_rule": "federation_rule.created",
    "update_rule": "federation_rule.updated",
    "delete_rule": "federation_rule.deleted",
    # Limits and budgets
    "put_project_limits": "rate_limit.updated",
    "put_end_user_limits": "rate_limit.updated",
    "put_service_account_limits": "rate_limit.updated",
    "put_key_limits": "rate_limit.updated",
    "put_organization_limits": "rate_limit.updated",
    "update_rate_limit": "rate_limit.updated",
    "create_plan": "plan.created",
    "update_plan": "plan.updated",
    "delete_plan": "plan.deleted",
    "put_override": "rate_limit.overridden",
    "end_override": "rate_limit.override_ended",
    "create_budget": "budget.created",
    "update_budget": "budget.updated",
    "archive_budget": "budget.archived",
    "create_raise": "budget.raised",
    "update_spend_limit": "spend_limit.updated",
    "delete_spend_limit": "spend_limit.deleted",
    "create_spend_alert": "spend_alert.created",
    "update_spend_alert": "spend_alert.updated",
    "delete_spend_alert": "spend_alert.deleted",
    "update_project_spend_limit": "spend_limit.updated",
    "delete_project_spend_limit": "spend_limit.deleted",
    "create_project_spend_alert": "spend_alert.created",
    "update_project_spend_alert": "spend_alert.updated",
    "delete_project_spend_alert": "spend_alert.deleted",
    # Catalog and prices
    "create_model": "model.created",
    "update_model": "model.updated",
    "publish_model": "model.published",
    "archive_model": "model.archived",
    "create_deployment": "deployment.created",
    "update_deployment": "deployment.updated",
    "archive_deployment": "deployment.archived",
    "create_price": "price.published",
    "create_terms": "price_terms.created",
    "create_book": "price_book.created",
    "create_draft": "price_draft.created",
    "update_draft": "price_draft.updated",
    "publish_draft": "price_draft.published",
    "discard_draft": "price_draft.discarded",
    # Money
    "create_adjustment": "adjustment.created",
    "approve_adjustment": "adjustment.approved",
    "reject_adjustment": "adjustment.rejected",
    "close_period": "billing_period.closed",
    "rate_record": "quarantined_record.rated",
    "write_off_record": "quarantined_record.written_off",
    # Gateways
    "create_node": "node.created",
    "rotate_node_key": "node.key_rotated",
    "revoke_node": "node.revoked",
    "accept_epoch": "epoch.accepted",
    "create_join_token": "join_token.created",
    "delete_join_token": "join_token.deleted",
    "join": "node.joined",
    "create_lost_requests": "lost_records.requested",
    "approve_lost_request": "lost_records.declared",
    "reject_lost_request": "lost_records.rejected",
    # Sensitive reads: what single requests were, and what was recorded here
    "retrieve_receipt": "receipt.read",
    "export_period": "billing_period.exported",
    "retrieve_record": "quarantined_record.read",
    "list_audit_logs": "audit_log.read",
    "list_platform_audit_logs": "audit_log.read",
}

UNRECORDED: Mapping[str, str] = {
    "check_draft": "computes and stores nothing",
    "preview_draft": "computes and stores nothing",
    "refuse": "is always refused",
    "refuse_of_project": "is always refused",
    "forward_token_request": "as create_token",
    "create_token": "issues a token that lives for minutes; a line of the log names the key that it stands for",
    "acknowledge": "a gateway says which snapshot it has, every two seconds",
    "renew_leases": "a gateway says what it spent; budgets follow from usage records, which have a chain of their own",
    "report_limit_uses": "a gateway says what of its limits is used",
    "take_records": "a gateway hands in usage records, which have a chain of their own",
}
"""Operations with another method than GET that leave no record, each with the reason."""


def find_event(operation: str, method: str) -> str | None:
    """Return the event as which an operation is recorded; None for one that leaves no record. Raises TypeError for an operation that may
    change something and stands in neither table."""
    event = EVENTS.get(operation)
    if event is None and method != "GET" and operation not in UNRECORDED:
        raise TypeError(f"the operation {operation} must be declared in EVENTS or UNRECORDED of control.audited_operations")
    return event
