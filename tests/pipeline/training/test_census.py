"""The census: which channels count as dead."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.training.census import CHUNK, census, load_census, save_census
from tests.pipeline.training.small import SmallNet, SmallUnits, verdict


class Given:
    """Observes the input itself, as (B, 3) features on the last axis."""

    watch = {"y": 3}  # noqa: RUF012
    axis = {"y": 1}  # noqa: RUF012

    def observe(self, model_inputs: tuple[Tensor, ...], /) -> dict[str, Tensor]:
        return {"y": model_inputs[0]}


def test_dead_means_a_sum_of_at_most_zero_on_every_batch() -> None:
    one = torch.tensor([[0.0, 1.0, -2.0], [0.0, 0.0, 1.5]])
    two = torch.tensor([[0.0, 0.0, 0.0]])
    assert census(Given(), [(one,), (two,)])["y"].tolist() == [True, False, True]
    assert census(Given(), [(two,), (one,)])["y"].tolist() == [True, False, True]
    assert census(Given(), [(one,), (two,), (torch.tensor([[1e-30, 0.0, 0.0]]),)])["y"].tolist() == [False, False, True]


def test_a_channel_that_fires_on_one_image_of_the_third_batch_survives() -> None:
    torch.manual_seed(0)
    model = SmallNet()
    with torch.no_grad():
        model.bn1.weight[2], model.bn1.bias[2] = 0.0, -1.0
        model.conv1.weight[1], model.conv1.bias[1] = 0.0, 0.0  # type: ignore[index]
        model.conv1.weight[1, 0, 1, 1] = 1.0
        model.bn1.bias[1] = -50.0
    units = SmallUnits(model)
    batches = [(torch.rand(8, 1, 5, 5),) for _ in range(3)]
    assert census(units, batches)["relu1"].tolist() == [False, True, True, False]
    batches[2][0][6, 0, 4, 4] = 60.0
    assert census(units, batches)["relu1"].tolist() == [False, False, True, False]
    assert census(units, batches[:2])["relu1"].tolist() == [False, True, True, False]


def test_a_batch_is_summed_in_parts_and_the_mode_stays() -> None:
    """A channel at -3 on one part and +2 on another is dead by its sum over the batch."""
    x = torch.zeros(CHUNK + 1, 3)
    x[0], x[CHUNK] = torch.tensor([-3.0, -3.0, 1.0]), torch.tensor([2.0, 4.0, -1.0])
    assert census(Given(), [(x,)])["y"].tolist() == [True, False, True]
    model = SmallNet().train()
    units = SmallUnits(model)
    mean = model.bn1.running_mean
    assert mean is not None
    before = mean.clone()
    census(units, [(torch.rand(3 * CHUNK, 1, 4, 4),)])
    assert units.largest_batch == CHUNK
    assert model.training
    assert torch.equal(mean, before)


def test_no_batch_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        census(Given(), [])
    assert census(Given(), [(torch.zeros(1, 3),)])["y"].all()


def test_a_census_comes_back_from_its_file(tmp_path: Path) -> None:
    dead = verdict([0, 1, 1, 0], [1, 0, 0])
    save_census(dead, tmp_path / "c.safetensors")
    found = load_census(tmp_path / "c.safetensors")
    assert found.keys() == dead.keys()
    assert all(torch.equal(found[name], dead[name]) for name in dead)
    from safetensors.torch import load_file

    assert load_file(tmp_path / "c.safetensors")["relu1"].tolist() == [0, 1, 1, 0]
    assert load_file(tmp_path / "c.safetensors")["relu1"].dtype == torch.uint8
