"""`tollway apply` and `tollway export`: the platform as a file."""

import os
from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
import yaml

from tollway.cli.client import Control, ControlUrl, DataDir, Key, connect, segment
from tollway.cli.output import Output, OutputOption, Progress, print_json
from tollway.cli.plan import Change, make_plan
from tollway.cli.platform_file import PlatformFile, read, resolve_credential
from tollway.settings import OperatorError

DIFFERENCE = 2
"""Exit code of `--dry-run` when there is something to do, as `terraform plan -detailed-exitcode` has it."""


def apply(
    file: Annotated[Path, typer.Option("-f", "--file", metavar="FILE", help="The declarative file.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the plan; exit 2 if there is one.")] = False,
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Make the platform what a YAML file says: plan, show, do.

    What the file leaves out stays as it is, and nothing is ever deleted. Doing it again changes nothing.
    """
    wanted = read(file)
    progress = Progress()
    with connect(control_url, key, data_dir) as control:
        platform = Platform(control)
        changes = make_plan(platform.read(wanted), wanted)
        _print_plan(changes, output, dry_run)
        if dry_run:
            raise typer.Exit(DIFFERENCE if changes else 0)
        for change in changes:  # before anything is done
            _credential(change)
        for change in changes:
            progress.step(change.describe()[0])
            platform.carry_out(change)


def export(
    file: Annotated[Path | None, typer.Option("-f", "--file", metavar="FILE", help="Instead of stdout.")] = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Write models, prices, deployments, organizations, projects and limits as a file that `apply` reads.

    Secrets are not in it: where an upstream asks for a credential, the file names a variable to set.
    """
    with connect(control_url, key, data_dir) as control:
        platform = Platform(control)
        tree = msgspec.to_builtins(platform.read(None), str_keys=True)
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=120)
    if file is None:
        typer.echo(text, nl=False)
        return
    try:
        file.write_text(text)
    except OSError as error:
        raise OperatorError(f"cannot write {file}: {error.strerror}") from None


def _print_plan(changes: list[Change], output: Output, dry_run: bool) -> None:
    if output is Output.JSON:
        print_json(
            [
                {
                    "what": change.what,
                    "place": change.place,
                    "action": "create" if change.creates else "update",
                    "fields": {name: {"old": old, "new": new} for name, (old, new) in change.fields.items()},
                }
                for change in changes
            ]
        )
        return
    for change in changes:
        print("\n".join(change.describe()))
    if changes:
        print(f"{len(changes)} change{'s' if len(changes) > 1 else ''}{' (nothing was done)' if dry_run else ''}")
    else:
        print("nothing to change")


