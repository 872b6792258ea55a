"""An engine that answers whatever a test wants."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.patience import PATIENCE_SECONDS


@dataclass
class Stub:
    """An engine that answers whatever a test wants: the page, its status and further headers. `asked`: heads of requests. `bodies`: those
    of a POST."""

    page: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    silence: threading.Event = field(default_factory=threading.Event)
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    url: str = ""

    def counts(self, prompt: int, output: int) -> None:
        self.page = f"vllm:prompt_tokens_total 0{prompt}\nvllm:generation_tokens_total {output}.0\n".encode()


@contextmanager
def stub() -> Iterator[Stub]:
    made = Stub()
    made.silence.set()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
            made.silence.wait(PATIENCE_SECONDS)
            try:
                self.send_response(made.status)
                for name, value in made.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(made.page)
            except ConnectionError:
                pass  # whoever asked had enough

        def do_POST(self) -> None:
            made.bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.do_GET()

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    made.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield made
    finally:
        made.silence.set()
        server.shutdown()
        server.server_close()
        thread.join(PATIENCE_SECONDS)
