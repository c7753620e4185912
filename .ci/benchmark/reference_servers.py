"""The two servers the fake is measured against: `reference_servers.py bare|stock PORT`.

bare   the least a thread per connection can do in Python: read, parse JSON, answer.
stock  `http.server` as people write it from the documentation.

Neither stores anything, checks credentials or looks at the path.
"""

# ruff: noqa: D101, D102, D103 - a script that nobody imports

from __future__ import annotations

import json
import sys
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import BaseRequestHandler, StreamRequestHandler

BODY = b"{}"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n" + BODY
LENGTH = b"content-length:"


class BareHandler(StreamRequestHandler):
    """Reads a head line by line and a body by its length; answers in one send."""

    disable_nagle_algorithm = True

    def handle(self) -> None:
        while self.rfile.readline():
            length = self.read_headers()
            if length:
                json.loads(self.rfile.read(length))
            self.request.sendall(ANSWER)

    def read_headers(self) -> int:
        length = 0
        while (line := self.rfile.readline()) not in (b"\r\n", b""):
            if line[: len(LENGTH)].lower() == LENGTH:
                length = int(line[len(LENGTH) :])
        return length


class StockHandler(BaseHTTPRequestHandler):
    """No tuning at all, apart from keep-alive, which the measurement needs."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer()

    def do_PUT(self) -> None:
        self.read_json()
        self.answer()

    def do_POST(self) -> None:
        self.read_json()
        self.answer()

    def read_json(self) -> None:
        json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def answer(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: a line on the terminal per request would be what is measured."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # the default of 5 drops connections when 64 come at once

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: the load generator cuts its connections when its time is up."""


HANDLERS: dict[str, type[BaseRequestHandler]] = {
    "bare": BareHandler,
    "stock": StockHandler,
}


def main() -> None:
    kind, port = sys.argv[1:]
    with suppress(KeyboardInterrupt):
        Server(("127.0.0.1", int(port)), HANDLERS[kind]).serve_forever()


if __name__ == "__main__":
    main()
