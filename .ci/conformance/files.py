"""The files that the API fetches, served from here."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Dict, Iterator, Tuple

#: What a row calls a file, and its type and content.
FILES: Dict[str, Tuple[str, str]] = {
    "people_csv": ("text/csv", "id,email,plan\nlin,lin@example.com,pro\n"),
    "event_csv": ("text/csv", "email,name,total\nada@example.com,order_placed,7\n"),
    "object_csv": ("text/csv", "object_id,name\nglobex,Globex\n"),
    "relationship_csv": ("text/csv", "id,object_id,role\nada,acme,buyer\n"),
    "rows_json": ("application/json", '[{"name": "Rome"}, {"name": "Siena"}]'),
    "people_jsonl": ("text/plain", '{"id": "ada", "data": {"product": "Gloves"}}\n'),
}


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        """Serve a file by its name."""
        kind, text = FILES.get(self.path[1:], ("", ""))
        body = text.encode()
        self.send_response(200 if kind else 404)
        self.send_header("Content-Type", kind or "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def served() -> Iterator[Dict[str, str]]:
    """Serve the files; gives the URL of each."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield {name: f"http://127.0.0.1:{server.server_port}/{name}" for name in FILES}
    finally:
        server.shutdown()
        server.server_close()
