"""Receivers of webhooks for tests: an HTTP server that keeps what it was sent, and answers as it is told."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec
from standardwebhooks import Webhook

from tests.patience import PATIENCE_SECONDS

Sent = tuple[dict[str, str], bytes]


@dataclass(slots=True)
class Receiver:
    """A receiver at `url`. `answer`: returns the status for the event of a request; it may block. `sent`: headers and body of each request,
    in order of their arrival."""

    url: str = ""
    answer: Callable[[dict[str, Any]], int] = lambda _event: 204
    sent: list[Sent] = field(default_factory=list)

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events that arrived."""
        return [msgspec.json.decode(body) for _, body in self.sent]

    def verify(self, secret: str) -> None:
        """Fail unless each request is signed with a secret, as the library of Standard Webhooks sees it."""
        for headers, body in self.sent:
            Webhook(secret).verify(body, headers)


@contextmanager
def receiving(answer: Callable[[dict[str, Any]], int] = lambda _event: 204) -> Iterator[Receiver]:
    """A receiver on loopback, for the length of the block."""
    receiver = Receiver(answer=answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            receiver.sent.append(({name.lower(): value for name, value in self.headers.items()}, body))
            status = receiver.answer(msgspec.json.decode(body))
            self.send_response(status)
            if status == 302:
                self.send_header("location", "http://127.0.0.1:1/elsewhere")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_arguments: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    receiver.url = f"http://127.0.0.1:{server.server_port}/events"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield receiver
    server.shutdown()
    server.server_close()
    thread.join(PATIENCE_SECONDS)
