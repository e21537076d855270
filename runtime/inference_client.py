"""A client of the V2 inference protocol over HTTP with JSON, which Triton, KServe and OpenVINO Model Server speak.

It talks to the address it is given and to no other: no proxy, no redirect to another host.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runtime.errors import UserError

MAX_ANSWER_BYTES = 256 << 20


@dataclass(frozen=True)
class Server:
    """`url` as http://host:port; `timeout_s` bounds one exchange."""

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
                waiting = [model for model in models if not self.ready(model)]
                found = f"not ready: {', '.join(waiting)}" if self.ready() else "no server is ready there"
                raise UserError(f"{self.url}: {found}", f"a server ready within {seconds:g} s", "look at its log")
            time.sleep(min(0.5, max(0.0, deadline - time.monotonic())))

    def infer(self, model: str, body: Mapping[str, Any], version: int | None = None) -> dict[str, dict[str, Any]]:
        """The outputs by name, as in the protocol: `datatype`, `shape`, `data`. UserError where the server refuses,
        with its reason."""
        name = urllib.parse.quote(model, safe="")
        path = f"/v2/models/{name}/infer" if version is None else f"/v2/models/{name}/versions/{version}/infer"
        try:
            status, answer = self._exchange("POST", path, json.dumps(body, allow_nan=False).encode())
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

    def _exchange(self, method: str, path: str, body: bytes | None) -> tuple[int, Any]:
        """Status and JSON of the answer, None where it is none. OSError where nobody answers."""
        parts = urllib.parse.urlsplit(self.url)
        try:
            port = 80 if parts.port is None else parts.port
        except ValueError:
            port = None
        if port is None or parts.scheme != "http" or not parts.hostname or parts.query or parts.username:
            raise UserError(self.url, "http://host:port", "write the server's address so")
        connection = http.client.HTTPConnection(parts.hostname, port, timeout=self.timeout_s)
        try:
            headers = {"Content-Type": "application/json"} if body is not None else {}
            connection.request(method, parts.path.rstrip("/") + path, body, headers)
            response = connection.getresponse()
            data = response.read(MAX_ANSWER_BYTES)
        except (TimeoutError, http.client.HTTPException) as error:
            raise OSError(f"{type(error).__name__}: {error}") from error
        finally:
            connection.close()
        try:
            return response.status, json.loads(data)
        except ValueError:
            return response.status, None