class Platform:
    """The platform behind the API in the shape of the file, with the ids that its names stand for."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._deployments: dict[tuple[str, str], str] = {}
        self._organizations: dict[str, str] = {}
        self._projects: dict[tuple[str, str], str] = {}

    # ---- reading -----------------------------------------------------------------------------------------------------

    def read(self, wanted: PlatformFile | None) -> PlatformFile:
        """What is there, as far as `wanted` names it; everything if None. Archived things are not there."""
        models = self._read_models(None if wanted is None else wanted.models)
        organizations = self._read_organizations(wanted)
        return msgspec.convert({"models": models, "organizations": organizations}, PlatformFile)

    def _read_models(self, names: Collection[str] | None) -> dict[str, Any]:
        if names is not None and not names:
            return {}
        settings = (
            "endpoints", "published", "output_tokens_max", "unknown_parameters", "retry_started", "share_cache",
        )  # fmt: skip
        models: dict[str, Any] = {}
        for model in self._control.list_all("/platform/models"):
            if names is None or model["name"] in names:
                prices = self._control.list_all("/platform/prices", model=model["name"])
                deployments = self._control.list_all("/platform/deployments", model=model["name"])
                models[model["name"]] = {
                    **{name: model[name] for name in settings},
                    "endpoints": sorted(model["endpoints"]),
                    "prices": _current_prices(prices),
                    "deployments": self._read_deployments(model["name"], deployments),
                }
        return models

    def _read_deployments(self, model: str, deployments: Iterable[dict[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for each in deployments:
            base_url = each["base_url"]
            if base_url in found:
                raise OperatorError(
                    f"model {model} has two deployments at {base_url}, which a file cannot tell apart",
                    hint=f"tollway models undeploy {each['id']}",
                )
            found[base_url] = {name: each[name] for name in ("engine", "upstream_model", "tier", "weight", "region")}
            if each["has_credential"]:
                found[base_url]["credential"] = f"${{{_variable(model)}}}"
            self._deployments[model, base_url] = each["id"]
        return found

    def _read_organizations(self, wanted: PlatformFile | None) -> dict[str, Any]:
        if wanted is not None and not wanted.organizations:
            return {}
        found: dict[str, Any] = {}
        for each in self._control.list_all("/platform/organizations"):
            name = each["name"]
            if wanted is not None and name not in wanted.organizations:
                continue
            if name in found:
                raise OperatorError(f"two organizations are called {name}, which a file cannot tell apart", hint="archive one of them")
            self._organizations[name] = each["id"]
            self._control.act_for_id(each["id"])
            projects = None if wanted is None else (wanted.organizations[name].projects or {})
            found[name] = {
                "currency": each["currency"],
                "limits": _limits(self._control.get(f"/platform/organizations/{each['id']}/limits")),
                "projects": self._read_projects(name, projects),
            }
        return found

    def _read_projects(self, organization: str, names: Collection[str] | None) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for each in self._control.list_all("/organization/projects"):
            name = each["name"]
            if names is not None and name not in names:
                continue
            if name in found:
                raise OperatorError(
                    f"two projects of {organization} are called {name}, which a file cannot tell apart",
                    hint="rename or archive one of them",
                )
            self._projects[organization, name] = each["id"]
            found[name] = {"limits": _limits(self._control.get(f"/organization/projects/{each['id']}/limits"))}
        return found

    # ---- doing -------------------------------------------------------------------------------------------------------

    def carry_out(self, change: Change) -> None:
        """Do one change. Raises OperatorError with the API's words; what was done before it stays done."""
        control, place, body = self._control, change.place, dict(change.body)
        match change.what:
            case "model" if change.creates:
                control.post("/platform/models", {"name": place[0], **body})
            case "model":
                control.post(f"/platform/models/{segment(place[0])}", body)
            case "price":
                control.post("/platform/prices", body)
            case "publication":
                control.post(f"/platform/models/{segment(place[0])}/publish")
            case "deployment":
                self._deploy(change, body)
            case "organization":
                # Its first admin key is not kept: who needs one makes one, at a terminal and not in a pipeline's log.
                self._organizations[place[0]] = control.post("/platform/organizations", body)["id"]
            case "project":
                control.act_for_id(self._organizations[place[0]])
                self._projects[place[0], place[1]] = control.post("/organization/projects", body)["id"]
            case "limits" if len(place) == 1:
                control.put(f"/platform/organizations/{self._organizations[place[0]]}/limits", body)
            case "limits":
                control.act_for_id(self._organizations[place[0]])
                control.put(f"/organization/projects/{self._projects[place[0], place[1]]}/limits", body)
            case _:
                raise AssertionError(change.what)

    def _deploy(self, change: Change, body: dict[str, Any]) -> None:
        model, base_url = change.place
        credential = _credential(change)
        if credential is not None:
            body["credential"] = credential
        if change.creates:
            self._control.post("/platform/deployments", {"model": model, "base_url": base_url, **body})
        else:
            self._control.post(f"/platform/deployments/{self._deployments[model, base_url]}", body)


def _credential(change: Change) -> str | None:
    """The secret that a deployment's change sends, if it sends one. Raises OperatorError if it cannot be had."""
    reference = change.body.get("credential") if change.what == "deployment" else None
    return reference and resolve_credential(reference, os.environ, f"credential of {' / '.join(change.place)}")


def _current_prices(versions: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The version of each currency that is valid now."""
    now = datetime.now(UTC).timestamp()
    classes = ("input", "cached_input", "output", "reasoning", "request")
    valid = sorted((each for each in versions if each["valid_from"] <= now), key=lambda each: each["valid_from"])
    return {each["currency"]: {name: each[name] for name in classes} for each in valid}


def _limits(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: answer[name] for name in ("requests_per_minute", "concurrent_requests")}


def _variable(model: str) -> str:
    """The variable that an exported file names for a credential: `TOLLWAY_CREDENTIAL_` and the model in capitals."""
    return "TOLLWAY_CREDENTIAL_" + "".join(each if each.isascii() and each.isalnum() else "_" for each in model.upper())
