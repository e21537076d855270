"""Which TensorRT is taken, and for which GPUs."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError
from types import ModuleType, SimpleNamespace

import pytest

from export.engines import Choice, EngineUnavailable, choose, engine_name
from export.engines.tensorrt import targets as module
from runtime.backends import trt_library
from runtime.errors import UserError
from runtime.gpu import Gpu

HOPPER = Gpu("NVIDIA H100", "SM90", "13.0")
ADA = Gpu("NVIDIA L4", "SM89", "13.0")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


class Machine:
    """A machine with the given GPU and flavours installed."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.patch = patch

    def has(self, gpu: Gpu | None, *installed: str) -> None:
        self.patch.setattr(module, "first_gpu", lambda: gpu)
        self.patch.setattr(trt_library, "find_spec", lambda name: name if name in installed else None)
        for name in ("tensorrt", "tensorrt_rtx"):
            library = ModuleType(name) if name in installed else None
            self.patch.setitem(sys.modules, name, library)  # None makes the import fail
            if library is not None:
                names = ("NONE", "CURRENT", "SM75", "SM80", "SM86", "SM89", "SM120")
                vars(library)["Runtime"] = object
                vars(library)["ComputeCapability"] = SimpleNamespace(__members__=dict.fromkeys(names))


def test_auto_prefers_tensorrt_on_a_gpu_and_builds_for_that(machine: Machine) -> None:
    machine.has(HOPPER, "tensorrt", "tensorrt_rtx")
    assert choose("auto", ("SM86", "SM89")) == Choice("tensorrt", ("SM90",))
    assert choose("tensorrt_rtx", ("SM86", "SM89")) == Choice("tensorrt_rtx", ("SM86", "SM89"))


def test_auto_without_a_gpu_builds_ahead_of_time(machine: Machine) -> None:
    machine.has(None, "tensorrt", "tensorrt_rtx")
    assert choose("auto", ("SM86", "SM89", "SM86")) == Choice("tensorrt_rtx", ("SM86", "SM89"))
    machine.has(None, "tensorrt_rtx")
    assert choose("auto", ("SM120",)) == Choice("tensorrt_rtx", ("SM120",))


def test_current_becomes_the_name_of_the_gpu(machine: Machine) -> None:
    machine.has(ADA, "tensorrt_rtx")
    assert choose("auto", ("CURRENT", "SM89", "SM86")) == Choice("tensorrt_rtx", ("SM89", "SM86"))
    machine.has(HOPPER, "tensorrt_rtx")
    assert choose("auto", ("CURRENT",)) == Choice("tensorrt_rtx", ("SM90",))


@pytest.mark.parametrize(
    ("gpu", "installed", "flavour", "targets", "reason"),
    [
        (None, (), "auto", ("SM86",), "tensorrt cannot be imported: .*; tensorrt_rtx cannot be imported: "),
        (None, ("tensorrt",), "auto", ("SM86",), "tensorrt needs a GPU .*; tensorrt_rtx cannot be imported: "),
        (None, ("tensorrt",), "tensorrt", ("SM86",), "^tensorrt needs a GPU to build and none was found$"),
        (HOPPER, ("tensorrt",), "tensorrt_rtx", ("SM86",), "^tensorrt_rtx cannot be imported: "),
        (None, ("tensorrt_rtx",), "tensorrt_rtx", ("CURRENT",), "target CURRENT needs a GPU"),
        (HOPPER, ("tensorrt", "tensorrt_rtx"), "none", ("SM86",), "switched off"),
    ],
)
def test_unavailable_says_why(
    machine: Machine, gpu: Gpu | None, installed: tuple[str, ...], flavour: str, targets: tuple[str, ...], reason: str
) -> None:
    machine.has(gpu, *installed)
    with pytest.raises(EngineUnavailable, match=reason) as caught:
        choose(flavour, targets)
    assert not isinstance(caught.value, UserError)


def test_unknown_names_are_the_users_error(machine: Machine) -> None:
    machine.has(None, "tensorrt_rtx")
    with pytest.raises(UserError, match="engine target 'SM90'; one of SM75, SM80, SM86, SM89, SM120, CURRENT"):
        choose("auto", ("SM86", "SM90"))
    with pytest.raises(UserError, match="flavour 'rtx'; auto, tensorrt, tensorrt_rtx, openvino or none"):
        choose("rtx", ("SM86",))


def test_file_names() -> None:
    assert engine_name("dense", "fp16", "SM86", "tensorrt") == "dense.fp16.SM86.engine"
    assert engine_name("compact", "fp32", "SM120", "tensorrt_rtx") == "compact.fp32.SM120.engine"
    assert engine_name("compact", "int8", "CPU", "openvino") == "compact.int8.CPU.xml"


@pytest.mark.parametrize("package", ["tensorrt-cu13", "tensorrt"])
def test_an_empty_placeholder_is_told_from_a_real_one(machine: Machine, package: str) -> None:
    """tensorrt-cu13 0.0.1 installs metadata and no module; another wheel a module that holds nothing."""

    def version(name: str) -> str:
        if name != package:
            raise PackageNotFoundError(name)
        return "0.0.1"

    machine.has(ADA)
    machine.patch.setattr(trt_library, "version", version)
    expected = f"tensorrt cannot be imported: the installed {package} 0.0.1 is an empty placeholder"
    with pytest.raises(EngineUnavailable, match=expected):
        choose("tensorrt", ())
    machine.has(ADA, "tensorrt")
    del vars(sys.modules["tensorrt"])["Runtime"]
    with pytest.raises(EngineUnavailable, match=expected):
        choose("tensorrt", ())
    with pytest.raises(UserError, match=rf"tensorrt does not load \(the installed {package} 0.0.1 is an empty"):
        trt_library.library("tensorrt")
