"""A stand-in for VIES on loopback: the wire of its REST API, with answers as the register gives them."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FOUND = {"name": "CLIENT\nSA", "address": "RUE 3\n75001 PARIS"}
HIDDEN = {"name": "---", "address": "---"}
"""Names of a state that gives none."""


@dataclass
class ViesServer:
    """`valid`: whether numbers are. `error`: the code of what goes wrong; empty for nothing. `raw`: sent in place of an answer.
    `asked`: bodies of the requests."""

    valid: bool = True
    error: str = ""
    raw: bytes = b""
    trader: dict[str, str] = field(default_factory=lambda: dict(FOUND))
    asked: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""

    def answer(self, body: dict[str, Any]) -> bytes:
        """Return the answer to a look-up."""
        self.asked.append(body)
        if self.raw:
            return self.raw
        if self.error:
            return json.dumps({"actionSucceed": False, "errorWrappers": [{"error": self.error}]}).encode()
        number = {"countryCode": body["countryCode"], "vatNumber": body["vatNumber"], "requestDate": "2026-10-03T21:02:05.000Z"}
        consultation = "WAPIAAAAaEDkvhHx" if self.valid and "requesterNumber" in body else ""
        return json.dumps(
            {**number, "valid": self.valid, "requestIdentifier": consultation, **(self.trader if self.valid else HIDDEN)}
        ).encode()


@contextmanager
def vies_server() -> Iterator[ViesServer]:
    """Serve the stand-in for the length of the block."""
    register = ViesServer()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            assert self.path == "/rest-api/check-vat-number"
            answer = register.answer(body)
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        register.url = f"http://127.0.0.1:{server.server_port}/rest-api"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield register
        finally:
            server.shutdown()
            thread.join()
