"""The commands by name, and the one place where a command's module is imported.

Each command imports what it runs at the top of its own module; `tollway gateway` must not pay for FastAPI, nor `tollway
keys` for the gateway. So this table knows modules by name, and only the one that was asked for is imported. Help needs
none of them."""

import gc
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Final

import typer

from tollway.serve.parent import end_with_parent
from tollway.settings import OperatorError, check_variables

COMMANDS: Final[dict[str, tuple[str, str]]] = {
    # name: (module and attribute under tollway.cli, what it does)
    "demo": ("operation.demo:demo", "Run everything on this machine, with an engine, a model, a tenant and a key."),
    "serve": ("operation.serve:serve", "Run a gateway and a control plane on this machine, and keep them running."),
    "gateway": ("operation.gateway:gateway", "Run one gateway process (data plane)."),
    "control": ("operation.control:control", "Run one control process (control plane)."),
    "migrate": ("operation.migrate:migrate", "Bring the database to this version's schema."),
    "login": ("identity.login:login", "Log in with your browser, so that commands act as you."),
    "logout": ("identity.login:logout", "End the login of this machine."),
    "whoami": ("identity.login:whoami", "Who the commands act as, and with which roles."),
    "organizations": ("tenancy.organizations:app", "Billing accounts: list, show, create, update, archive."),
    "projects": ("tenancy.projects:app", "Parts of an organization: list, create, rename, archive."),
    "service-accounts": ("identity.service_accounts:app", "Service accounts of a project: list, create, delete."),
    "admin-keys": ("identity.admin_keys:app", "Keys that administer an organization: list, create, revoke."),
    "operator-keys": ("identity.operator_keys:app", "Keys of operators, one for each person: list, create, revoke."),
    "erasures": ("tenancy.erasures:app", "Erase a person or an organization, with a second person: request, list, show, approve, reject."),
    "operators": ("identity.operators:app", "Operators who sign in with an identity provider: list, remove, sessions, end-session."),
    "encryption": ("operation.encryption:app", "Keys that wrap the data keys of organizations: list, rewrap."),
    "peppers": ("operation.peppers:app", "Peppers of the digests of keys: list, add, use, retire."),
    "users": (
        "identity.users:app",
        "People of the organization and of its projects: list, update, remove; how they sign in, and their sessions.",
    ),
    "invites": ("identity.invites:app", "Invitations by mail: list, create, delete, accept."),
    "groups": ("identity.groups:app", "Groups of people, who hold roles together: list, create, rename, delete, and their members."),
    "roles": ("identity.roles:app", "Roles of the organization and of its projects: list, create, update, delete, give, take."),
    "access": ("identity.access:app", "Why something is allowed or denied: explain."),
    "federation": (
        "identity.federation:app",
        "Identity providers whose tokens stand for service accounts, and their rules: list, create, delete.",
    ),
    "sign-in": ("identity.sign_in:app", "Identity providers with which people sign in: list, create, update, delete."),
    "certificates": ("identity.certificates:app", "Client certificates and their rules: list, upload, activate, deactivate, delete."),
    "webhooks": (
        "eventing.webhooks:app",
        "Webhook endpoints: list, create, update, enable, delete, rotate-secret, test, deliveries, replay.",
    ),
    "telemetry": (
        "eventing.telemetry:app",
        "Receivers of requests, usage and the audit trail of an organization: list, show, create, update, enable, delete, test.",
    ),
    "events": ("eventing.events:app", "Events: list, follow and forward them, and their types."),
    "scim": ("identity.scim:app", "The directory that provisions people and groups: show its address, create its token."),
    "keys": ("identity.keys:app", "API keys: create, list, revoke."),
    "limits": ("tenancy.limits:app", "Limits of organizations, projects, service accounts and keys, and quotas: show, set."),
    "plans": ("tenancy.plans:app", "Limits that organizations subscribe to, and overrides of limits: list, create, set, assign, override."),
    "budgets": ("money.budgets:app", "What may be spent: list, show, create, update, raise, archive."),
    "contracts": ("money.contracts:app", "Contracts of organizations: list, create, end, bill, preview."),
    "margins": ("money.margins:app", "What deployments cost, and the gross margin: report, set-cost, costs."),
    "credits": ("money.credits:app", "Credit of organizations: list, statement, grant, void, prepaid, topup, topups."),
    "batches": ("metering.batches:app", "Batches of requests, at a gateway: submit, list, show, cancel, output."),
    "quote": ("money.quote:quote", "What a request would cost, and what would refuse it now."),
    "models": ("catalog.catalog:app", "The catalog: models, their deployments and prices."),
    "deployments": ("catalog.deployments:app", "Deployments: check an engine, drain, undrain, and follow the sources of a fleet."),
    "prices": ("catalog.prices:app", "Price books, drafts of prices, and organizations' terms."),
    "usage": ("metering.usage:usage", "What was used, by time, project, key or model."),
    "costs": ("metering.usage:costs", "What it costs, exactly, by day, project or line item."),
    "requests": ("metering.requests:requests", "The latest requests: how they ended, how long they took, what they cost."),
    "receipt": ("money.receipts:receipt", "The receipt of one request: what was counted, at which price."),
    "ledger": ("money.ledger:app", "Balances and transactions of the ledger."),
    "anomalies": ("money.ledger:anomalies", "Usage reports of engines that could not be true, and what was billed instead."),
    "periods": ("money.periods:app", "Billing periods: list, what keeps them open, close, export with proofs."),
    "invoices": ("invoicing.invoices:app", "Invoices: sellers, accounts, preview, draft, issue, void, credit, list, download, verify."),
    "payments": ("invoicing.payments:app", "Payments of invoices, bank statements, dunning: record, import, match, return, hold."),
    "quarantine": ("metering.quarantine:app", "Records that could not be rated: list, rate again, write off."),
    "corrections": ("money.corrections:app", "Correct what a request was billed: void, replace, credit, approve."),
    "audit": ("operation.audit:app", "The audit trail, who changed or read what: list, export, verify."),
    "nodes": ("operation.nodes:app", "Gateways: what has arrived of each, and what is lost."),
    "route": ("catalog.route:app", "How a gateway chooses among the deployments of a model."),
    "apply": ("catalog.apply:apply", "Make the platform what a YAML file says. Never deletes."),
    "export": ("catalog.apply:export", "Write the platform as a YAML file that `apply` reads."),
    "reconcile": ("metering.reconcile:reconcile", "What was billed against what the engines counted, by model and hour."),
    "backup": ("operation.backup:app", "Back up database and archive while they are in use; check a backup; restore it."),
    "replay": ("operation.replay:replay", "After a restore, ingest again what was archived since the backup (offline)."),
    "verify": ("operation.verify:verify", "Recompute usage and ledger from the archive and compare (offline)."),
    "spool": ("operation.spool:app", "A gateway's usage records on disk: inspect, export."),
    "simulate": ("operation.simulate:simulate", "Run a simulated inference engine, with faults on demand."),
    "config": ("operation.config:app", "Settings: check them, print them with their sources."),
    "doctor": ("operation.doctor:doctor", "Check this machine and what Tollway needs of it, with a remedy for each problem."),
    "secrets": ("operation.secrets:app", "Fresh secrets for a cluster, whose processes do not share a data directory."),
    "version": ("operation.version:version", "Print the version."),
}

