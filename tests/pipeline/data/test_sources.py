"""torchvision sets and the user's function."""

from __future__ import annotations

import gzip
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline import config
from pipeline.data import fingerprint, load
from pipeline.data.arrays import ArraySplit
from runtime.errors import UserError
from tests.pipeline.data.sets import whole


def write_idx(path: Path, values: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = bytes([0, 0, 8, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape)
    path.write_bytes(header + values.tobytes())
    with gzip.open(path.with_suffix(".gz"), "wb") as stream:
        stream.write(header + values.tobytes())


def write_mnist(root: Path) -> NDArray[np.uint8]:
    x = np.random.RandomState(2).randint(0, 255, (20, 28, 28)).astype(np.uint8)
    for name in ("train", "t10k"):
        write_idx(root / "MNIST" / "raw" / f"{name}-images-idx3-ubyte", x)
        write_idx(root / "MNIST" / "raw" / f"{name}-labels-idx1-ubyte", np.arange(20, dtype=np.uint8) % 10)
    return x


def test_a_torchvision_set_that_is_there_is_read(tmp_path: Path) -> None:
    pixels = write_mnist(tmp_path)
    section = config.Data(source="torchvision:MNIST", root=str(tmp_path))
    data = load(section)
    assert (len(data.train), data.input_shape, data.scale) == (20, (1, 28, 28), 255.0)
    assert data.names[3] == "3 - three"
    assert isinstance(data.train, ArraySplit)
    assert torch.equal(data.train.images[4, 0], torch.from_numpy(pixels[4]))
    assert data.fingerprint == fingerprint(section)


def test_a_download_that_fails_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    monkeypatch.setattr(CIFAR10, "url", "file:///nowhere/cifar-10-python.tar.gz")
    section = config.Data(source="torchvision:CIFAR10", root=str(tmp_path / "fresh"))
    with pytest.raises(UserError, match=r"torchvision:CIFAR10 could not be downloaded into .*fresh"):
        fingerprint(section)
    with pytest.raises(UserError, match=re.escape(f"copy the files into {tmp_path / 'fresh'}, or set data.root")):
        load(section)


def test_an_unknown_torchvision_set_gets_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="perhaps torchvision:CIFAR10;") as caught:
        load(config.Data(source="torchvision:CIFAR_10", root=str(tmp_path)))
    assert "FashionMNIST" in caught.value.expected


def importable(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, text: str) -> None:
    (folder / f"{name}.py").write_text(text)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, name, raising=False)


GOOD = """
import numpy as np, torch
def parts():
    x = np.arange(8 * 6 * 5, dtype=np.float32).reshape(8, 6, 5)
    return x, np.arange(8) % 2, x[:4], np.arange(4) % 2
def tensors():
    x, y, u, v = (torch.from_numpy(p) for p in parts())
    return {"x_train": x, "y_train": y, "x_test": u, "y_test": v, "names": ["no", "yes"]}
def ragged():
    return [[1], [2, 3]], [0, 1], [[1]], [0]
def short():
    return 1, 2
def keys():
    return {"x_train": 1}
def broken():
    raise RuntimeError("disk on fire")
"""


def test_a_function_returns_a_tuple_or_a_dict_of_arrays_or_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    importable(monkeypatch, tmp_path, "demport_test_sets", GOOD)
    one = load(config.Data(source="demport_test_sets:parts"))
    two = load(config.Data(source="demport_test_sets:tensors"))
    assert one.input_shape == two.input_shape == (1, 6, 5)
    assert (one.names, two.names) == (("0", "1"), ("no", "yes"))
    assert torch.equal(whole(one)[0], whole(two)[0])
    assert one.fingerprint == fingerprint(config.Data(source="demport_test_sets:parts")) != two.fingerprint


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("demport_test_sets:part", "has no function part; one of its functions, e.g. parts"),
        ("demport_test_sets:ragged", "x_train has type object"),
        ("demport_test_sets:short", "returned tuple; a dict or a tuple of x_train"),
        ("demport_test_sets:keys", "has no y_train"),
        ("demport_test_sets:broken", "raised RuntimeError: disk on fire"),
        ("demport_test_nothing:parts", "there is no module demport_test_nothing"),
    ],
)
def test_a_fault_of_the_function_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    importable(monkeypatch, tmp_path, "demport_test_sets", GOOD)
    with pytest.raises(UserError, match=message) as caught:
        load(config.Data(source=name))
    assert name.split(":")[0] in str(caught.value)


def test_a_module_that_does_not_import_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    importable(monkeypatch, tmp_path, "demport_test_bad", "import demport_test_missing_thing\n")
    with pytest.raises(UserError, match=r"importing demport_test_bad for data\.source raised ModuleNotFoundError"):
        load(config.Data(source="demport_test_bad:f"))
    importable(monkeypatch, tmp_path, "demport_test_worse", "1 / 0\n")
    with pytest.raises(UserError, match="raised ZeroDivisionError: division by zero"):
        load(config.Data(source="demport_test_worse:f"))
