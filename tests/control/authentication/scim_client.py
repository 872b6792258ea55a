"""Checks a SCIM service by `scim2-tester`: run by `.venv-provider` with the address of the service; the token is in SCIM_TOKEN.

Writes one line of JSON: for each check its name, its status and the reason."""

import json
import os
import sys

from httpx2 import Client
from scim2_client.engines.httpx2 import SyncSCIMClient
from scim2_tester import check_server

http = Client(base_url=sys.argv[1], headers={"authorization": f"Bearer {os.environ['SCIM_TOKEN']}"}, timeout=60)
results = check_server(SyncSCIMClient(http))
print(json.dumps([[each.title, each.status.name, each.reason] for each in results]))
