"""The commands beside the REST API: an operation without a command is found here."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import tollway
from tollway.cli.app import COMMANDS, run
from tollway.control.api.app import PUBLIC_ROUTERS

COMMAND_OF = {
    "list_projects": "projects list",
    "create_project": "projects create",
    "retrieve_project": "projects list",
    "update_project": "projects rename",
    "archive_project": "projects archive",
    "retrieve_model_permissions": "projects show-models",
    "update_model_permissions": "projects set-models",
    "delete_model_permissions": "projects reset-models",
    "retrieve_service_tiers": "projects show-tiers",
    "update_service_tiers": "projects set-tiers",
    "list_project_keys": "keys list",
    "create_project_key": "keys create",
    "retrieve_project_key": "keys list",
    "delete_project_key": "keys revoke",
    "rotate_project_key": "keys rotate",
    "retire_project_key_secret": "keys retire",
    "collect_project_key_secret": "keys collect",
    "list_admin_keys": "admin-keys list",
    "create_admin_key": "admin-keys create",
    "retrieve_admin_key": "admin-keys list",
    "delete_admin_key": "admin-keys revoke",
    "rotate_admin_key": "admin-keys rotate",
    "retire_admin_key_secret": "admin-keys retire",
    "list_operator_keys": "operator-keys list",
    "create_operator_key": "operator-keys create",
    "delete_operator_key": "operator-keys revoke",
    "list_service_accounts": "service-accounts list",
    "create_service_account": "service-accounts create",
    "retrieve_service_account": "service-accounts list",
    "delete_service_account": "service-accounts delete",
    "list_providers": "federation list",
    "create_provider": "federation create",
    "retrieve_provider": "federation list",
    "update_provider": "federation update",
    "delete_provider": "federation delete",
    "list_rules": "federation rules",
    "create_rule": "federation create-rule",
    "retrieve_rule": "federation rules",
    "update_rule": "federation update-rule",
    "delete_rule": "federation delete-rule",
    "list_binding_limits": "limits show",
    "retrieve_project_limits": "limits show",
    "put_project_limits": "limits set",
    "retrieve_end_user_limits": "limits show",
    "put_end_user_limits": "limits set",
    "retrieve_service_account_limits": "limits show",
    "put_service_account_limits": "limits set",
    "retrieve_key_limits": "limits show",
    "put_key_limits": "limits set",
    "retrieve_organization_limits": "limits show",
    "put_organization_limits": "limits set",
    "list_rate_limits": "limits show",
    "update_rate_limit": "limits set",
    "list_plans": "plans list",
    "create_plan": "plans create",
    "retrieve_plan": "plans list",
    "update_plan": "plans set",
    "delete_plan": "plans delete",
    "retrieve_limit_sources": "limits show",
    "put_override": "plans override",
    "end_override": "plans end-override",
    "list_budgets": "budgets list",
    "create_budget": "budgets create",
    "retrieve_budget": "budgets show",
    "update_budget": "budgets update",
    "archive_budget": "budgets archive",
    "list_raises": "budgets show",
    "create_raise": "budgets raise",
    "list_alerts": "budgets show",
    "retrieve_credits": "credits list",
    "list_credit_transactions": "credits statement",
    "create_credit_grant": "credits grant",
    "void_credit_grant": "credits void",
    "put_prepayment": "credits prepaid",
    "put_topup_rule": "credits topup",
    "delete_topup_rule": "credits topup",
    "list_topups": "credits topups",
    "list_binding_budgets": "budgets list",
    "retrieve_spend_limit": "budgets show",
    "update_spend_limit": "budgets update",
    "delete_spend_limit": "budgets archive",
    "list_spend_alerts": "budgets list",
    "create_spend_alert": "budgets create",
    "retrieve_spend_alert": "budgets show",
    "update_spend_alert": "budgets update",
    "delete_spend_alert": "budgets archive",
    "retrieve_project_spend_limit": "budgets show",
    "update_project_spend_limit": "budgets update",
    "delete_project_spend_limit": "budgets archive",
    "list_project_spend_alerts": "budgets list",
    "create_project_spend_alert": "budgets create",
    "retrieve_project_spend_alert": "budgets show",
    "update_project_spend_alert": "budgets update",
    "delete_project_spend_alert": "budgets archive",
    "list_audit_logs": "audit list",
    "list_peppers": "peppers list",
    "list_wrapping_keys": "encryption list",
    "rewrap_data_keys": "encryption rewrap",
    "list_platform_audit_logs": "audit list",
    "list_completions": "usage",
    "list_embeddings": "usage",
    "list_images": "usage",
    "list_speeches": "usage",
    "list_transcriptions": "usage",
    "list_costs": "costs",
    "list_period_costs": "costs",
    "list_requests": "requests",
    "retrieve_receipt": "receipt",
    "retrieve_own_organization": "organizations show",
    "update_own_organization": "organizations key-policy",
    "list_organizations": "organizations list",
    "create_organization": "organizations create",
    "retrieve_organization": "organizations list",
    "modify_organization": "organizations update",
    "archive_organization": "organizations archive",
    "list_models": "models list",
    "create_model": "models create",
    "publish_model": "models publish",
    "archive_model": "models archive",
    "retrieve_model": "models list",
    "update_model": "apply",
    "list_deployments": "models list",
    "create_deployment": "models deploy",
    "retrieve_deployment": "models list",
    "update_deployment": "apply",
    "archive_deployment": "models undeploy",
    "list_prices": "prices list",
    "create_price": "models price",
    "retrieve_price": "prices list",
    "list_terms": "prices terms",
    "create_terms": "prices terms",
    "list_own_prices": "prices list",
    "list_users": "users list",
    "retrieve_user": "users list",
    "update_user": "users update",
    "delete_user": "users remove",
    "list_project_users": "users list",
    "create_project_user": "users add",
    "retrieve_project_user": "users list",
    "update_project_user": "users update",
    "delete_project_user": "users remove",
    "list_invites": "invites list",
    "create_invite": "invites create",
    "retrieve_invite": "invites list",
    "delete_invite": "invites delete",
    "accept_invite": "invites accept",
    "list_groups": "groups list",
    "create_group": "groups create",
    "retrieve_group": "groups list",
    "update_group": "groups rename",
    "delete_group": "groups delete",
    "list_group_users": "groups members",
    "create_group_user": "groups add",
    "retrieve_group_user": "groups members",
    "delete_group_user": "groups remove",
    "list_project_groups": "groups list",
    "create_project_group": "groups join",
    "retrieve_project_group": "groups list",
    "delete_project_group": "groups leave",
    "list_roles": "roles list",
    "create_role": "roles create",
    "retrieve_role": "roles list",
    "update_role": "roles update",
    "delete_role": "roles delete",
    "list_project_roles": "roles list",
    "create_project_role": "roles create",
    "retrieve_project_role": "roles list",
    "update_project_role": "roles update",
    "delete_project_role": "roles delete",
    "list_user_roles": "roles list",
    "create_user_role": "roles give",
    "retrieve_user_role": "roles list",
    "delete_user_role": "roles take",
    "list_connections": "sign-in list",
    "create_connection": "sign-in create",
    "retrieve_connection": "sign-in list",
    "update_connection": "sign-in update",
    "delete_connection": "sign-in delete",
    "retrieve_self": "whoami",
    "create_device_code": "login",
    "revoke_token": "logout",
    "create_sign_in_link": "users link",
    "reset_credentials": "users reset",
    "list_user_sessions": "users sessions",
    "delete_user_session": "users end-session",
    "list_project_user_roles": "roles list",
    "create_project_user_role": "roles give",
    "retrieve_project_user_role": "roles list",
    "delete_project_user_role": "roles take",
    "list_group_roles": "roles list",
    "create_group_role": "roles give",
    "retrieve_group_role": "roles list",
    "delete_group_role": "roles take",
    "list_project_group_roles": "roles list",
    "create_project_group_role": "roles give",
    "retrieve_project_group_role": "roles list",
    "delete_project_group_role": "roles take",
    "explain_access": "access explain",
    "update_project_key": "keys update",
    "update_service_account": "service-accounts update",
    "create_service_account_key": "service-accounts create-key",
    "list_books": "prices books",
    "create_book": "prices create",
    "retrieve_book": "prices books",
    "list_drafts": "prices drafts",
    "create_draft": "prices draft",
    "retrieve_draft": "prices drafts",
    "check_draft": "prices check",
    "publish_draft": "prices publish",
    "preview_draft": "prices preview",
    "discard_draft": "prices discard",
    "list_nodes": "nodes list",
    "create_node": "nodes create",
    "rotate_node_key": "nodes rotate",
    "revoke_node": "nodes revoke",
    "create_join_token": "nodes token",
    "list_join_tokens": "nodes tokens",
    "delete_join_token": "nodes revoke-token",
    "list_epochs": "nodes epochs",
    "accept_epoch": "nodes accept-epoch",
    "create_lost_requests": "nodes lost",
    "list_lost_requests": "nodes lost-requests",
    "approve_lost_request": "nodes approve-lost",
    "reject_lost_request": "nodes reject-lost",
    "list_balances": "ledger balances",
    "list_transactions": "ledger transactions",
    "list_reconciliation": "reconcile",
    "list_anomalies": "anomalies",
    "list_periods": "periods list",
    "retrieve_period": "periods list",
    "list_blockers": "periods blockers",
    "close_period": "periods close",
    "list_own_periods": "periods list",
    "retrieve_own_period": "periods list",
    "retrieve_proof": "periods proof",
    "export_period": "periods export",
    "create_adjustment": "corrections void",
    "list_adjustments": "corrections list",
    "retrieve_adjustment": "corrections list",
    "approve_adjustment": "corrections approve",
    "reject_adjustment": "corrections reject",
    "list_records": "quarantine list",
    "retrieve_record": "quarantine show",
    "rate_record": "quarantine rate",
    "write_off_record": "quarantine write-off",
}
"""The command that does, or whose output includes, each operation."""

WITHOUT_COMMAND = {
    "create_token": "programs ask for tokens as OAuth describes it, each time that one ends",
    "list_token_keys": "programs that verify tokens read it",
    "retrieve_server": "programs that ask for tokens read it",
    "list_nothing": "the list is always empty",
    "list_nothing_of_project": "the list is always empty",
    "refuse": "it is always refused",
    "refuse_of_project": "it is always refused",
    "list_other_usage": "the page is always empty",
    "update_draft": "a draft is replaced: discard it and write another from a file",
}
"""Operations that need no command, with the reason."""


def _list_commands() -> set[str]:
    found = set()
    for name, (place, _) in COMMANDS.items():
        module, _, attribute = place.partition(":")
        command = getattr(importlib.import_module(f"tollway.cli.{module}"), attribute)
        if isinstance(command, typer.Typer):
            group = typer.main.get_command(command)
            subcommands = getattr(group, "commands", {})
            found |= {f"{name} {below}" for below in subcommands} if subcommands else {name}
        else:
            found.add(name)
    return found


def test_every_operation_has_a_command() -> None:
    operations = {route.name for router in PUBLIC_ROUTERS for route in router.routes if hasattr(route, "methods")}
    missing = operations - COMMAND_OF.keys() - WITHOUT_COMMAND.keys()
    assert not missing, f"add a command for {sorted(missing)}, or say why none is needed"
    assert not (COMMAND_OF.keys() | WITHOUT_COMMAND.keys()) - operations, "remove what the API does not have"
    assert not COMMAND_OF.keys() & WITHOUT_COMMAND.keys()


def test_commands_of_operations_exist() -> None:
    assert set(COMMAND_OF.values()) - _list_commands() == set()


@pytest.mark.parametrize("command", ["keys", "keys list", "prices terms", "version"])
def test_short_help_option_shows_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*command.split(), "-h"]) == 0
    assert f"Usage: tollway {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [("ke", "keys"), ("keys cre", "create"), ("keys create --requests-per", "--requests-per-minute"), ("prices pub", "publish")],
)
def test_bash_completes_below_the_first_word(words: str, expected: str) -> None:
    """The variables are those that the script of `tollway --show-completion bash` sets."""
    line = f"tollway {words}"
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(tollway.__file__).parents[1]),
        "_TOLLWAY_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split()) - 1),
    }
    ran = subprocess.run([sys.executable, "-m", "tollway"], capture_output=True, text=True, timeout=60, env=environment)
    assert expected in ran.stdout.split(), (ran.stdout, ran.stderr)
