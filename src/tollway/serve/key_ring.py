"""The keys that wrap data keys, as the settings name them."""

from collections.abc import Callable, Mapping
from pathlib import Path

from tollway.control.secrets.aws_kms import AwsCredentials, KmsKey
from tollway.control.secrets.key_encryption import FileKey, KeyEncryptionKey, KeyRing, KeyUnavailable, derive_key
from tollway.control.secrets.vault_transit import TransitKey
from tollway.settings import KeyEncryptionSection, OperatorError

AWS_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


def make_key_ring(section: KeyEncryptionSection, vault_key: bytes, environ: Mapping[str, str], now: Callable[[], int]) -> KeyRing:
    """Return the ring of these settings. The key that is derived from `vault_key` is always known, so that an installation can leave it.

    Nothing is asked of Vault or KMS here: control starts without them. Raises OperatorError for settings with which no key can be had."""
    derived = derive_key(vault_key)
    others = (
        [derived] if section.previous_file is None else [derived, _read_key(section.previous_file, "control.key_encryption.previous_file")]
    )
    current: KeyEncryptionKey
    match section.provider:
        case "vault":
            current = _make_transit_key(section, environ)
        case "aws":
            current = _make_kms_key(section, environ, now)
        case _:
            current = derived if section.file is None else _read_key(section.file, "control.key_encryption.file")
    if section.provider != "file" and section.file is not None:
        others.append(_read_key(section.file, "control.key_encryption.file"))
    return KeyRing.of(current, others)


def _make_transit_key(section: KeyEncryptionSection, environ: Mapping[str, str]) -> TransitKey:
    url, key = _require(section.vault_url, "vault_url"), _require(section.vault_key, "vault_key")
    token_file = section.vault_token_file
    if token_file is None and not environ.get("TOLLWAY_VAULT_TOKEN"):
        raise OperatorError("control.key_encryption needs the token of Vault", hint="set TOLLWAY_VAULT_TOKEN, or vault_token_file")

    def find_token() -> str:
        if token_file is None:
            return environ["TOLLWAY_VAULT_TOKEN"]
        try:
            return Path(token_file).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise KeyUnavailable(f"the file of the token of Vault cannot be read ({type(error).__name__})") from None

    return TransitKey(url, section.vault_mount, key, find_token, namespace=section.vault_namespace, timeout_seconds=section.timeout_seconds)


def _make_kms_key(section: KeyEncryptionSection, environ: Mapping[str, str], now: Callable[[], int]) -> KmsKey:
    key, region = _require(section.aws_key, "aws_key"), _require(section.aws_region, "aws_region")
    access_key_id, secret_access_key, session_token = (environ.get(name) for name in AWS_VARIABLES)
    if not access_key_id or not secret_access_key:
        raise OperatorError("control.key_encryption needs credentials of AWS", hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    credentials = AwsCredentials(access_key_id, secret_access_key, session_token or None)
    return KmsKey(key, region, lambda: credentials, endpoint=section.aws_endpoint, now=now, timeout_seconds=section.timeout_seconds)


def _require(value: str | None, name: str) -> str:
    if not value:
        raise OperatorError(f"control.key_encryption.{name} is missing for this provider")
    return value


def _read_key(path: str, name: str) -> FileKey:
    try:
        return FileKey(bytes.fromhex(Path(path).read_text().strip()))
    except (OSError, UnicodeDecodeError) as error:
        raise OperatorError(f"{name}: {path} cannot be read ({type(error).__name__})") from None
    except ValueError:
        raise OperatorError(f"{name}: {path} must hold 64 hexadecimal digits", hint="openssl rand -hex 32") from None
