"""Clients of a running server, one request at a time or many at once."""

from __future__ import annotations

import http.client
import json
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.server.tritonserver import Running

Floats = NDArray[np.float32]
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Question:
    """What is sent to which model, and which outputs make up the answer: one column after the other, class names as
    numbers.
    """

    model: str
    input: str = "input"
    datatype: str = "FP32"
    outputs: tuple[str, ...] = ("logits",)

    def columns(self, values: Mapping[str, Any], rows: int) -> Floats:
        """(rows, ...) float32 of the outputs by name."""
        return np.concatenate([np.array(values[name]).astype(np.float32).reshape(rows, -1) for name in self.outputs], 1)


def http_infer(server: Running, model: str, x: Floats, version: int | None) -> Floats:
    body = {"inputs": [{"name": "input", "shape": list(x.shape), "datatype": "FP32", "data": x.ravel().tolist()}]}
    output = server.infer(model, body, version)["logits"]
    return np.array(output["data"], np.float32).reshape(output["shape"])


def grpc_infer(server: Running, model: str, x: Floats, version: int | None) -> Floats:
    import tritonclient.grpc as client

    with client.InferenceServerClient(f"127.0.0.1:{server.grpc}") as connection:
        return _ask_grpc(client, connection, Question(model), x, version)


def _ask_grpc(client: Any, connection: Any, question: Question, x: Any, version: int | None = None) -> Floats:
    tensor = client.InferInput(question.input, x.shape, question.datatype)
    tensor.set_data_from_numpy(x)
    named = "" if version is None else str(version)
    answer = connection.infer(question.model, [tensor], model_version=named, client_timeout=30)
    return question.columns({name: answer.as_numpy(name) for name in question.outputs}, len(x))


@dataclass(frozen=True)
class Told:
    """What a load saw: right answers, by client and by which of the accepted values it was; wrong ones; errors."""

    answers: int
    by_client: tuple[int, ...]
    by_release: Counter[int]
    last_release: int | None
    wrong: int
    errors: list[str]


class Load:
    """Clients that ask without a pause and compare every answer with what `accepted` holds for its rows.

    `x` (N, ...) are the images, `accepted` the answers (N, columns) of each release that may answer.
    """

    def __init__(self, server: Running, question: Question, x: Any, accepted: Sequence[Floats]) -> None:
        self.server, self.question, self.x, self.accepted = server, question, x, accepted
        self.stopped = threading.Event()
        self.lock = threading.Lock()
        self.threads: list[threading.Thread] = []
        self.by_client: list[int] = []
        self.by_release: Counter[int] = Counter()
        self.last_release: int | None = None
        self.wrong, self.errors = 0, list[str]()

    def start(self, *, http: int, grpc: int) -> None:
        for number in range(http + grpc):
            ask = self._http if number < http else self._grpc
            self.by_client.append(0)
            self.threads.append(threading.Thread(target=self._guarded, args=(ask, number)))
        for thread in self.threads:
            thread.start()

    def stop(self) -> Told:
        self.stopped.set()
        for number, thread in enumerate(self.threads):
            thread.join(60)
            if thread.is_alive():
                self.errors.append(f"client {number}: no answer")
        answers = sum(self.by_client)
        return Told(answers, tuple(self.by_client), self.by_release, self.last_release, self.wrong, self.errors)

    def _guarded(self, ask: Any, number: int) -> None:
        try:
            ask(number)
        except Exception as error:  # every kind of failure counts
            with self.lock:
                self.errors.append(f"client {number}: {type(error).__name__}: {error}")

    def _http(self, number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.http, timeout=30)
        draw = np.random.default_rng(number)
        try:
            while not self.stopped.is_set():
                rows = self._rows(draw)
                x = self.x[rows]
                tensor = {"name": self.question.input, "shape": list(x.shape), "datatype": self.question.datatype}
                body = json.dumps({"inputs": [{**tensor, "data": x.ravel().tolist()}]})
                connection.request("POST", f"/v2/models/{self.question.model}/infer", body)
                response = connection.getresponse()
                told = json.loads(response.read())
                assert response.status == 200, told
                values = {output["name"]: output["data"] for output in told["outputs"]}
                self._judge(number, rows, self.question.columns(values, len(rows)))
        finally:
            connection.close()

    def _grpc(self, number: int) -> None:
        import tritonclient.grpc as client

        draw = np.random.default_rng(number)
        with client.InferenceServerClient(f"127.0.0.1:{self.server.grpc}") as connection:
            while not self.stopped.is_set():
                rows = self._rows(draw)
                self._judge(number, rows, _ask_grpc(client, connection, self.question, self.x[rows]))

    def _rows(self, draw: np.random.Generator) -> NDArray[np.int64]:
        return draw.integers(0, len(self.x), int(draw.integers(1, 5)))

    def _judge(self, number: int, rows: NDArray[np.int64], got: Floats) -> None:
        for release, logits in enumerate(self.accepted):
            wanted = logits[rows]
            if got.shape == wanted.shape and float(np.abs(got - wanted).max()) <= TOLERANCE * float(
                1 + np.abs(wanted).max()
            ):
                with self.lock:
                    self.by_client[number] += 1
                    self.by_release[release] += 1
                    self.last_release = release
                return
        with self.lock:
            self.wrong += 1
