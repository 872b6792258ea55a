"""`tollway audit`: the audit trail, who changed or read what and when: list it, export it for a SIEM, verify its chains."""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

import tollway
from tollway.cli.client import Control, ControlUrl, Key, Organization, connect, connect_tenant
from tollway.cli.client import DataDir as InstallationDir
from tollway.cli.databases import DatabaseUrl, chosen
from tollway.cli.output import Output, OutputOption, print_json, print_rows, written_whole
from tollway.cli.processes import Config, DataDir, read_settings
from tollway.cli.times import Zone, with_times
from tollway.control.auditing import audit_chains
from tollway.serve import data_directory
from tollway.settings import OperatorError
from tollway.storage.database import Database

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

Platform = Annotated[bool, typer.Option("--platform", help="Take the chain of the platform in place of an organization's.")]
COLUMNS = ["sequence", "at", "event", "actor", "address", "target"]
PAGE_ITEMS = 100


class ExportFormat(StrEnum):
    """Forms of an export."""

    JSONL = "jsonl"
    CEF = "cef"


@app.command("list")
def list_records(
    limit: Annotated[int, typer.Option("--limit", min=1, max=100, help="Most records to print, the latest ones.")] = 20,
    platform: Platform = False,
    zone: Zone = None,
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: InstallationDir = None,
) -> None:
    """List the latest records of an organization's audit trail, or of the platform's."""
    with _connect(platform, control_url, key, data_dir, organization) as (control, path):
        events = control.get(f"{path}?limit={limit}")["data"]
        rows = [_flatten(event) for event in events]
        if output is Output.TABLE:
            rows = with_times(rows, control.get_zone(zone), at="at")
    print_rows(output, COLUMNS, rows, none="nothing is recorded yet")


@app.command()
def export(
    format: Annotated[ExportFormat, typer.Option("--format", help="JSON lines, or CEF as many SIEMs read it.")] = ExportFormat.JSONL,
    file: Annotated[Path | None, typer.Option("-f", "--file", metavar="FILE", help="File to write, in place of standard output.")] = None,
    cursor: Annotated[
        Path | None,
        typer.Option(
            "--cursor",
            metavar="FILE",
            help="Write only what was recorded since the last export with this file, the oldest first, and note in it how far it came.",
        ),
    ] = None,
    platform: Platform = False,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: InstallationDir = None,
) -> None:
    """Write the audit trail of an organization, or of the platform, as lines: all of it, the latest record first, or what is new."""
    last = None if cursor is None else _read_cursor(cursor)
    with _connect(platform, control_url, key, data_dir, organization) as (control, path):
        with written_whole(file) as writer:
            for event in _iterate(control, path) if last is None else _iterate_newer(control, path, last):
                line = json.dumps(event, ensure_ascii=False) if format is ExportFormat.JSONL else format_cef(event)
                writer.write(f"{line}\n".encode())
                last = None if cursor is None else event["record"]["sequence"]
        if cursor is not None and last is not None:  # once the lines are written: what fails before is written again
            with written_whole(cursor) as writer:
                writer.write(f"{last}\n".encode())


