"""The present state of the parts of the platform file about identity, and how a change of one is made by the API.

The file names roles, groups, projects and service accounts by name or id; the API takes ids. What is read is written as the file writes it,
so that a name and the id of the same thing are no difference."""

import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from msgspec import UNSET

from tollway.cli.catalog.identity_file import COUNTS_MAX, FederationRuleFile, SignInConnectionFile
from tollway.cli.catalog.plan import PlannedChange
from tollway.cli.catalog.platform_file import OrganizationFile, PlatformFile, resolve_credential
from tollway.cli.client import Control, segment
from tollway.domain import roles
from tollway.domain.roles import READER, VIEWER, RoleScope
from tollway.settings import OperatorError

KINDS = frozenset({"group", "roles of group", "sign-in connection", "identity provider", "federation rule"})
"""Kinds of changes that are made here."""

GROUPS = "/organization/groups"
CONNECTIONS = "/organization/sign_in_connections"
PROVIDERS = "/organization/workload_identity_providers"
DIRECTORY_ROLE = "directory"


class Names:
    """Things of one kind in one organization or project, each by its name or id."""

    def __init__(self, kind: str, rows: Iterable[Mapping[str, Any]]) -> None:
        self._kind = kind
        self._names = {str(each["id"]): str(each["name"] or each["id"]) for each in rows}
        self._counts = Counter(self._names.values())

    def add(self, id: str, name: str) -> None:
        """Note something that was made."""
        self._names[id] = name
        self._counts[name] += 1

    def find(self, key: str) -> str | None:
        """Return the id of what a file calls `key`; None if there is nothing. Raises OperatorError for a name that several have."""
        if key in self._names:
            return key
        if self._counts[key] > 1:
            candidates = ", ".join(id for id, name in self._names.items() if name == key)
            raise OperatorError(
                f"more than one {self._kind} is called {key}", hint=f"write the id in place of the name: {candidates}", exit_code=2
            )
        return next((id for id, name in self._names.items() if name == key), None)

    def write(self, id: str, written: Iterable[str] = ()) -> str:
        """Return what a file calls the thing with this id: as in `written` where it stands there, else by its name if it is alone."""
        for key in written:
            if key == id or (self._counts[key] == 1 and self._names.get(id) == key):
                return key
        name = self._names.get(id, id)
        return name if self._counts[name] == 1 else id

    def choose(self, wanted: Collection[str] | None) -> dict[str, str]:
        """Return, by id, the key in a file of each thing that `wanted` names; of every one if None."""
        if wanted is None:
            return {id: self.write(id) for id in self._names}
        found = {self.find(key): key for key in wanted}
        return {id: key for id, key in found.items() if id is not None}


