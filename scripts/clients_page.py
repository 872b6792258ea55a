"""Renders docs/clients.md: which clients are tested against the gateway, with what results: `python scripts/clients_page.py`.

`make test-sdks` runs the programs in `tests/sdks` and records what each of them did in `tests/sdks/results.json`; a test holds the page in
step with that file.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "tests" / "sdks" / "results.json"
PAGE = ROOT / "docs" / "clients.md"

OPENING = """# Clients

Made by `make docs` from the last recorded `make test-sdks`; change `scripts/clients_page.py` there.

Programs that were written for OpenAI or Anthropic are run against a gateway, each in an environment of its own with these versions. Each
name stands for one thing that such programs do. The same run checks that every request ends in one usage record.

| client | versions | works | fails |
|---|---|---|---|
"""

CLOSING = """
What clients must know:

- The base URL of OpenAI's SDKs ends in `/v1`, that of Anthropic's does not.
- The key goes into `authorization: Bearer`, `x-api-key` or `api-key`. The same key in several of them is one credential (Claude Code sends
  two when both of its variables are set); keys that differ are refused with 400 `ambiguous_credentials`.
- Fields that no deployment of a model understands follow its `unknown_parameters`: refused with 400, dropped or forwarded.
- `/v1/responses` and `/v1/messages` are relayed to engines that have them, or translated to chat completions (docs/apis.md).
- `/v1/responses` stores a response where the request says `store: true` and the organization has switched storage on (docs/apis.md).
  Elsewhere a client sends the whole conversation: `previous_response_id` and `store: true` are refused by name, as
  `background: true` is. `conversation` always is. A client runs its tools itself (types `function` and `custom`).
- An error on an Anthropic path has Anthropic's shape, whatever went wrong; the id to quote stands in `request-id` or `x-request-id`.
"""


def render(results: Mapping[str, Any]) -> str:
    """Return the page of these results: by client its `versions`, and its `rows` with whether each works."""
    lines = []
    for client, result in sorted(results.items()):
        versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
        works = [row for row, is_good in result["rows"].items() if is_good]
        fails = [row for row, is_good in result["rows"].items() if not is_good]
        lines.append(f"| {client} | {versions} | {', '.join(works)} | {', '.join(fails) or 'nothing'} |\n")
    return OPENING + "".join(lines) + CLOSING


if __name__ == "__main__":
    PAGE.write_text(render(json.loads(RESULTS.read_text())))
