"""Requests to the REST API by its own OpenAPI description, `python -m fuzz.rest_api --seconds 600`: what is answered must be described.

A control plane is started over a fresh database, with one of everything that an organization has. Schemathesis, in an environment of its
own (.venv-schemathesis), sends requests of each operation, right ones and wrong ones, as an operator who acts for that organization. It
fails at a status of 500 or above, and at a status, a media type or a body that the description does not have.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.control.harness import make_tenant, running
from tollway.serve.control import migrate_database

ROOT = Path(__file__).parent.parent
PROGRAM = ROOT / ".venv-schemathesis" / "bin" / "schemathesis"

CHECKS = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance")
"""Checks of each answer."""

EXCLUDED = "/v1/(platform/organizations/\\{organization_id\\}/archive|organization/export)$"
"""Operations that would end the organization of the run, or answer with a stream of everything that it made."""


def main() -> int:
    """Run for as long as was asked. Return the exit code of schemathesis."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", metavar="REGEX", help="paths to send requests to")
    arguments = parser.parse_args()
    if not PROGRAM.exists():
        print(f"no {PROGRAM}: `make fuzz-api` installs it", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="tollway-api-") as directory:
        url = f"sqlite+pysqlite:///{directory}/control.sqlite"
        migrate_database(url)
        with running(url, Path(directory) / "archive") as control:
            tenant = make_tenant(control, "fuzzed")
            description = Path(directory) / "openapi.json"
            description.write_bytes(control.client(None).get("/openapi.json").content)
            command = [
                *(str(PROGRAM), "run", str(description), "--url", control.url),
                *("--header", f"Authorization: Bearer {control.platform_key}"),
                *("--header", f"OpenAI-Organization: {tenant.organization_id}"),
                *("--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing,stateful"),
                *("--max-time", str(arguments.seconds), "--seed", str(arguments.seed), "--max-examples", "50", "--no-color"),
                *("--exclude-path-regex", EXCLUDED, "--continue-on-failure", "--request-timeout", "30", "--warnings", "off"),
                *(("--include-path-regex", arguments.only) if arguments.only else ()),
            ]
            return subprocess.run(command, cwd=directory, check=False, timeout=arguments.seconds + 300).returncode


if __name__ == "__main__":
    sys.exit(main())
