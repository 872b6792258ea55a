"""TLS of the public listener, for gateways without a TLS proxy in front, and what it asks clients for.

A new certificate is loaded with a new process (SIGHUP to `tollway serve`)."""

import asyncio
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path

from cryptography import x509

from tollway.gateway.directory import Directory
from tollway.settings import OperatorError
from tollway.worker_threads import run_in_thread

WATCH_SECONDS = 0.5
"""Interval at which the certificates that are trusted are looked at. One that is not trusted any more is refused at its next request in any
case; this is how long a new one waits."""

_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Cipher suites of TLS 1.2: forward secrecy and authenticated encryption only (RFC 9325 section 4.2). TLS 1.3 has no others."""


def server_context(certificate_file: str | None, key_file: str | None) -> ssl.SSLContext | None:
    """TLS 1.2 or later, HTTP/1.1 by ALPN; None if neither file is given. `certificate_file` holds the chain, leaf first; both are PEM.

    Raises OperatorError for whatever is wrong with the files; a key with a passphrase is refused, because nobody is there to type it.
    """
    if certificate_file is None and key_file is None:
        return None
    if certificate_file is None or key_file is None:
        raise OperatorError("gateway.tls needs both certificate_file and key_file", exit_code=2)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_ciphers(_CIPHERS)
    context.set_alpn_protocols(["http/1.1"])
    for file in (certificate_file, key_file):
        try:
            Path(file).read_bytes()
        except OSError as error:
            raise OperatorError(f"cannot read {file}: {error.strerror}", hint="see gateway.tls in the settings") from None
    try:
        context.load_cert_chain(certificate_file, key_file, password=b"")
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error)
        raise OperatorError(
            f"{certificate_file} and {key_file} are no certificate chain with its key: {reason}",
            hint="PEM, the server's certificate first, the key without a passphrase",
        ) from None
    return context


def find_expiry(certificate_file: str | None) -> int | None:
    """Return when the first certificate of a chain (PEM) expires that does, in Unix seconds; None without a file. Raises OperatorError."""
    if certificate_file is None:
        return None
    try:
        chain = x509.load_pem_x509_certificates(Path(certificate_file).read_bytes())
    except OSError as error:
        raise OperatorError(f"cannot read {certificate_file}: {error.strerror}", hint="see gateway.tls in the settings") from None
    except ValueError:
        raise OperatorError(f"{certificate_file} is no certificate chain in PEM", hint="see gateway.tls in the settings") from None
    return int(min(each.not_valid_after_utc for each in chain).timestamp())


def client_context(context: ssl.SSLContext, make: Callable[[], ssl.SSLContext | None], trusted: Sequence[bytes]) -> ssl.SSLContext:
    """Return a context as `context`, which is made anew by `make`, that asks clients for a certificate: one of `trusted` (DER), or one that
    they issued. A client without one is served; one with another is refused by the handshake. Without anybody to trust it asks for none."""
    if not trusted:
        return context
    asking = make() or context
    asking.verify_mode = ssl.CERT_OPTIONAL
    asking.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # what an organization uploads is trusted, whoever issued it
    asking.load_verify_locations(cadata=b"".join(sorted(set(trusted))))
    return asking


class ClientTrust:
    """The context of new connections: another one once the certificates that organizations trust have changed."""

    def __init__(self, context: ssl.SSLContext, make: Callable[[], ssl.SSLContext | None], directory: Directory) -> None:
        """`context`: that of a listener which asks for nothing; `make` makes another one of the same files."""
        self._plain = self._context = context
        self._make = make
        self._directory = directory
        self._version = -1

    def find_context(self) -> ssl.SSLContext:
        """Return the context of a new connection."""
        return self._context

    async def run(self) -> None:
        """Follow the snapshot."""
        while True:
            await self.follow()
            await asyncio.sleep(WATCH_SECONDS)

    async def follow(self) -> None:
        """Make the context of what the snapshot holds, in a thread: thousands of certificates take longer than a request may wait."""
        version = self._directory.certificates_version
        if version != self._version:
            trusted = self._directory.list_certificates()
            self._context = await run_in_thread(client_context, self._plain, self._make, trusted)
            self._version = version
