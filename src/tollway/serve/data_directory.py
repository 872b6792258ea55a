"""The data directory: its format marker, its locks, and the secrets that must survive with it.

    tollway.json    {"format": 1}: a newer format is refused, never guessed at
    secrets.json    mode 0600, made once: peppers, vault key, audit key, platform key, id and key of the node
    control/        database and archive         gateway/   spool and snapshot
    logs/           one file per child process   addresses.json   where the running processes listen

Every file is for the owner only (0600, directories 0700); `prepare` sees to that at each start.

Whoever loses secrets.json loses every API key (they are stored as digests under the pepper) and every upstream
credential (sealed under the vault key): it belongs in the backup, beside but not inside the database's."""

import errno
import fcntl
import hmac
import json
import os
import pwd
import secrets
import stat
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tollway.domain import ids, keys
from tollway.domain.keys import KeyType
from tollway.link.epochs import SpoolDamaged
from tollway.link.epochs import find_node as find_spool_node
from tollway.settings import OperatorError

FORMAT = 1
"""Format of the data directory as a whole. Raised when an older Tollway could misread what a newer one wrote."""

SECRET_BYTES = 32
"""Length of a pepper and of the vault key: the key size of HMAC-SHA256 and AES-256."""

SECRETS_ENV = ("TOLLWAY_PEPPER", "TOLLWAY_VAULT_KEY", "TOLLWAY_PLATFORM_KEY", "TOLLWAY_SECOND_PLATFORM_KEY", "TOLLWAY_AUDIT_KEY")
"""Variables that replace secrets.json in a cluster, where processes do not share a directory. The second platform key has no place there:
whoever reads the file would hold both keys, and could approve what they asked for."""

PEPPERS_MAX = 2
"""The pepper of new digests, and the one before or after it: every request that presents an unknown key costs a digest under each."""

VERSION_MAX = 2**31 - 1
"""Greatest version of a pepper: that of an integer column."""

NODE_ENV = ("TOLLWAY_NODE_ID", "TOLLWAY_NODE_KEY")
"""Variables that say who a gateway is, in place of secrets.json."""

