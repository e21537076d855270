"""`demport ask` without a server at hand: images as a model takes them, how answers are compared, what is refused."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from export.serving.recorded import _KIND, Exchange, RecordedTensor, write_recorded
from export.serving.release_index import ImageInput, PublishedModel, read_index, write_index
from pipeline import cli
from pipeline.commands import ask as asking
from runtime.errors import UserError
from tests.scripted_server import scripted


def wanted(channels: int = 1, dtype: Any = "uint8", high: float = 16.0) -> ImageInput:
    return ImageInput(height=8, width=8, channels=channels, dtype=dtype, high=high)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """Red on the left, white on the right, 16x16."""
    pixels = np.full((16, 16, 3), 255, np.uint8)
    pixels[:, :8, 1:] = 0
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def test_an_image_is_scaled_in_size_and_range(picture: Path) -> None:
    grey = asking.load_image(picture, wanted())
    assert (str(grey.dtype), grey.shape, int(grey[4, 7, 0])) == ("uint8", (8, 8, 1), 16)
    assert int(grey[4, 0, 0]) == round(0.299 * 16)  # ITU-R 601, Pillow's grey
    colour = asking.load_image(picture, wanted(3, "float32", 1.0))
    assert colour.dtype == np.float32 and colour[4, 0].tolist() == [1.0, 0.0, 0.0]


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"junk" * 9)
    for name in ("x.png", "absent.png"):
        with pytest.raises(UserError, match=r"cannot be decoded \(.*; one of PNG, JPEG; mend or remove it"):
            asking.load_image(tmp_path / name, wanted())
    with pytest.raises(UserError, match="a model of 2 channels"):
        asking.load_image(tmp_path / "x.png", wanted(2))


def tensor(data: list[Any], kind: str = "FP32") -> dict[str, Any]:
    return {"name": "logits", "datatype": kind, "shape": [1, len(data)], "data": data}


def recorded(data: list[Any], kind: str = "FP32") -> RecordedTensor:
    return RecordedTensor(**tensor(data, kind))


def test_differences_are_relative_to_the_largest_value() -> None:
    wanted = recorded([1.0, -4.0])
    assert asking.difference(wanted, tensor([1.0, -4.4])) == pytest.approx(0.1)
    assert asking.difference(wanted, tensor([1.0, -4.0])) == 0.0
    assert asking.difference(recorded(["a"], "BYTES"), tensor(["a"], "BYTES")) == 0.0


@pytest.mark.parametrize(
    "answer",
    [
        *({**tensor([1.0, -4.0]), "data": data} for data in (None, "1", [1.0], ["a", "b"], [10**400, 1], [[1], 2])),
        {"name": "logits"},
        None, tensor([1.0]), tensor([1, -4], "INT64"), tensor([1.0, math.nan]), tensor([math.inf, -4.0]),
    ],
)  # fmt: skip
def test_other_types_shapes_and_no_numbers_are_wrong(answer: dict[str, Any] | None) -> None:
    assert asking.difference(recorded([1.0, -4.0]), answer) == math.inf
    assert asking.difference(recorded(["a"], "BYTES"), tensor(["b"], "BYTES")) == math.inf


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """An index without recorded answers."""
    folder = tmp_path / "models"
    (folder / "net").mkdir(parents=True)
    model = PublishedModel(name="net", platform="onnxruntime_onnx", max_batch_size=1, sha256={})
    write_index(folder, "triton", 1, [model])
    return folder


@pytest.fixture
def complete(published: Path) -> Path:
    """A network with a recorded exchange, and an ensemble for images."""
    exchange = Exchange({"input": np.zeros((1, 2), np.float32)}, {"logits": np.array([[1, -4]], np.float32)})
    write_recorded(published / "net", "net", [exchange], batched=True)
    models = [
        *read_index(published).models,
        PublishedModel(name="net_classify", platform="ensemble", max_batch_size=1, sha256={}, image=wanted()),
    ]
    write_index(published, "triton", 1, models)
    return published


def test_errors_are_one_line(published: Path, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = "http://127.0.0.1:9"
    cases = [
        (["ask", url, published], "holds no recorded answers"),
        (["ask", url, published, "--model", "other"], "no model 'other'; one of net"),
        (["ask", url, published, "--image", picture], "takes no images"),
        (["ask", url, published.parent], "demport.json cannot be read"),
    ]
    for arguments, message in cases:
        assert cli.command_line([str(word) for word in arguments]) == 2
        shown = capsys.readouterr().err
        assert message in shown and shown.count("\n") == 1


def test_nobody_there_and_other_addresses(complete: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for url, message in (
        ("http://127.0.0.1:9", "no server is ready there; a server ready within 0.2 s"),
        ("ftp://127.0.0.1", "http://host:port"),
        ("http://127.0.0.1:99999999", "http://host:port"),
    ):
        assert cli.command_line(["ask", url, str(complete), "--wait", "0.2"]) == 2
        assert message in capsys.readouterr().err


def test_waiting_for_no_number_of_seconds(complete: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--wait", "--tolerance"):
        assert cli.command_line(["ask", "http://127.0.0.1:9", str(complete), option, "nan"]) == 2
        shown = capsys.readouterr().err
        assert option in shown and shown.startswith("error: ")


def test_recorded_answers_too_long_to_be_some_are_not_read_to_their_end(
    complete: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("export.serving.recorded._KIND", dataclasses.replace(_KIND, limit=20))
    assert cli.command_line(["ask", "http://127.0.0.1:9", str(complete)]) == 2
    assert "sample-request.json cannot be read (over 20 bytes)" in capsys.readouterr().err


def as_link(path: Path) -> None:
    path.rename(path.with_name("x"))
    path.symlink_to("x")


DAMAGE: dict[str, tuple[Callable[[Path], object], bool, str]] = {
    "changed": (lambda path: path.write_text(path.read_text().replace("-4", "-5")), False, "was changed; the recorded"),
    "gone": (lambda path: path.unlink(), False, "cannot be read (No such file"),
    "a link": (as_link, False, "cannot be read (no plain file)"),
    "no JSON": (lambda path: path.write_text("{"), True, "sample-response.json is not JSON: EOF"),
    "no outputs": (lambda path: path.write_text('{"model_name": "net"}'), True, "outputs: Field required"),
    "no tensor": (lambda path: path.write_text('{"model_name": "net", "outputs": [1]}'), True, "outputs.0: Input"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_recorded_answers_are_those_that_were_published(
    complete: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`listed`: the index says so too, as somebody who tampers would make it."""
    damage, listed, message = DAMAGE[case]
    damage(complete / "net" / "sample-response.json")
    if listed:
        write_index(complete, "triton", 1, read_index(complete).models)
    assert cli.command_line(["ask", "http://127.0.0.1:9", str(complete)]) == 2
    shown = capsys.readouterr().err
    assert message in shown and shown.count("\n") == 1


