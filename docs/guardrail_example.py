"""A guardrail in the smallest form that keeps the contract of docs/guardrails.md: it denies what holds a forbidden word.

Run it with `python docs/guardrail_example.py 8090 secret-word`. It uses the standard library alone.
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def list_texts(value: Any) -> list[str]:
    """Return every text in a document, however deep."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [text for each in value for text in list_texts(each)] if isinstance(value, list) else []


def check(document: dict[str, Any], words: list[str]) -> dict[str, str]:
    """Return the verdict on one document. In a stream a word may be cut in two, so the window before is read again, and its pieces are
    joined in order."""
    if document["stage"] == "stream":
        checked = [*document["previous_events"], *document["events"]]
        text = "".join(
            part
            for event in checked
            for part in list_texts([choice.get("delta") for choice in event.get("choices", [])] or event.get("delta") or event)
        )
    else:
        text = "\n".join(list_texts(document[document["stage"]]))
    found = [word for word in words if word in text]
    return {"action": "deny", "reason": "It holds a forbidden word."} if found else {"action": "allow"}


def serve(port: int, words: list[str]) -> ThreadingHTTPServer:
    """Return a server on loopback; `serve_forever` runs it."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            """Answer one document."""
            document = json.loads(self.rfile.read(int(self.headers["content-length"])))
            body = json.dumps(check(document, words)).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            """Write nothing: what is checked belongs into no log."""

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2:]).serve_forever()
