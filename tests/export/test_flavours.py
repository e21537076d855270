"""Which TensorRT is taken, and for which GPUs."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from export import flavours
from export.flavours import Choice, EngineUnavailable, choose, engine_name
from export.gpu import Gpu
from runtime.errors import UserError

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
        self.patch.setattr(flavours, "first_gpu", lambda: gpu)
        for name in ("tensorrt", "tensorrt_rtx"):
            module = ModuleType(name) if name in installed else None
            self.patch.setitem(sys.modules, name, module)  # None makes the import fail
            if module is not None:
                names = ("NONE", "CURRENT", "SM75", "SM80", "SM86", "SM89", "SM120")
                vars(module)["ComputeCapability"] = SimpleNamespace(__members__=dict.fromkeys(names))


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
    with pytest.raises(UserError, match="flavour 'rtx'; auto, tensorrt, tensorrt_rtx or none"):
        choose("rtx", ("SM86",))


def test_file_names() -> None:
    assert engine_name("dense", "fp16", "SM86") == "dense.fp16.SM86.engine"
    assert engine_name("compact", "fp32", "SM120") == "compact.fp32.SM120.engine"