class IdentityState:
    """Groups, sign-in connections, identity providers, rules and directories of organizations, with the ids of what they name."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._names: dict[tuple[str, ...], Names] = {}
        """By kind and organization; of service accounts also by the id of the project."""
        self._paths: dict[tuple[str, ...], str] = {}
        """Paths of what there is, by kind and place."""
        self._counts: Counter[tuple[str, ...]] = Counter()

    # ---- reading ---------------------------------------------------------------------------------------------------

    def read(self, organization: str, wanted: OrganizationFile | None) -> dict[str, Any]:
        """Return what there is of the organization that `control` acts for, as far as `wanted` names it; everything if None."""
        parts = {} if wanted is None else _list_parts(wanted)
        if wanted is not None and not parts:
            return {}
        for kind in ("role", "group", "project"):
            self._names[kind, organization] = Names(kind, self._control.list_all(f"/organization/{kind}s"))
        found = {
            "groups": self._read_groups(organization, None if wanted is None else parts.get("groups", {})),
            "sign_in_connections": self._read_connections(organization, None if wanted is None else parts.get("sign_in_connections", {})),
            "identity_providers": self._read_providers(organization, None if wanted is None else parts.get("identity_providers", {})),
            "directories": self._read_directories(organization, None if wanted is None else parts.get("directories", {})),
        }
        return {name: part for name, part in found.items() if part}

    def _read_groups(self, organization: str, wanted: Mapping[str, Any] | None) -> dict[str, Any]:
        found = {}
        for id, key in self._names["group", organization].choose(wanted).items():
            written = () if wanted is None or wanted[key].roles is UNSET else wanted[key].roles
            held = [each["id"] for each in self._control.list_all(f"{GROUPS}/{id}/roles")]
            found[key] = {"roles": sorted(self._write_role(organization, each, written) for each in held)}
            self._paths["group", organization, key] = f"{GROUPS}/{id}"
        return found

    def _read_connections(self, organization: str, wanted: Mapping[str, SignInConnectionFile] | None) -> dict[str, Any]:
        if wanted is not None and not wanted:
            return {}
        rows = {each["id"]: each for each in self._control.list_all(CONNECTIONS)}
        self._counts["sign-in connection", organization] = len(rows)
        found = {}
        for id, key in Names("sign-in connection", rows.values()).choose(wanted).items():
            row, of_file = rows[id], None if wanted is None else wanted[key]
            fields = ("issuer", "client_id", "trusts_addresses", "groups_claim", "enabled")
            connection: dict[str, Any] = {field: row[field] for field in fields}
            connection["domains"] = sorted(row["domains"])
            if row["has_client_secret"]:
                connection["client_secret"] = f"${{{_variable(key)}}}"
            if row["role_id"] is not None:
                written = [of_file.role] if of_file is not None and isinstance(of_file.role, str) else []
                connection["role"] = self._write_role(organization, row["role_id"], written)
            groups = {} if of_file is None or of_file.groups is UNSET else of_file.groups
            of_organization = self._names["group", organization]
            connection["groups"] = {name: of_organization.write(id, [groups.get(name, id)]) for name, id in row["groups"].items()}
            found[key] = connection
            self._paths["sign-in connection", organization, key] = f"{CONNECTIONS}/{id}"
        return found

    def _read_providers(self, organization: str, wanted: Mapping[str, Any] | None) -> dict[str, Any]:
        if wanted is not None and not wanted:
            return {}
        rows = {each["id"]: each for each in self._control.list_all(PROVIDERS)}
        self._counts["identity provider", organization] = len(rows)
        found = {}
        for id, key in Names("identity provider", rows.values()).choose(wanted).items():
            row = rows[id]
            provider: dict[str, Any] = {name: row[name] for name in ("issuer", "audience", "enabled", "is_direct", "is_single_use")}
            if row["description"] is not None:
                provider["description"] = row["description"]
            if row["verification"]["type"] == "uploaded_jwks":
                provider["jwks"] = row["verification"]["jwks"]
            elif row["verification"]["discovery_url"] is not None:
                provider["discovery_url"] = row["verification"]["discovery_url"]
            of_file = None if wanted is None else {} if wanted[key].rules is UNSET else wanted[key].rules
            self._paths["identity provider", organization, key] = f"{PROVIDERS}/{id}"
            provider["rules"] = self._read_rules((organization, key), of_file)
            found[key] = provider
        return found

    def _read_rules(self, place: tuple[str, str], wanted: Mapping[str, FederationRuleFile] | None) -> dict[str, Any]:
        if wanted is not None and not wanted:
            return {}
        path = f"{self._paths['identity provider', *place]}/federation_rules"
        rows = {each["id"]: each for each in self._control.list_all(path)}
        self._counts["federation rule", *place] = len(rows)
        found = {}
        for id, key in Names("federation rule", rows.values()).choose(wanted).items():
            row, of_file = rows[id], None if wanted is None else wanted[key]
            accounts = self._accounts(place[0], row["project_id"])
            rule: dict[str, Any] = {
                "project": self._names["project", place[0]].write(row["project_id"], [of_file.project] if of_file else ()),
                "service_account": accounts.write(row["service_account_id"], [of_file.service_account] if of_file else ()),
                "claims": row["attribute_matchers"],
                "enabled": row["enabled"],
            }
            if row["permissions"]["scopes"] is not None:
                rule["endpoints"] = sorted(row["permissions"]["scopes"])
            if row["description"] is not None:
                rule["description"] = row["description"]
            found[key] = rule
            self._paths["federation rule", *place, key] = f"{path}/{id}"
        return found

    def _read_directories(self, organization: str, wanted: Mapping[str, Any] | None) -> dict[str, Any]:
        if wanted is not None and not wanted:
            return {}
        tokens = [each for each in self._control.list_all("/organization/admin_api_keys") if each["role"] == DIRECTORY_ROLE]
        return {key: {} for key in Names("token of a directory", tokens).choose(wanted).values()}

    def _accounts(self, organization: str, project_id: str) -> Names:
        place = ("service account", organization, project_id)
        if place not in self._names:
            self._names[place] = Names(place[0], self._control.list_all(f"/organization/projects/{project_id}/service_accounts"))
        return self._names[place]

    def _write_role(self, organization: str, role_id: str, written: Sequence[str]) -> str:
        if role_id == VIEWER.id and READER in written:
            return READER
        return self._names["role", organization].write(role_id, written)

    def _find_role(self, organization: str, key: str) -> str | None:
        """Return the id of a role that can be held in the organization; one that is only planned has those of every installation."""
        if key == READER:
            return VIEWER.id
        names = self._names.get(("role", organization))
        if names is not None:
            return names.find(key)
        role = roles.find_named(RoleScope.ORGANIZATION, key) or roles.find_built_in(key)
        return None if role is None or role.scope is not RoleScope.ORGANIZATION else role.id

    # ---- validating --------------------------------------------------------------------------------------------------

    def check(self, changes: Sequence[PlannedChange], current: PlatformFile, organizations: Mapping[str, str]) -> None:
        """Raise OperatorError, before anything was done, if a change names something that will not be there when its turn comes, or if
        there would be too much of its kind. `organizations`: ids of those that exist, by their keys in the file."""
        groups = {change.place for change in changes if change.what == "group" and change.creates}
        made: Counter[tuple[str, ...]] = Counter()
        for change in changes:
            if change.what not in KINDS:
                continue
            where, organization = f"{change.what} {' / '.join(change.place)}", change.place[0]
            if change.creates and change.what in COUNTS_MAX:
                subject = (change.what, *change.place[:-1])
                made[subject] += 1
                if self._counts[subject] + made[subject] > COUNTS_MAX[change.what]:
                    raise OperatorError(f"{where}: there may be at most {COUNTS_MAX[change.what]} of its kind", exit_code=2)
            for role in _list_roles(change):
                if self._find_role(organization, role) is None:
                    raise OperatorError(f"{where}: there is no role {role}", hint="see `tollway roles list`", exit_code=2)
            for group in change.body.get("groups", {}).values():
                names = self._names.get(("group", organization))
                if (organization, group) not in groups and (names is None or names.find(group) is None):
                    raise OperatorError(f"{where}: there is no group {group}", hint="see `tollway groups list`", exit_code=2)
            if change.what == "federation rule" and change.creates:
                self._find_account(change)
            if change.what == "identity provider":
                _check_audience(change, current, organizations.get(organization))

    def _find_account(self, change: PlannedChange) -> tuple[str, str]:
        """Return the ids of the project and of the service account of a new rule. Raises OperatorError if there is no such one."""
        where, organization = f"{change.what} {' / '.join(change.place)}", change.place[0]
        project, account = change.body["project"], change.body["service_account"]
        names = self._names.get(("project", organization))
        project_id = None if names is None else names.find(project)
        if project_id is None:
            raise OperatorError(f"{where}: there is no project {project}", hint="tollway projects create", exit_code=2)
        account_id = self._accounts(organization, project_id).find(account)
        if account_id is None:
            raise OperatorError(
                f"{where}: there is no service account {account} in project {project}", hint="tollway service-accounts create", exit_code=2
            )
        return project_id, account_id

    # ---- doing -------------------------------------------------------------------------------------------------------

    def carry_out(self, change: PlannedChange) -> None:
        """Do one change in the organization that `control` acts for. Raises OperatorError with the API's words."""
        control, place, body = self._control, change.place, dict(change.body)
        organization, name = place[0], place[-1]
        match change.what:
            case "group":
                made = control.post(GROUPS, {"name": name})
                self._names.setdefault(("group", organization), Names("group", ())).add(made["id"], name)
                self._paths["group", *place] = f"{GROUPS}/{made['id']}"
            case "roles of group":
                path = f"{self._paths['group', *place]}/roles"
                for role in body["given"]:
                    control.post(path, {"role_id": self._find_role(organization, role)})
                for role in body["taken"]:
                    control.delete(f"{path}/{segment(str(self._find_role(organization, role)))}")
            case "sign-in connection":
                secret = resolve_client_secret(change)
                if secret is not None:
                    body["client_secret"] = secret
                if body.get("role") is not None:
                    body["role"] = self._find_role(organization, body["role"])
                if "groups" in body:
                    names = self._names["group", organization] if body["groups"] else Names("group", ())
                    body["groups"] = {theirs: names.find(ours) for theirs, ours in body["groups"].items()}
                self._post(change, CONNECTIONS, {"name": name}, body)
            case "identity provider":
                made = self._post(change, PROVIDERS, {"name": name, "type": "oidc"}, body)
                self._paths["identity provider", *place] = f"{PROVIDERS}/{made['id']}"
            case _:
                fixed: dict[str, Any] = {"name": name}
                if change.creates:
                    fixed["project_id"], fixed["service_account_id"] = self._find_account(change)
                    del body["project"], body["service_account"]
                if "claims" in body:
                    body["attribute_matchers"] = body.pop("claims")
                if "endpoints" in body:
                    scopes = body.pop("endpoints")
                    restricted = {"type": "restricted", "scopes": scopes}
                    body["permissions"] = {"type": "service_account_default"} if scopes is None else restricted
                self._post(change, f"{self._paths['identity provider', *place[:-1]]}/federation_rules", fixed, body)

    def _post(self, change: PlannedChange, path: str, fixed: Mapping[str, Any], body: Mapping[str, Any]) -> Any:
        """Create what a change creates, below `path` and with the fields `fixed`, or change what there is."""
        if change.creates:
            return self._control.post(path, {**fixed, **body})
        return self._control.post(self._paths[change.what, *change.place], body)


