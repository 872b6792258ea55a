"""Certificates that sign themselves, for listeners and engines that speak TLS."""

import datetime
import ssl
from pathlib import Path
from tempfile import TemporaryDirectory

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

PEM = serialization.Encoding.PEM
PRIVATE = serialization.PrivateFormat.PKCS8


def make(directory: Path, name: str, *, days: int = 1) -> tuple[str, str]:
    """A certificate for `name`, valid from two days ago until in so many days, and its key: chain.pem and key.pem (and locked.pem, the
    key with a passphrase)."""
    directory.mkdir(exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=2))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (directory / "chain.pem").write_bytes(certificate.public_bytes(PEM))
    (directory / "key.pem").write_bytes(key.private_bytes(PEM, PRIVATE, serialization.NoEncryption()))
    (directory / "locked.pem").write_bytes(key.private_bytes(PEM, PRIVATE, serialization.BestAvailableEncryption(b"secret")))
    return str(directory / "chain.pem"), str(directory / "key.pem")


def make_pem(name: str) -> str:
    """Return a certificate for `name` as PEM, whose key is forgotten."""
    with TemporaryDirectory() as directory:
        chain, _ = make(Path(directory), name)
        return Path(chain).read_text()


def server_side(files: tuple[str, str]) -> ssl.SSLContext:
    """For whoever answers with this certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)
    return context
