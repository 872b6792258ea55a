"""`tollway login`, `logout` and `whoami`: act as oneself, without a key in a file or a variable."""

import sys
import time

from tollway.cli.client import ControlUrl, DataDir, Key, Organization, connect_tenant, find_control_url
from tollway.cli.logins import describe_refusal, post_form, read_answer, read_login, remove_login, store_login
from tollway.cli.output import Output, OutputOption, print_json
from tollway.settings import OperatorError

CLIENT = {"client_id": "tollway-cli"}
GRANT = "urn:ietf:params:oauth:grant-type:device_code"


def login(
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Log in with your browser, so that commands act as you.

    Prints an address and a code, and waits until you have entered the code there. The tokens are kept in tollway/logins.json of
    $XDG_CONFIG_HOME, or ~/.config, for you alone."""
    url = find_control_url(control_url, data_dir)
    begun = post_form(f"{url}/v1/oauth/device_authorization", CLIENT)
    answer = read_answer(begun, url)
    if begun.status_code != 200:
        raise OperatorError(describe_refusal(answer), hint="see --control-url")
    if output is Output.JSON:
        print_json({each: answer[each] for each in ("verification_uri", "verification_uri_complete", "user_code", "expires_in")})
    else:
        print(f"open    {answer['verification_uri_complete']}\nenter   {answer['user_code']}", flush=True)
    interval, ends_at = answer["interval"], time.monotonic() + answer["expires_in"]
    while time.monotonic() < ends_at:
        time.sleep(interval)
        polled = post_form(f"{url}/v1/oauth/token", {**CLIENT, "grant_type": GRANT, "device_code": answer["device_code"]})
        tokens = read_answer(polled, url)
        if polled.status_code == 200:
            store_login(url, read_login(tokens))
            print(f"logged in at {url}", file=sys.stderr)
            return
        if tokens.get("error") == "slow_down":
            interval += 5
        elif tokens.get("error") != "authorization_pending":
            raise OperatorError(describe_refusal(tokens), hint="run `tollway login` again")
    raise OperatorError("nobody entered the code in time", hint="run `tollway login` again")


def logout(
    output: OutputOption = Output.TABLE,
    control_url: ControlUrl = None,
    data_dir: DataDir = None,
) -> None:
    """End the login of this machine."""
    url = find_control_url(control_url, data_dir)
    ended = remove_login(url)
    if ended is None:
        raise OperatorError(f"not logged in at {url}", hint="see --control-url")
    answer = post_form(f"{url}/v1/oauth/revoke", {"token": ended.refresh_token})
    if answer.status_code != 200:
        raise OperatorError(f"{url} could not end the login; this machine forgot it", hint="end it on the page /account")
    print_json({"control_url": url, "logged_out": True}) if output is Output.JSON else print(f"logged out at {url}")


def whoami(
    output: OutputOption = Output.TABLE,
    organization: Organization = None,
    control_url: ControlUrl = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Show who the commands act as, and with which roles."""
    with connect_tenant(control_url, key, data_dir, organization) as control:
        found = control.get("/me")
    if output is Output.JSON:
        print_json(found)
        return
    user = found["user"]
    if user:
        print(f"you           {user['name']} <{user['email']}> ({user['id']})")
    elif found["operator_id"]:
        print(f"operator      {found['operator_id']}")
    else:
        print(f"key           {found['api_key_id']}")
    print(f"organization  {found['organization_id']}")
    for role in found["roles"]:
        print(f"role          {role['name']} in {role['project_id'] or 'the organization'}")
