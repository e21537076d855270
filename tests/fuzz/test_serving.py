"""What `demport ask` reads is anybody's: recorded bodies, images, and the answers of a server, whole or cut.

A few hundred inputs each in the default tier, 10,000 each in the slow tier.
"""

from __future__ import annotations

import hashlib
import io
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from export.serving.recorded import REQUEST, RESPONSE, RecordedTensor, read_recorded
from export.serving.release_index import ImageInput, Index, PublishedModel
from pipeline.commands.ask import difference, load_image
from runtime.client import Server, floats, texts
from tests.fuzz.damage import damaged, damaged_bytes
from tests.fuzz.watch import FEW, MANY, attempts, calmly

MODEL = PublishedModel(name="net", platform="onnxruntime_onnx", max_batch_size=1, sha256={})
WANTED = ImageInput(height=8, width=8, channels=3, dtype="uint8", high=255.0)
LOGITS = {"name": "logits", "datatype": "FP32", "shape": [1, 3], "data": [0.5, -2.0, 1]}
NAME = {"name": "class", "datatype": "BYTES", "shape": [1, 1], "data": ["seven"]}
ANSWER = {"model_name": "net", "model_version": "2", "outputs": [LOGITS, NAME]}
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"
LENGTH = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"


@contextmanager
def answering() -> Iterator[tuple[str, Callable[[bytes], None]]]:
    """A socket that answers every connection with the bytes that were set last, and closes; its address."""
    current = [b""]
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                connection, _ = listening.accept()
                with connection, suppress(OSError):
                    request = connection.recv(1 << 16)
                    if not request:
                        return
                    connection.sendall(current[0])
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(1 << 16):
                        pass

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{listening.getsockname()[1]}", lambda data: current.__setitem__(0, data)
        finally:
            socket.create_connection(listening.getsockname()).close()
            thread.join(10)


def fuzz_answers(count: int) -> int:
    """Damaged bodies, and damaged exchanges as they come over the wire."""
    wanted = RecordedTensor(**LOGITS)  # type: ignore[arg-type]  # values of several types
    body = json.dumps(ANSWER).encode()
    wire = st.one_of(damaged(ANSWER).map(lambda data: HEAD + data), damaged_bytes(LENGTH % (len(body), body)))
    with answering() as (address, tell):
        port = int(address.split(":")[1])

        def read() -> None:
            outputs = Server(f"http://{address}", timeout_s=5).infer("net", {"inputs": []})
            for output in outputs.values():
                values, names = floats(output), texts(output)
                assert values is None or names is None or not values.size
                assert difference(wanted, output) >= 0

        def attempt(data: bytes) -> bool:
            tell(data)
            return calmly(read, inside=f"('127.0.0.1', {port})")

        return attempts(wire, count, attempt)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def fuzz_recorded(folder: Path, count: int) -> int:
    """Damaged bodies in a folder whose index has their hash, as somebody who tampers would make it."""
    (folder / "net").mkdir(parents=True)
    request = json.dumps({"inputs": [LOGITS]}).encode()
    (folder / "net" / REQUEST).write_bytes(request)

    def read(index: Index) -> None:
        body, outputs = read_recorded(folder, index, "net")
        json.dumps(body, allow_nan=False)
        assert all(difference(output, dict(LOGITS)) >= 0 for output in outputs)

    def attempt(data: bytes) -> bool:
        (folder / "net" / RESPONSE).write_bytes(data)
        files = {f"net/{REQUEST}": digest(request), f"net/{RESPONSE}": digest(data)}
        index = Index(kind="triton", serial=1, models=[MODEL], files=files, schema=1)
        return calmly(lambda: read(index))

    return attempts(damaged({"model_name": "net", "outputs": [LOGITS, NAME]}), count, attempt)


def pictures() -> st.SearchStrategy[bytes]:
    """Damaged PNGs and JPEGs of every kind of pixel."""
    drawn = np.random.default_rng(0).integers(0, 256, (9, 7, 4), np.uint8)
    found = []
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        grey = Image.fromarray(drawn[:, :, 0].astype(np.uint16) * 257) if mode == "I;16" else None
        image = grey or Image.fromarray(drawn).convert(mode)
        for kind in ("PNG", "JPEG") if mode in ("L", "RGB") else ("PNG",):
            buffer = io.BytesIO()
            image.save(buffer, kind)
            found.append(buffer.getvalue())
    return st.sampled_from(found).flatmap(damaged_bytes)


def fuzz_images(folder: Path, count: int) -> int:
    path = folder / "x.png"

    def read() -> None:
        array = load_image(path, WANTED)
        assert array.shape == (8, 8, 3) and array.dtype == np.uint8

    def attempt(data: bytes) -> bool:
        path.write_bytes(data)
        return calmly(read)

    return attempts(pictures(), count, attempt)


FUZZ: dict[str, Callable[[Path, int], int]] = {
    "answers": lambda folder, count: fuzz_answers(count),
    "recorded": fuzz_recorded,
    "images": fuzz_images,
}


@pytest.mark.parametrize("what", FUZZ)
def test_a_few_damaged_ones(what: str, tmp_path: Path, audit: None) -> None:
    good = FUZZ[what](tmp_path / what if what == "recorded" else tmp_path, FEW)
    assert 0 <= good < FEW
    assert threading.active_count() < 8


@pytest.mark.slow
@pytest.mark.parametrize("what", FUZZ)
def test_ten_thousand_damaged_ones(what: str, tmp_path: Path, audit: None) -> None:
    good = FUZZ[what](tmp_path / what if what == "recorded" else tmp_path, MANY)
    assert 0 < good < MANY * 0.9
    assert threading.active_count() < 8


def test_the_whole_ones_are_read(tmp_path: Path, audit: None) -> None:
    """The fuzz would be worth nothing if nothing could be read."""
    body = json.dumps(ANSWER).encode()
    with answering() as (address, tell):
        for data in (HEAD + body, LENGTH % (len(body), body)):
            tell(data)
            outputs = Server(f"http://{address}").infer("net", {})
            assert difference(RecordedTensor(**LOGITS), outputs["logits"]) == 0.0  # type: ignore[arg-type]
            assert texts(outputs["class"]) == ["seven"]
    Image.new("RGB", (3, 3), (9, 8, 7)).save(tmp_path / "x.png")
    assert load_image(tmp_path / "x.png", WANTED)[4, 4].tolist() == [9, 8, 7]