HELP_OPTIONS = {"-h", "--help"}
CONTEXT = {"help_option_names": ["-h", "--help"]}  # of every command: contexts inherit it

HELP = "One OpenAI-compatible address in front of your model servers: shared, metered, billed."


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code. Errors that the person can put right are one line and a hint on standard
    error."""
    end_with_parent()
    words = _words_to_complete(os.environ) or arguments
    chosen = next((word for word in words if not word.startswith("-")), None)
    try:
        if chosen is not None and not HELP_OPTIONS & {*arguments}:
            check_variables(os.environ)
        typer.main.get_command(_build(chosen))(args=list(arguments), prog_name="tollway")
    except OperatorError as error:
        print(f"tollway: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return error.exit_code
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    return 0


def _words_to_complete(environ: Mapping[str, str]) -> list[str]:
    """Return the words after `tollway` that a shell asks to complete: bash gives COMP_WORDS, zsh and fish _TYPER_COMPLETE_ARGS."""
    if "_TOLLWAY_COMPLETE" not in environ:
        return []
    return (environ.get("_TYPER_COMPLETE_ARGS") or environ.get("COMP_WORDS", "")).split()[1:]


def _build(chosen: str | None) -> typer.Typer:
    # Plain help: rich costs a tenth of a second at each start, and boxes do not survive a pipe.
    root = typer.Typer(help=HELP, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False, context_settings=CONTEXT)
    for name, (place, help) in COMMANDS.items():
        if name != chosen:
            root.command(name, help=help)(_not_loaded)
            continue
        module, _, attribute = place.partition(":")
        command = getattr(_import_command(module), attribute)
        if isinstance(command, typer.Typer):
            root.add_typer(command, name=name, help=help)
        else:
            root.command(name)(command)  # its own docstring says more than the list does
    return root


def _import_command(module: str) -> ModuleType:
    """Import the module of a command. Garbage is not collected meanwhile, and what was imported is not searched afterwards: an import makes
    many objects and hardly any garbage, and to search them again and again takes a sixth of the CPU time of a start."""
    gc.disable()
    try:
        return importlib.import_module(f"tollway.cli.{module}")
    finally:
        gc.freeze()
        gc.enable()


def _not_loaded() -> None:
    raise AssertionError("stands in the list of commands only")