def resolve_client_secret(change: PlannedChange) -> str | None:
    """Return the client secret that a change sends, if it sends one. Raises OperatorError if it cannot be had."""
    reference = change.body.get("client_secret") if change.what == "sign-in connection" else None
    return reference and resolve_credential(reference, os.environ, f"client_secret of {' / '.join(change.place)}")


def _list_roles(change: PlannedChange) -> list[str]:
    if change.what == "roles of group":
        return list(change.body["given"])
    role = change.body.get("role") if change.what == "sign-in connection" else None
    return [] if role is None else [role]


def _check_audience(change: PlannedChange, current: PlatformFile, organization_id: str | None) -> None:
    """Raise OperatorError unless the audience of a provider is bound to the organization where its tokens are accepted directly."""
    there = current.organizations.get(change.place[0])
    providers = {} if there is None or there.identity_providers is UNSET else there.identity_providers
    before = providers.get(change.place[1])
    is_direct = change.body.get("is_direct", before is not None and before.is_direct is True)
    audience = change.body.get("audience", None if before is None else before.audience)
    if is_direct and (organization_id is None or organization_id not in str(audience)):
        raise OperatorError(
            f"{change.what} {' / '.join(change.place)}: tokens are accepted without an exchange only with an audience that contains"
            f" {organization_id or 'the id of the organization, which must be created first'}",
            exit_code=2,
        )


def _list_parts(wanted: OrganizationFile) -> dict[str, Any]:
    """Return the parts about identity that a file states of an organization."""
    parts = {name: getattr(wanted, name) for name in ("groups", "sign_in_connections", "identity_providers", "directories")}
    return {name: part for name, part in parts.items() if part is not UNSET}


def _variable(connection: str) -> str:
    """The variable that an exported file names for a client secret: `TOLLWAY_CLIENT_SECRET_` and the connection in capitals."""
    return "TOLLWAY_CLIENT_SECRET_" + "".join(each if each.isascii() and each.isalnum() else "_" for each in connection.upper())