def answer(outputs: dict[str, list[Any]]) -> bytes:
    """A V2 answer with these outputs, text where the values are text."""
    told = [
        {**tensor(data, "BYTES" if isinstance(data[0], str) else "FP32"), "name": name}
        for name, data in outputs.items()
    ]
    return json.dumps({"outputs": told}).encode()


def test_a_class_is_told_and_an_answer_without_one_is_an_error(
    complete: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with scripted() as script:
        arguments = ["ask", script.url, str(complete), "--image", str(picture)]
        script.body = answer({"class": ["seven"], "probability": [0.75]})
        assert cli.command_line(arguments) == 0
        (told,) = json.loads(capsys.readouterr().out.splitlines()[-1])["models"]
        assert told == {"name": "net_classify", "class": "seven", "probability": 0.75}
        for body in (
            b"{}", b"[]", b"NaN", answer({"probability": [0.5]}), answer({"class": [7], "probability": [0.5]}),
            answer({"class": ["seven"], "probability": [math.nan]}), answer({"class": ["seven"]}),
            answer({"class": ["seven"], "probability": ["high"]}), b'{"outputs": [{"name": "class"}]}',
        ):  # fmt: skip
            script.body = body
            assert cli.command_line(arguments) == 2, body
            assert f"error: {script.url}: an" in capsys.readouterr().err.replace("no class in the", "an")


def test_a_servers_reason_does_not_steer_the_terminal(complete: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with scripted() as script:
        script.status, script.body = 400, json.dumps({"error": "\x1b]0;owned\x07\nreally\u202e"}).encode()
        assert cli.command_line(["ask", script.url, str(complete), "--model", "net"]) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1 and shown.rstrip("\n").isprintable()
    assert "refuses 'net': \\x1b]0;owned\\x07 really\\u202e; an answer" in shown


def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path) -> None:
    grey = np.repeat(np.array([0, 255, 256, 0x8000, 0xFFFF, 0x1234, 1, 512], np.uint16)[None], 8, 0)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    got = asking.load_image(tmp_path / "deep.png", wanted(high=255.0))
    assert got.shape == (8, 8, 1)
    assert got[3, :, 0].tolist() == [0, 1, 1, 0x80, 0xFF, 0x12, 0, 2]


def test_images_of_other_kinds_and_sizes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "x.eps")  # Pillow reads it with Ghostscript
    Image.new("L", (64, 64)).save(tmp_path / "large.png")
    monkeypatch.setattr("runtime.images.MAX_PIXELS", 64 * 63)
    for name, reason in (
        ("x.eps", "cannot identify image file"),
        ("large.png", "64x64 pixels"),
        (".", "no plain file"),
    ):
        with pytest.raises(UserError, match=f"cannot be decoded .{reason}"):
            asking.load_image(tmp_path / name, wanted())


def test_a_wide_picture_is_fitted_as_in_training(tmp_path: Path) -> None:
    """Red, green and blue stripes of 4, 8 and 4 columns: the middle is green, a letterbox shows all."""
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :4, 0] = pixels[:, 4:12, 1] = pixels[:, 12:, 2] = 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    image = wanted(3, high=255.0)
    middle = asking.load_image(tmp_path / "wide.png", image.model_copy(update={"fit": "crop", "resize": 8}))
    assert middle[..., 1].min() == 255 and middle[..., 0].max() == 0
    boxed = image.model_copy(update={"fit": "letterbox", "background": [7, 8, 9]})
    whole = asking.load_image(tmp_path / "wide.png", boxed)
    assert whole[0, 0].tolist() == [7, 8, 9] and whole[4, 0, 0] == whole[4, 7, 2] == 255
