"""The client of the V2 protocol against a small HTTP server of the test: refusals, odd answers, and no redirects."""

from __future__ import annotations

import json
import math
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from runtime.client import Server, floats, texts
from runtime.errors import UserError

ANSWERS: dict[str, tuple[int, bytes]] = {
    "/v2/health/ready": (200, b""),
    "/v2/models/good/ready": (200, b""),
    "/v2/models/good/infer": (200, json.dumps({"outputs": [{"name": "y", "shape": [1], "data": [2.5]}]}).encode()),
    "/v2/models/good/versions/2/infer": (200, b'{"outputs": []}'),
    "/v2/models/a%2F..%2Fb/infer": (400, b'{"error": "shape of input x is wrong"}'),
    "/v2/models/odd/infer": (200, b"[1"),
    "/v2/models/empty/infer": (200, b"{}"),
    "/v2/models/moved/infer": (302, b""),
    "/v2/models/deep/infer": (200, b"[" * 100_000),
    "/v2/models/text/infer": (200, b'{"outputs": ["name"]}'),
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
        ("deep", "an answer without outputs"),
        ("text", "an answer without outputs"),
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
    for url in (
        *("localhost:8000", "https://x", "http://", "http://u:p@h", "http://h:port", "http://h?x=1"),
        *("http://[::1", "http://" + "h" * 80, "http://h h"),
    ):
        with pytest.raises(UserError, match="http://host:port; write the server's address so"):
            Server(url).infer("net", {})
    with pytest.raises(UserError, match="a server of the V2 protocol; start it"):
        Server("http://127.0.0.1:9").infer("net", {})


@contextmanager
def raw_server(*pieces: bytes, pause_s: float = 0.0) -> Iterator[str]:
    """Answers one connection with these bytes, one after the other; its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            connection, _ = listening.accept()
            with connection, suppress(OSError):
                connection.recv(1 << 16)
                for piece in pieces:
                    connection.sendall(piece)
                    time.sleep(pause_s)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(1 << 16):  # closed on unread bytes, it would be a reset
                    pass

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            thread.join(10)
            assert not thread.is_alive()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"


@pytest.mark.parametrize("start", [HEAD, b"HTTP/1.1 200 OK\r\n", b""], ids=["body", "headers", "status"])
def test_a_server_that_never_ends_is_left_in_time(start: bytes) -> None:
    """Every byte comes well within the time of one read."""
    pieces = [start, *[b"x"] * 40]
    with raw_server(*pieces, pause_s=0.05) as url:
        began = time.monotonic()
        with pytest.raises(UserError, match=r"no whole answer within 0\.3 s; a server of the V2 protocol"):
            Server(url, timeout_s=0.3).infer("net", {})
        assert time.monotonic() - began < 1.5


def test_an_answer_that_is_too_long() -> None:
    with (
        raw_server(HEAD + b" " * (2 << 20)) as url,
        pytest.raises(UserError, match="an answer over 1,048,576 bytes") as caught,
    ):
        Server(url, timeout_s=5).infer("net", {}, limit=1 << 20)
    assert caught.value.remedy == "start it, or check the address"


def test_values_are_taken_flat_or_nested_and_only_numbers() -> None:
    def told(data: Any, shape: Any) -> dict[str, Any]:
        return {"name": "y", "datatype": "FP32", "shape": shape, "data": data}

    given: list[Any] = [[1, 2.5, 3, 4], [[1, 2.5], [3, 4]]]
    for right in given:
        values = floats(told(right, [2, 2]))
        assert values is not None and values.tolist() == [1.0, 2.5, 3.0, 4.0]
    wrong: list[tuple[Any, Any]] = [
        ([1, 2, 3], [2, 2]), ([[1, 2], 3], [2, 2]), (["1", 2, 3, 4], [4]), ([math.nan], [1]), ([math.inf], [1]),
        ([10**400], [1]), ("1", [1]), ({"0": 1}, [1]), (None, [1]), ([1], "1"), ([1], None), ([], [True]), ([1], [-1]),
        ([[[1]]], [1, 1]), ([1], [1] * 17),
    ]  # fmt: skip
    for data, shape in wrong:
        assert floats(told(data, shape)) is None, (data, shape)
    assert texts(told([["a"], ["b"]], [2, 1])) == ["a", "b"]
    assert texts(told(["a", 1], [2])) is None and texts(None) is None and floats({}) is None