@app.command()
def verify(
    public_key: Annotated[
        list[str] | None,
        typer.Option("--public-key", metavar="HEX", help="A key that may have signed checkpoints, in place of the installation's own."),
    ] = None,
    config: Config = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Verify every chain of the audit trail: records that were changed, removed, moved or inserted, and signatures of checkpoints.

    Exit code 0 if all is as it was written, 1 with each place where it is not. Control may go on running meanwhile.
    """
    settings = read_settings(config, data_dir=data_dir, control__database_url=database_url)
    directory = Path(settings.data_dir).absolute()
    trusted = [_parse_key(text) for text in public_key or []]
    if not trusted:
        own = data_directory.find_audit_key(directory, os.environ)
        trusted = [] if own is None else [audit_chains.find_public_key(own)]
    with chosen(settings, directory, reads_only=True) as url, closing(Database.open(url)) as database:
        database.check_schema()
        with database.platform(write=False) as tx:
            report = audit_chains.verify(tx, trusted)
    if output is Output.JSON:
        print_json({**asdict(report), "keys": sorted(report.keys), "is_right": not report.findings})
    else:
        print(f"verified: {report.chains} chains, {report.records} records, {report.checkpoints} checkpoints")
        if report.erased:
            print(f"erased in part: {report.erased} records, as their erasures state")
        print(f"removed by retention: {report.removed} records; after the latest checkpoints: {report.unsigned} records")
        for finding in report.findings:
            print(f"{finding.chain} {finding.sequence}: {finding.text}")
        if not trusted:
            print("no key of checkpoints is known here: name it with --public-key, or set TOLLWAY_AUDIT_KEY")
        print("everything is as it was written" if not report.findings else "the audit trail is not as it was written")
    raise typer.Exit(1 if report.findings else 0)


def format_cef(event: Mapping[str, Any]) -> str:
    """Return an event as a line of CEF (ArcSight Common Event Format, version 0). Severity 3, and 6 for what ends something."""
    record = event["record"]
    severity = 6 if event["type"].rpartition(".")[2] in {"deleted", "archived", "revoked", "exported", "written_off"} else 3
    header = ["CEF:0", "Tollway", "Tollway", tollway.__version__, event["type"], record["operation"], str(severity)]
    project = event["project"] or {}
    fields = {
        "rt": event["effective_at"] * 1000,
        "externalId": event["id"],
        "suser": _actor_id(event),
        "spriv": record["actor_kind"],
        "src": record["address"],
        "cs1Label": "request",
        "cs1": record["request_id"],
        "cs2Label": "target",
        "cs2": f"{record['target_kind']}:{record['target_id']}" if record["target_id"] else "",
        "cs3Label": "project",
        "cs3": project.get("id", ""),
        "cs4Label": "hash",
        "cs4": record["hash"],
        "cn1Label": "sequence",
        "cn1": record["sequence"],
        "msg": json.dumps(record["changes"], ensure_ascii=False),
    }
    return (
        "|".join(map(_escape_header, header))
        + "|"
        + " ".join(f"{name}={_escape(value)}" for name, value in fields.items() if value and fields.get(name.removesuffix("Label"), True))
    )


def _escape_header(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\r", " ").replace("\n", " ")


def _escape(value: object) -> str:
    return str(value).replace("\\", "\\\\").replace("=", "\\=").replace("\r", "\\r").replace("\n", "\\n")


def _iterate(control: Control, path: str) -> Iterator[dict[str, Any]]:
    """Yield every event of a chain, the latest first. What is recorded meanwhile, such as these reads, is newer than the first page."""
    after = ""
    while True:
        page = control.get(f"{path}?limit={PAGE_ITEMS}{after}")
        yield from page["data"]
        if not page["has_more"]:
            return
        after = f"&after={page['last_id']}"


def _iterate_newer(control: Control, path: str, last: int) -> Iterator[dict[str, Any]]:
    """Yield the events of a chain after the sequence number `last`, the oldest first, with a warning where retention removed some that were
    never exported."""
    while True:
        page = control.get(f"{path}?limit={PAGE_ITEMS}&after_sequence={last}")
        for event in page["data"]:
            sequence = event["record"]["sequence"]
            if sequence > last + 1 and last > 0:
                print(f"records {last + 1} to {sequence - 1} were removed before they were exported", file=sys.stderr)
            last = sequence
            yield event
        if not page["has_more"]:
            return


def _read_cursor(file: Path) -> int:
    """Return the sequence number of the record that was exported last; 0 if there is no such file yet."""
    if not file.exists():
        return 0
    text = file.read_text().strip()
    if not text.isdecimal():
        raise OperatorError(f"{file} is not the cursor of an export", hint="name another file, or remove this one", exit_code=2)
    return int(text)


@contextmanager
def _connect(
    platform: bool, control_url: str | None, key: str | None, data_dir: Path | None, organization: str | None
) -> Iterator[tuple[Control, str]]:
    """A client for one command, and the path of the chain that it reads."""
    if not platform:
        with connect_tenant(control_url, key, data_dir, organization) as control:
            yield control, "/organization/audit_logs"
        return
    if organization is not None:
        raise OperatorError("--platform and --organization name different chains", exit_code=2)
    with connect(control_url, key, data_dir) as control:
        yield control, "/platform/audit_logs"


def _flatten(event: Mapping[str, Any]) -> dict[str, Any]:
    record = event["record"]
    return {
        "sequence": record["sequence"],
        "at": event["effective_at"],
        "event": event["type"],
        "actor": _actor_id(event),
        "address": record["address"],
        "target": record["target_id"],
    }


def _parse_key(text: str) -> bytes:
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != audit_chains.KEY_BYTES:
        raise OperatorError("a public key has 64 hexadecimal digits", exit_code=2)
    return key


def _actor_id(event: Mapping[str, Any]) -> str:
    """Return the id of the credential, or of the person who signed in."""
    actor = event["actor"]
    found: str = actor["session"]["user"]["id"] if actor["type"] == "session" else actor["api_key"]["id"]
    return found
