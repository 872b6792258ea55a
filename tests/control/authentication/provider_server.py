"""A real identity provider (Canaille, as pytest-iam starts it) in a process of its own: run by `.venv-provider`, told what to do by lines.

The first line that it writes is its issuer. Each line that it reads is JSON: {"client": [redirect addresses]}, where "id" is the id of
the client and "signed_out" the address to which the sign-out leads back, or {"user": {...}}, whose session is open from then on; it answers
with a line each."""

import json
import os
import sys
import threading
import uuid

import portpicker
from canaille import create_app
from canaille.backends import Backend
from joserfc.jwk import JWKRegistry
from pytest_iam import Server

os.environ["AUTHLIB_INSECURE_TRANSPORT"] = "1"
PORT = portpicker.pick_unused_port()
KEY = JWKRegistry.generate_key("RSA", 2048)
KEY.ensure_kid()
CONFIGURATION = {
    "TESTING": True,
    "ENV_FILE": None,
    "SECRET_KEY": str(uuid.uuid4()),
    "WTF_CSRF_ENABLED": False,
    "PREFERRED_URL_SCHEME": "http",
    "SERVER_NAME": f"localhost:{PORT}",
    "CANAILLE": {
        "DATABASE": "memory",
        "JAVASCRIPT": False,
        "ACL": {"DEFAULT": {"PERMISSIONS": ["use_oidc", "manage_oidc"]}},
        "LOGGING": {"version": 1, "disable_existing_loggers": False},
    },
    "CANAILLE_OIDC": {"DYNAMIC_CLIENT_REGISTRATION_OPEN": True, "ACTIVE_JWKS": [KEY.as_dict(private=True)]},
}


def main() -> None:
    """Serve until the standard input ends."""
    app = create_app(config=CONFIGURATION, env_file=".pytest-iam.env", env_prefix="PYTEST_IAM_")
    server = Server(app, PORT, Backend.instance)
    threading.Thread(target=server.httpd.serve_forever, daemon=True).start()
    print(json.dumps({"issuer": f"http://localhost:{PORT}"}), flush=True)
    for line in sys.stdin:
        wanted = json.loads(line)
        if "client" in wanted:
            print(json.dumps(add_client(server, wanted["client"], wanted.get("id"), wanted.get("signed_out"))), flush=True)
        else:
            print(json.dumps(sign_in(server, **wanted["user"])), flush=True)


def add_client(server: Server, redirect_uris: list[str], id: str | None, signed_out: str | None) -> dict[str, str]:
    """Register the client with these addresses. The secret of one whose id is given is that id."""
    with server.app.app_context():
        client = server.models.Client(
            client_id=id or str(uuid.uuid4()),
            client_secret=id or str(uuid.uuid4()),
            client_name="Tollway",
            client_uri="http://127.0.0.1",
            redirect_uris=redirect_uris,
            post_logout_redirect_uris=[signed_out] if signed_out else [],
            grant_types=["authorization_code"],
            response_types=["code"],
            scope=["openid", "profile", "email", "groups"],
            token_endpoint_auth_method="client_secret_basic",
        )
        server.backend.save(client)
        client.audience = [client]
        server.backend.save(client)
        return {"client_id": client.client_id, "client_secret": client.client_secret}


def sign_in(server: Server, email: str, name: str, groups: list[str]) -> dict[str, str]:
    """Add a person with groups, whose session is open from now on, and who consented to everything."""
    with server.app.app_context():
        user = server.backend.get(server.models.User, user_name=email)
        if user is None:
            user = server.models.User(user_name=email, formatted_name=name, family_name=name, emails=[email], password="password")
            server.backend.save(user)
        made = []
        for each in groups:
            group = server.backend.get(server.models.Group, display_name=each) or server.models.Group(display_name=each)
            group.members = [*(group.members or []), user]
            server.backend.save(group)
            made.append(group)
        user.groups = made
        server.backend.save(user)
    server.login(user)
    server.consent(user)
    return {"signed_in": email}


main()