NODE_FILE = "node_key.json"
"""In `gateway/`, mode 0600: the id and the key that a gateway made for itself, and whether control has registered them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Secrets:
    """The secrets that a process needs to check keys and open credentials. repr shows none of them.

    `peppers` by version, 32 bytes each. `platform_key` is None where only a gateway's secrets were given, `second_platform_key` where there
    is no second person. `audit_key` signs checkpoints of the audit trail; None where none was given.
    """

    peppers: Mapping[int, bytes] = field(repr=False)
    pepper_version: int
    vault_key: bytes = field(repr=False)
    platform_key: str | None = field(repr=False)
    second_platform_key: str | None = field(repr=False)
    audit_key: bytes | None = field(default=None, repr=False)

    def digests(self) -> dict[str, str]:
        """Return a digest of each secret without which a database cannot be read, by name, so that a backup knows them again. They are
        made with the secret as the key, and say nothing of it (HMAC-SHA-256 over the name, 16 bytes of it in hexadecimal)."""
        named = {"vault_key": self.vault_key} | {f"pepper_{version}": pepper for version, pepper in self.peppers.items()}
        return {name: hmac.digest(secret, f"tollway backup {name}".encode(), "sha256")[:16].hex() for name, secret in named.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeIdentity:
    """The node that a gateway is: its id and its key. `join_token`: the token with which it still has to register both; None if it need
    not. repr shows no secret."""

    node_id: str
    key: str = field(repr=False)
    join_token: str | None = field(default=None, repr=False)


def explain(error: OSError, path: Path) -> OperatorError:
    """Return the message for the operator about an error of the file system at `path`: what is wrong there, and the remedy."""
    where = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else path
    if error.errno in (errno.EACCES, errno.EPERM):
        owner, user = _find_owner(where), _name_user(os.geteuid())
        return OperatorError(
            f"{where} cannot be used by {user}: it belongs to {owner}"
            if owner != user
            else f"{where} is not accessible to {user}, its owner",
            hint=f"run Tollway as {owner}, or give {user} the whole data directory" if owner != user else f"chmod u+rwX {where}",
        )
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OperatorError(f"there is no space left to write {where}", hint="free space there, or choose another --data-dir")
    if error.errno == errno.EROFS:
        return OperatorError(f"{where} is on a read-only file system", hint="mount it writable, or choose another --data-dir")
    return OperatorError(f"cannot use {where} in the data directory: {error.strerror or error}", hint="choose another --data-dir")


def _find_owner(path: Path) -> str:
    """Return the user who owns `path`, or the nearest directory above it that exists and can be seen."""
    for each in (path, *path.parents):
        try:
            return _name_user(each.stat().st_uid)
        except OSError:
            continue
    return "another user"


def _name_user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def prepare(directory: Path) -> None:
    """Make `directory` a data directory of our format if it is not one yet, and let nobody but its owner read what is in it: what exists is
    repaired, with a line on standard error, and this process and its children create all further files for their user alone (umask).

    Raises OperatorError if it is a newer Tollway's, or if a file in it belongs to another user and others may read it.
    """
    os.umask(0o077)
    marker = directory / "tollway.json"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not marker.exists():
            write_atomically(marker, {"format": FORMAT}, mode=0o600)
    except OSError as error:
        raise explain(error, directory) from None
    check_format(directory)
    _refuse_exposed_secrets(directory / "secrets.json")
    repaired = make_private(directory)
    if repaired:
        print(f"tollway: {len(repaired)} files under {directory} are now for their owner only, the first: {repaired[0]}", file=sys.stderr)


def make_private(directory: Path) -> list[Path]:
    """Take all permissions of group and others from `directory` and everything in it. Returns what had any. Links are not followed.

    Raises OperatorError for a file that cannot be changed, because it belongs to another user.
    """
    repaired = []
    for at, directories, files in os.walk(directory):
        for path in (Path(at), *(Path(at, name) for name in files), *(Path(at, name) for name in directories)):
            try:
                mode = path.lstat().st_mode
                if (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISSOCK(mode)) and mode & 0o077:
                    path.chmod(stat.S_IMODE(mode) & 0o700)
                    repaired.append(path)
            except FileNotFoundError:
                continue  # another process removed it since it was listed
            except OSError as error:
                raise explain(error, path) from None
    return repaired


def check_format(directory: Path) -> None:
    """Raise OperatorError unless `directory` holds data of a format that this version reads."""
    marker = directory / "tollway.json"
    try:
        found = json.loads(marker.read_bytes())["format"]
    except FileNotFoundError:
        raise OperatorError(
            f"{directory} is not a Tollway data directory",
            hint="`tollway serve` or `tollway demo` makes one; or see --data-dir",
        ) from None
    except OSError as error:
        raise explain(error, marker) from None
    except (ValueError, TypeError, KeyError) as error:
        raise OperatorError(f"cannot read {marker}: {error}", hint="restore it from the backup") from None
    if not isinstance(found, int) or found > FORMAT:
        raise OperatorError(
            f"{directory} was written by a newer Tollway (format {found}; this one reads up to {FORMAT})",
            hint="run the version that wrote it, or restore a backup made before the upgrade",
        )


def sqlite_url(directory: Path) -> str:
    """The embedded database of the data directory, as SQLAlchemy names it."""
    return f"sqlite+pysqlite:///{directory.absolute()}/control/tollway.db"


@contextmanager
def locked(directory: Path, name: str) -> Iterator[None]:
    """Hold the lock `name` in `directory`: "serve" in the data directory (its supervisor), "control" in control/ (who
    may open the SQLite file). Makes the directory if there is none.

    The kernel gives it back when the process dies, however it dies. Raises OperatorError if another process holds it.
    """
    path = directory / f"{name}.lock"
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise explain(error, path) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip() or "unknown"
            raise OperatorError(
                f"another Tollway (process {holder}) is using {directory}",
                hint="stop it first, or choose another --data-dir",
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


# ---- secrets ---------------------------------------------------------------------------------------------------------


def new_secrets() -> dict[str, str]:
    """Return fresh random secrets in the form that their variables (SECRETS_ENV) take."""
    return {
        "TOLLWAY_PEPPER": secrets.token_hex(SECRET_BYTES),
        "TOLLWAY_VAULT_KEY": secrets.token_hex(SECRET_BYTES),
        "TOLLWAY_PLATFORM_KEY": keys.new_key(KeyType.PLATFORM, secrets.token_bytes(keys.RANDOM_BYTES)).secret,
        "TOLLWAY_SECOND_PLATFORM_KEY": keys.new_key(KeyType.PLATFORM, secrets.token_bytes(keys.RANDOM_BYTES)).secret,
        "TOLLWAY_AUDIT_KEY": secrets.token_hex(SECRET_BYTES),
    }


def make_secrets(directory: Path) -> None:
    """Write a fresh secrets.json unless there is one. Of two processes that try at once, one wins and both use its
    file."""
    path = directory / "secrets.json"
    if path.exists():
        return
    fresh = new_secrets()
    body = {
        "peppers": {"1": fresh["TOLLWAY_PEPPER"]},
        "pepper_version": 1,
        "vault_key": fresh["TOLLWAY_VAULT_KEY"],
        "audit_key": fresh["TOLLWAY_AUDIT_KEY"],
        "platform_key": fresh["TOLLWAY_PLATFORM_KEY"],
        "node_id": _new_node_id(),
        "node_key": _new_node_key(),
    }
    _write_once(path, body)


def read_secrets(directory: Path, environ: Mapping[str, str]) -> Secrets:
    """The secrets of this installation: secrets.json, each replaced by its variable (SECRETS_ENV) where that is set.

    Raises OperatorError for a file that others may read, for a secret that is missing, malformed or too short; never
    shows one."""
    path = directory / "secrets.json"
    body = _read_private(path)
    pepper, vault_key, platform_key, second_key, _ = (environ.get(name) or None for name in SECRETS_ENV)
    version = body.get("pepper_version", 1)
    peppers = {int(known): _parse_hex(text, f"pepper {known} in {path}") for known, text in body.get("peppers", {}).items()}
    if pepper is not None and ":" in pepper:
        version, peppers = _parse_peppers(pepper)
    elif pepper is not None:
        peppers[version] = _parse_hex(pepper, "TOLLWAY_PEPPER")
    if len(peppers) > PEPPERS_MAX:
        raise OperatorError(f"there are {len(peppers)} peppers: {PEPPERS_MAX} at most", hint="see `tollway peppers list`")
    if version not in peppers:
        raise _missing("pepper", "TOLLWAY_PEPPER", directory)
    vault_text = vault_key or body.get("vault_key")
    if vault_text is None:
        raise _missing("vault key", "TOLLWAY_VAULT_KEY", directory)
    platform_text = platform_key or body.get("platform_key")
    return Secrets(
        peppers=peppers,
        pepper_version=version,
        vault_key=_parse_hex(vault_text, "TOLLWAY_VAULT_KEY" if vault_key else f"vault_key in {path}"),
        platform_key=platform_text
        and _check_key(platform_text, KeyType.PLATFORM, "TOLLWAY_PLATFORM_KEY" if platform_key else f"platform_key in {path}"),
        second_platform_key=second_key and _check_key(second_key, KeyType.PLATFORM, "TOLLWAY_SECOND_PLATFORM_KEY"),
        audit_key=find_audit_key(directory, environ),
    )


def _parse_peppers(text: str) -> tuple[int, dict[int, bytes]]:
    """Return the version for new digests and the peppers by version of a text such as `1:hex,2:hex`, whose first one is for new digests."""
    peppers: dict[int, bytes] = {}
    for part in text.split(","):
        number, _, digits = part.strip().partition(":")
        if not number.isascii() or not number.isdigit() or not 0 < int(number) <= VERSION_MAX or int(number) in peppers:
            raise OperatorError("TOLLWAY_PEPPER must be one pepper, or two as VERSION:PEPPER,VERSION:PEPPER", hint="for example 1:…,2:…")
        peppers[int(number)] = _parse_hex(digits, f"pepper {number} of TOLLWAY_PEPPER")
    return next(iter(peppers)), peppers


def add_pepper(directory: Path) -> int:
    """Add a fresh pepper to secrets.json, which is not used for new digests yet, and return its version. Raises OperatorError if there are
    PEPPERS_MAX already."""
    body = _read_peppers(directory)
    versions = sorted(map(int, body["peppers"]))
    if len(versions) >= PEPPERS_MAX:
        raise OperatorError(f"there are {PEPPERS_MAX} peppers already: {versions}", hint="`tollway peppers retire` the older one first")
    added = versions[-1] + 1
    body["peppers"][str(added)] = secrets.token_hex(SECRET_BYTES)
    _rewrite(directory / "secrets.json", body)
    return added


def use_pepper(directory: Path, version: int) -> None:
    """Make a pepper of secrets.json the one of new digests. Raises OperatorError if it is not there."""
    body = _read_peppers(directory)
    if str(version) not in body["peppers"]:
        raise OperatorError(f"there is no pepper {version} in {directory}/secrets.json", hint="`tollway peppers add` makes one")
    _rewrite(directory / "secrets.json", body | {"pepper_version": version})


def remove_pepper(directory: Path, version: int) -> None:
    """Remove a pepper from secrets.json. Raises OperatorError if it is not there, or is the one of new digests."""
    body = _read_peppers(directory)
    if version == body.get("pepper_version", 1):
        raise OperatorError(f"pepper {version} is the one of new keys", hint="`tollway peppers use` another one first")
    if body["peppers"].pop(str(version), None) is None:
        raise OperatorError(f"there is no pepper {version} in {directory}/secrets.json")
    _rewrite(directory / "secrets.json", body)


def _read_peppers(directory: Path) -> dict[str, Any]:
    body = _read_private(directory / "secrets.json")
    if not body.get("peppers"):
        raise OperatorError(
            f"there are no peppers in {directory}/secrets.json",
            hint="in a cluster change TOLLWAY_PEPPER, as docs/keys.md describes",
        )
    return body


def _rewrite(path: Path, body: Mapping[str, Any]) -> None:
    """Replace a private file as a whole: whoever reads it meanwhile, and whoever starts after a crash, finds the old one or the new one."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as writer:
            json.dump(body, writer, indent=2)
            writer.flush()
            os.fsync(writer.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def find_audit_key(directory: Path, environ: Mapping[str, str]) -> bytes | None:
    """Return the private key that signs checkpoints of the audit trail (Ed25519); None if neither the environment nor secrets.json has
    one. Raises OperatorError for one that is malformed."""
    text = environ.get("TOLLWAY_AUDIT_KEY")
    if text:
        return _parse_hex(text, "TOLLWAY_AUDIT_KEY")
    path = directory / "secrets.json"
    kept = _read_private(path).get("audit_key")
    return None if kept is None else _parse_hex(kept, f"audit_key in {path}")


def find_node(directory: Path, environ: Mapping[str, str]) -> NodeIdentity | None:
    """The node that the environment (TOLLWAY_NODE_ID, TOLLWAY_NODE_KEY) or else secrets.json holds; None if neither does.

    Raises OperatorError for an id or a key that is malformed, or for one without the other.
    """
    named = NODE_ENV
    node_id, key = (environ.get(name) or None for name in named)
    if node_id is None and key is None:
        path = directory / "secrets.json"
        body = _read_private(path)
        named = (f"node_id in {path}", f"node_key in {path}")
        node_id, key = body.get("node_id"), body.get("node_key")
        if node_id is None and key is None:
            return None
    for given, other, missing in ((node_id, key, named[1]), (key, node_id, named[0])):
        if given is not None and other is None:
            raise OperatorError(f"{missing} is missing: a gateway needs its id and its key", hint="`tollway nodes create` prints both")
    return NodeIdentity(node_id=_check_node_id(node_id, named[0]), key=_check_key(key, KeyType.NODE, named[1]))


def find_known_node(directory: Path, environ: Mapping[str, str]) -> NodeIdentity | None:
    """As `find_node`, or else the node that a gateway with this data directory made for itself at an earlier start; None if there is
    none. Raises OperatorError."""
    given = find_node(directory, environ)
    if given is not None:
        return given
    token = environ.get("TOLLWAY_JOIN_TOKEN") or None
    if token is not None and not keys.is_join_token(token):
        raise OperatorError("TOLLWAY_JOIN_TOKEN is not a whole join token (tw_join_...)", hint="`tollway nodes token` prints one")
    path = directory / "gateway" / NODE_FILE
    body = _read_private(path)
    if not body:
        return None
    node_id = _check_node_id(body.get("node_id"), f"node_id in {path}")
    key = _check_key(body.get("node_key"), KeyType.NODE, f"node_key in {path}")
    return NodeIdentity(node_id=node_id, key=key, join_token=None if body.get("is_registered") else token)


def make_gateway_node(directory: Path, environ: Mapping[str, str]) -> NodeIdentity:
    """As `find_known_node`, or else a new node, if TOLLWAY_JOIN_TOKEN is set with which it can register itself. The data directory must
    be prepared. Raises OperatorError if there is no node and no token."""
    known = find_known_node(directory, environ)
    if known is not None:
        return known
    if not environ.get("TOLLWAY_JOIN_TOKEN"):
        raise OperatorError(
            "this gateway has no node key",
            hint="set TOLLWAY_JOIN_TOKEN (see `tollway nodes token`), or TOLLWAY_NODE_ID and TOLLWAY_NODE_KEY (see `tollway nodes create`)",
        )
    path = directory / "gateway" / NODE_FILE
    try:
        spool_node = find_spool_node(directory / "gateway" / "spool")
        path.parent.mkdir(mode=0o700, exist_ok=True)
        _write_once(path, {"node_id": spool_node or _new_node_id(), "node_key": _new_node_key(), "is_registered": False})
    except OSError as error:
        raise explain(error, path) from None
    except SpoolDamaged as error:
        raise OperatorError(f"the spool in {directory}/gateway cannot be used: {error}") from None
    made = find_known_node(directory, environ)
    assert made is not None, "it was written before"
    return made


def keep_registered(directory: Path, node: NodeIdentity) -> None:
    """Store that control has registered the node that a gateway made for itself. Raises OSError."""
    body = {"node_id": node.node_id, "node_key": node.key, "is_registered": True}
    write_atomically(directory / "gateway" / NODE_FILE, body, mode=0o600)


def _new_node_id() -> str:
    return ids.new_id(ids.NODE, time.time_ns() // 1000, secrets.randbits(ids.RANDOM_BITS))


def _new_node_key() -> str:
    return keys.new_key(KeyType.NODE, secrets.token_bytes(keys.RANDOM_BYTES)).secret


def _refuse_exposed_secrets(path: Path) -> None:
    """Raise OperatorError if everyone on this machine could read the secrets at `path`: they may be known, so that is not repaired in
    silence."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        return
    except OSError as error:
        raise explain(error, path) from None
    if mode & stat.S_IRWXO:
        raise OperatorError(f"{path} can be read by everyone on this machine (mode {mode:o})", hint=f"chmod 600 {path}")


def _read_private(path: Path) -> dict[str, Any]:
    _refuse_exposed_secrets(path)
    try:
        body = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise explain(error, path) from None
    except ValueError:
        body = None
    if not isinstance(body, dict) or not isinstance(body.get("peppers", {}), dict):
        raise OperatorError(f"{path} is damaged", hint="restore it from the backup: without it no API key can be checked")
    return body


def _missing(what: str, variable: str, directory: Path) -> OperatorError:
    return OperatorError(
        f"there is no {what}: {directory}/secrets.json has none and {variable} is not set",
        hint="`tollway serve` and `tollway migrate` make secrets.json; a cluster's nodes take it from the environment",
    )


def _parse_hex(text: object, where: str) -> bytes:
    try:
        value = bytes.fromhex(text) if isinstance(text, str) else b""
    except ValueError:
        value = b""
    if len(value) != SECRET_BYTES or len(set(value)) < 8:
        raise OperatorError(
            f"{where} must be {2 * SECRET_BYTES} random hexadecimal digits ({SECRET_BYTES} bytes)",
            hint="openssl rand -hex 32",
        )
    return value


def _check_node_id(text: object, where: str) -> str:
    if not isinstance(text, str) or not ids.is_id(ids.NODE, text):
        raise OperatorError(f"{where} is not the id of a node (node_ and 32 hexadecimal digits)", hint="`tollway nodes list` shows them")
    return text


def _check_key(text: object, type: KeyType, where: str) -> str:
    if not isinstance(text, str) or keys.find_type(text) is not type:
        raise OperatorError(f"{where} is not a whole {type} key (tw_{type}_...)")
    return text


# ---- files -----------------------------------------------------------------------------------------------------------


def write_atomically(path: Path, body: Mapping[str, Any], *, mode: int) -> None:
    """Write `body` as JSON so that whoever opens `path` sees the old file or the new one, whole, even after a loss of
    power."""
    write_text_atomically(path, _as_json(body), mode=mode)


def write_text_atomically(path: Path, text: str, *, mode: int) -> None:
    """Write `text`, with the promise of `write_atomically`."""
    os.replace(_write_aside(path, text, mode=mode), path)
    _sync_directory(path.parent)


def _write_once(path: Path, body: Mapping[str, Any]) -> None:
    """Write a file of secrets unless there is one: of two processes that try at once, one wins."""
    whole = _write_aside(path, _as_json(body), mode=0o600)
    try:
        os.link(whole, path)  # unlike rename, fails if the name is taken: a secret is never replaced
    except FileExistsError:
        pass
    finally:
        whole.unlink()
    _sync_directory(path.parent)


def _as_json(body: Mapping[str, Any]) -> str:
    return json.dumps(body, indent=2) + "\n"


def _write_aside(path: Path, text: str, *, mode: int) -> Path:
    aside = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(descriptor)
    return aside


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
