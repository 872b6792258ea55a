"""TLS of the public listener, for gateways without a TLS proxy in front.

A new certificate is loaded with a new process (SIGHUP to `tollway serve`)."""

import ssl
from pathlib import Path

from tollway.settings import OperatorError

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
