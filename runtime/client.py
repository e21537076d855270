"""A client of the V2 inference protocol over HTTP with JSON, which Triton, KServe and OpenVINO Model Server speak.

It talks to the address it is given and to no other: no proxy, no redirect to another host. What the server answers may
be anything: it is bounded in time, size and depth, and `floats` and `texts` take from it only what they name.
"""

from __future__ import annotations

import http.client
import json
import math
import socket
import threading
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import UserError

MAX_ANSWER_BYTES = 16 << 20
"""Of an answer whose size nobody knows; parsed, JSON of empty lists takes twenty times as much."""
MAX_RANK = 16
MAX_READY_BYTES = 1 << 20


@dataclass(frozen=True)
class Server:
    """`url` as http://host:port; `timeout_s` bounds one exchange, from the connection to the last byte."""

    url: str
    timeout_s: float = 30.0

    def ready(self, model: str | None = None) -> bool:
        """Whether the server, or one model of it, takes requests; False also where nothing listens."""
        path = "/v2/health/ready" if model is None else f"/v2/models/{urllib.parse.quote(model, safe='')}/ready"
        try:
            status, _ = self._exchange("GET", path, None)
        except OSError:
            return False
        return status == 200

    def wait_until_ready(self, models: Sequence[str], seconds: float) -> None:
        """UserError if the server and these models do not take requests within `seconds`."""
        deadline = time.monotonic() + seconds
        while not (self.ready() and all(self.ready(model) for model in models)):
            if time.monotonic() >= deadline:
                expected = f"a server ready within {seconds:g} s" if seconds else "a server that is ready"
                if not self.ready():
                    remedy = "start it, check the address, or wait for it (--wait)"
                    raise UserError(f"{self.url}: no server is ready there", expected, remedy)
                waiting = ", ".join(model for model in models if not self.ready(model))
                raise UserError(f"{self.url}: not ready: {waiting}", expected, "look at its log")
            time.sleep(min(0.5, max(0.0, deadline - time.monotonic())))

    def infer(
        self, model: str, body: Mapping[str, Any], version: int | None = None, limit: int = MAX_ANSWER_BYTES
    ) -> dict[str, dict[str, Any]]:
        """The outputs by name, as in the protocol: `datatype`, `shape`, `data`. UserError where the server refuses,
        with its reason, or answers with more than `limit` bytes."""
        name = urllib.parse.quote(model, safe="")
        path = f"/v2/models/{name}/infer" if version is None else f"/v2/models/{name}/versions/{version}/infer"
        try:
            status, answer = self._exchange("POST", path, json.dumps(body, allow_nan=False).encode(), limit)
        except OSError as error:
            raise UserError(
                f"{self.url}: {error.strerror or error}",
                "a server of the V2 protocol",
                "start it, or check the address",
            ) from error
        if status != 200:
            reason = answer.get("error", f"HTTP {status}") if isinstance(answer, dict) else f"HTTP {status}"
            raise UserError(f"{self.url} refuses {model!r}: {reason}", "an answer", "look at the server's log")
        try:
            return {str(output["name"]): dict(output) for output in answer["outputs"]}
        except (TypeError, KeyError) as error:
            raise UserError(
                f"{self.url}: an answer without outputs", "one of the V2 protocol", "ask another"
            ) from error

    def _exchange(self, method: str, path: str, body: bytes | None, limit: int = MAX_READY_BYTES) -> tuple[int, Any]:
        """Status and JSON of the answer, None where it is none. OSError where nobody answers in time."""
        host, port, prefix = self._address()
        late = threading.Event()
        connection: http.client.HTTPConnection | None = None
        try:
            connection = http.client.HTTPConnection(host, port, timeout=self.timeout_s)
            connection.connect()
            watch = threading.Timer(self.timeout_s, _cut, (connection.sock, late))
            watch.daemon = True
            watch.start()
            try:
                headers = {"Content-Type": "application/json"} if body is not None else {}
                connection.request(method, prefix + path, body, headers)
                with connection.getresponse() as response:
                    data = response.read(limit + 1)
            finally:
                watch.cancel()
        except (http.client.InvalidURL, UnicodeError) as error:  # a host or path that no request can carry
            raise self._no_address() from error
        except (OSError, http.client.HTTPException) as error:
            if late.is_set():
                raise OSError(f"no whole answer within {self.timeout_s:g} s") from error
            raise error if isinstance(error, OSError) else OSError(f"{type(error).__name__}: {error}") from error
        finally:
            if connection is not None:
                connection.close()
        if late.is_set():  # an answer without a length ends where it was cut
            raise OSError(f"no whole answer within {self.timeout_s:g} s")
        if len(data) > limit:
            raise OSError(f"an answer over {limit:,} bytes")
        try:
            return response.status, json.loads(data)
        except (ValueError, RecursionError):
            return response.status, None

    def _address(self) -> tuple[str, int, str]:
        """Host, port and path. UserError: the URL is of another form."""
        try:
            parts = urllib.parse.urlsplit(self.url)
            port = 80 if parts.port is None else parts.port
            if parts.scheme == "http" and parts.hostname and not parts.query and not parts.username:
                return parts.hostname, port, parts.path.rstrip("/")
        except ValueError:
            pass
        raise self._no_address()

    def _no_address(self) -> UserError:
        return UserError(self.url, "http://host:port", "write the server's address so")


def _cut(connected: socket.socket, late: threading.Event) -> None:
    """Ends an exchange that takes too long, however slowly its bytes come."""
    late.set()
    with suppress(OSError):
        connected.shutdown(socket.SHUT_RDWR)


def floats(output: Mapping[str, Any] | None) -> NDArray[np.float64] | None:
    """The values of an output, flat; None where they are not finite numbers, or not as many as its shape tells."""
    values = _flat(output)
    if values is None or not all(isinstance(value, (int, float)) for value in values):
        return None
    try:
        array = np.array(values, np.float64)
    except OverflowError:  # JSON has whole numbers of any length
        return None
    return array if bool(np.isfinite(array).all()) else None


def texts(output: Mapping[str, Any] | None) -> list[str] | None:
    """The texts of an output, flat; None where they are none, or not as many as its shape tells."""
    values = _flat(output)
    return None if values is None or not all(isinstance(value, str) for value in values) else values


def _flat(output: Mapping[str, Any] | None) -> list[Any] | None:
    """`data` as the protocol allows it, flat or nested by rows, of a shape of whole numbers."""
    if output is None or not isinstance(values := output.get("data"), list):
        return None
    shape = output.get("shape")
    if (
        not isinstance(shape, list)
        or len(shape) > MAX_RANK
        or not all(type(size) is int and size >= 0 for size in shape)
    ):
        return None
    for _ in range(len(shape) - 1):
        if not any(isinstance(row, list) for row in values):
            break
        if not all(isinstance(row, list) for row in values):
            return None
        values = [value for row in values for value in row]
    return values if len(values) == math.prod(shape) else None
