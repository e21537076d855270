"""What is particular to torch sessions: the module stays untouched, threads are put back, outputs are named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from runtime.backends.torch import TorchSession, _WithoutTf32, image_inputs
from runtime.errors import UserError
from tests.runtime.nets import SHAPE, Net, expected, images


class Norm(nn.Module):
    """Its mean would move, and its values differ, in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(2)

    def forward(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        result: Tensor = self.norm(batch)
        return result, result.mean((1, 2, 3))


def test_the_module_is_left_as_it_was() -> None:
    module = Norm().train()
    session = TorchSession(module, image_inputs(SHAPE), ("maps", "means"), device="cpu", threads=1)
    session.bind({"input": images(4)})
    session.launch()
    results = session.fetch()
    assert module.training
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert module.norm.num_batches_tracked is not None
    assert int(module.norm.num_batches_tracked) == 0
    assert (
        abs(results["maps"] - images(4) / (1 + 1e-5) ** 0.5).max() < 1e-6
    )  # mean 0, variance 1: train mode would differ
    assert [(spec.name, spec.shape) for spec in session.outputs] == [("maps", (None, *SHAPE)), ("means", (None,))]


def test_threads_are_those_asked_for_and_put_back_on_close() -> None:
    seen = []

    class Spy(Net):
        def forward(self, batch: Tensor) -> Tensor:
            seen.append(torch.get_num_threads())
            return super().forward(batch)

    before = torch.get_num_threads()
    other = 1 if before != 1 else 2
    session = TorchSession(Spy(), image_inputs(SHAPE), device="cpu", threads=other)
    twin = TorchSession(Spy(), image_inputs(SHAPE), device="cpu", threads=other)
    session.bind({"input": images(1)})
    torch.set_num_threads(before)
    session.launch()
    assert seen == [other, other, other]
    twin.close()
    session.close()
    assert torch.get_num_threads() == before
    torch.set_num_threads(other)
    session.close()
    assert torch.get_num_threads() == other
    torch.set_num_threads(before)


def test_threads_are_put_back_where_the_session_does_not_open() -> None:
    before = torch.get_num_threads()
    with pytest.raises(UserError, match="torch returns 2 tensors"):
        TorchSession(Norm(), image_inputs(SHAPE), device="cpu", threads=3)
    assert torch.get_num_threads() == before
    with pytest.raises(RuntimeError, match="shape"):
        TorchSession(Net(), image_inputs((5, 5)), device="cpu", threads=3)
    assert torch.get_num_threads() == before


def test_outputs_that_do_not_fit_their_names() -> None:
    with pytest.raises(UserError, match="torch returns 2 tensors; 1"):
        TorchSession(Norm(), image_inputs(SHAPE), device="cpu", threads=1)

    class Text(nn.Module):
        def forward(self, batch: Tensor) -> str:
            return "seven"

    with pytest.raises(UserError, match="the network returns str"):
        TorchSession(Text(), image_inputs(SHAPE), device="cpu", threads=1)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_lower_precision_keeps_the_sessions_own_types(precision: Any) -> None:
    session = TorchSession(Net(), image_inputs(SHAPE), device="cpu", threads=1, precision=precision)
    batch = images(4)
    session.bind({"input": batch})
    session.launch()
    logits = session.fetch()["logits"]
    assert logits.dtype == np.float32
    assert session.outputs[0].dtype == "float32"
    difference = np.abs(logits - expected(batch)).max()
    assert 0 < difference < 0.2  # rounding to 8 or 11 bits shows, and no more
    assert session.settings["precision"] == precision
    session.close()


def test_inputs_of_the_same_shape_stay_where_they_are() -> None:
    session = TorchSession(Net(), image_inputs(SHAPE), device="cpu", threads=1)
    session.bind({"input": images(4)})
    place = session._arguments[0].data_ptr()
    session.bind({"input": images(4, seed=5)})
    assert session._arguments[0].data_ptr() == place
    session.launch()
    np.testing.assert_allclose(session.fetch()["logits"], expected(images(4, seed=5)), rtol=0, atol=1e-5)
    session.bind({"input": images(2)})
    assert session._arguments[0].shape[0] == 2
    session.close()


def test_modes_that_cannot_be() -> None:
    with pytest.raises(UserError, match="mode cuda_graph without a CUDA device"):
        TorchSession(Net(), image_inputs(SHAPE), device="cpu", mode="cuda_graph")
    session = TorchSession(Net(), image_inputs(SHAPE), device="cpu", threads=1)
    session._mode, session._run_module = "compiled", _raising
    with pytest.raises(UserError, match="torch cannot run torch in mode compiled: no compiler takes this; ") as caught:
        session.bind({"input": images(1)})
    assert caught.value.remedy == "use mode eager"
    session.close()


def _raising(*arguments: Tensor) -> Tensor:
    """Fails as a compiler does, on several lines."""
    raise RuntimeError("no compiler takes this\nand more")


def test_tf32_stays_off_while_any_of_several_runs_lasts() -> None:
    """The run that began first ends first; the switches come back with the last one."""
    switches: Any = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = True
        without = _WithoutTf32()
        without.__enter__()
        without.__enter__()
        assert not any(switch.allow_tf32 for switch in switches)
        without.__exit__()
        assert not any(switch.allow_tf32 for switch in switches)
        without.__exit__()
        assert all(switch.allow_tf32 for switch in switches)
    finally:
        for switch, allowed in zip(switches, before, strict=True):
            switch.allow_tf32 = allowed
