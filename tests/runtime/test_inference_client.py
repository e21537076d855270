"""The client of the V2 protocol against a small HTTP server of the test: refusals, odd answers, and no redirects."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from runtime.errors import UserError
from runtime.inference_client import Server

ANSWERS: dict[str, tuple[int, bytes]] = {
    "/v2/health/ready": (200, b""),
    "/v2/models/good/ready": (200, b""),
    "/v2/models/good/infer": (200, json.dumps({"outputs": [{"name": "y", "shape": [1], "data": [2.5]}]}).encode()),
    "/v2/models/good/versions/2/infer": (200, b'{"outputs": []}'),
    "/v2/models/a%2F..%2Fb/infer": (400, b'{"error": "shape of input x is wrong"}'),
    "/v2/models/odd/infer": (200, b"[1"),
    "/v2/models/empty/infer": (200, b"{}"),
    "/v2/models/moved/infer": (302, b""),
}


class Handler(BaseHTTPRequestHandler):
    seen: list[tuple[str, Any]] = []  # noqa: RUF012  (one list for all requests of a test)

    def do_GET(self) -> None:
        self.answer(None)

    def do_POST(self) -> None:
        self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def answer(self, body: Any) -> None:
        self.seen.append((self.path, body))
        status, data = ANSWERS.get(self.path, (404, b""))
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "http://127.0.0.1:9/elsewhere")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        Handler.seen.clear()
        yield Server(f"http://127.0.0.1:{listening.server_port}", timeout_s=5)
        listening.shutdown()
        thread.join()


def test_requests_and_answers(server: Server) -> None:
    assert server.infer("good", {"inputs": [1]})["y"]["data"] == [2.5]
    assert server.infer("good", {}, version=2) == {}
    assert Handler.seen == [("/v2/models/good/infer", {"inputs": [1]}), ("/v2/models/good/versions/2/infer", {})]
    assert server.ready() and server.ready("good") and not server.ready("bad")


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("a/../b", "refuses 'a/../b': shape of input x is wrong"),
        ("absent", "refuses 'absent': HTTP 404"),
        ("moved", "refuses 'moved': HTTP 302"),
        ("odd", "an answer without outputs"),
        ("empty", "an answer without outputs"),
    ],
)
def test_refusals_are_told_with_the_servers_reason(server: Server, model: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        server.infer(model, {})
    assert len(Handler.seen) == 1  # nothing was followed


def test_waiting(server: Server) -> None:
    server.wait_until_ready(["good"], 0)
    with pytest.raises(UserError, match=r"not ready: slow; a server ready within 0\.05 s"):
        server.wait_until_ready(["good", "slow"], 0.05)
    with pytest.raises(UserError, match="no server is ready there"):
        Server("http://127.0.0.1:9").wait_until_ready([], 0)
    assert not Server("http://127.0.0.1:9").ready()


def test_an_address_that_is_none() -> None:
    for url in ("localhost:8000", "https://x", "http://", "http://u:p@h", "http://h:port", "http://h?x=1"):
        with pytest.raises(UserError, match="http://host:port; write the server's address so"):
            Server(url).infer("net", {})
    with pytest.raises(UserError, match="a server of the V2 protocol; start it"):
        Server("http://127.0.0.1:9").infer("net", {})
