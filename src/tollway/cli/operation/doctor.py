"""`tollway doctor`: what Tollway needs of this machine, checked."""

import os
from dataclasses import asdict
from pathlib import Path

import typer

from tollway.cli.client import ControlUrl
from tollway.cli.databases import parse_database_url
from tollway.cli.operation.config import find_problems
from tollway.cli.output import Output, OutputOption, print_json, print_table
from tollway.cli.processes import Config, DataDir
from tollway.serve.diagnosis import CheckResult, CheckState, diagnose, find_control_url
from tollway.settings import load_with_sources

EXIT_CODES = {CheckState.ERROR: 1, CheckState.WARNING: 3}
"""Exit code of the gravest finding; 0 for any other."""


def doctor(
    config: Config = None,
    data_dir: DataDir = None,
    control_url: ControlUrl = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Check settings, data directory, disk, open files, ports, clock and database of this machine, and name a remedy for each problem.

    Safe beside running processes. Exit code 0 if all is well, 1 if something does not work, 3 if there are warnings only.
    """
    loaded = load_with_sources({"data_dir": data_dir}, os.environ, config)
    findings = [CheckResult("settings", CheckState.ERROR, each.message, each.hint) for each in find_problems(loaded)]
    if not findings:
        findings.append(CheckResult("settings", CheckState.OK, f"valid; {len(loaded.sources)} differ from their defaults"))
        url = loaded.settings.control.database_url
        known = control_url or os.environ.get("TOLLWAY_CONTROL_URL") or find_control_url(Path(loaded.settings.data_dir))
        control = known and known.rstrip("/").removesuffix("/v1")
        findings += diagnose(loaded.settings, os.environ, control, url and parse_database_url(url))
    if output is Output.JSON:
        print_json([asdict(each) for each in findings])
    else:
        print_table(["check", "state", "finding"], [[each.check, each.state, each.message] for each in findings])
        for each in findings:
            if each.remedy and each.state is not CheckState.OK:
                print(f"{each.check}: {each.remedy}")
    states = {each.state for each in findings}
    raise typer.Exit(next((code for state, code in EXIT_CODES.items() if state in states), 0))
