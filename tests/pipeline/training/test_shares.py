"""One process of several: empty shares of a last batch, norms in half precision, and what is told of the whole."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor, nn

from pipeline import config
from pipeline.data import load
from pipeline.stages.train import lead
from pipeline.surgery.watch import anatomy
from pipeline.training.census import census
from pipeline.training.compute.distributed import JoinedBatchNorm, Ranks, without_gradient
from pipeline.training.log.history import History
from pipeline.training.loop import EVALUATION_BATCH, metric_of
from runtime.errors import UserError


class Apart(Ranks):
    """The second of two, whose sums are its own."""

    def __init__(self) -> None:
        super().__init__(1, 2)

    def sum(self, x: Tensor) -> Tensor:
        return x


class Strict(nn.Module):
    """A view that no batch of none can have, as many networks have it."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.relu, self.linear = nn.ReLU(), nn.Linear(inputs, 10)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(self.relu(x).view(x.shape[0], -1))
        return y


@pytest.fixture
def joined(tmp_path: Path) -> Iterator[None]:
    """A group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_share_without_images_counts_nothing(tmp_path: Path) -> None:
    """One image more than the evaluation's batches hold: the second process has none of the last one."""
    for number in range(EVALUATION_BATCH + 1):
        path = tmp_path / "val" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), number % 256, np.uint8)).save(path)
    (tmp_path / "train").symlink_to(tmp_path / "val")
    data = load(config.Data(source=f"imagefolder:{tmp_path}"))
    for split in (data.test, load(config.Data()).test):
        network = Strict(next(iter(split.batches(1)))[0].numel())
        alone, share = metric_of(network, split), metric_of(network, split, Apart())
        assert 0 <= share <= alone <= 1


def test_a_census_of_no_image_finds_what_the_others_find() -> None:
    units = anatomy(nn.Sequential(nn.Conv2d(1, 3, 3), Strict(3 * 36)), (torch.zeros(2, 1, 8, 8),))
    found = census(units, [(torch.randn(4, 1, 8, 8),), (torch.zeros(0, 1, 8, 8),)], Apart())
    alone = census(units, [(torch.zeros(0, 1, 8, 8),)], Apart())
    assert found.keys() == alone.keys() == units.watch.keys()
    assert all(bool(mask.all()) for mask in alone.values()), "no image fires"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.usefixtures("joined")
def test_a_joined_norm_is_torch_s_in_every_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    theirs, wide = nn.BatchNorm2d(5), torch.float64 if dtype == torch.float64 else torch.float32
    theirs.to(wide)
    inside = nn.BatchNorm2d(5).to(wide)
    ours = JoinedBatchNorm(inside)
    x = torch.randn(6, 5, 3, 3).to(dtype)
    want, got = theirs(x), ours(x)
    assert got.dtype == want.dtype == dtype
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(inside.running_var, theirs.running_var)
    torch.testing.assert_close(inside.running_mean, theirs.running_mean)


def test_the_loss_told_is_the_mean_over_all_processes(tmp_path: Path) -> None:
    history = History(tmp_path / "history.jsonl", None, lambda losses: (losses + 3.0) / 2)
    history.begin()
    for _ in range(3):
        history.step(torch.tensor(1.0))
    history.end_window(10, 0)
    assert history.end_epoch({})["loss"] == 2.0


def test_what_went_wrong_is_told_and_not_that_the_others_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(self: Ranks, value: object) -> object:
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(Ranks, "agree", gone)
    with pytest.raises(UserError, match="too many"), lead("cpu"):
        raise UserError("too many", "fewer", "lower it")
    with pytest.raises(RuntimeError, match="closed"), lead("cpu"):
        pass


class Unused(nn.Module):
    """A bias of its own, and layers that nothing passes through, one of them tied to another."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Linear(3, 2)
        self.bias, self.none = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
        self.idle, self.twin, self.still = nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.Linear(3, 2)
        self.twin.weight = self.idle.weight
        self.still.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(self.norm(self.conv(x)).relu().mean((2, 3))) + self.bias
        return y


@pytest.mark.usefixtures("joined")
def test_parameters_that_nothing_passes_through_do_not_stop_processes() -> None:
    """Their own gradients, of a penalty that begins later, are there as in one process."""
    torch.manual_seed(0)
    alone = Unused()
    shared = copy.deepcopy(alone)
    together = Ranks(0, 2).joined(shared, torch.device("cpu"), (torch.zeros(2, 1, 5, 5),))
    for step in range(3):
        x = torch.randn(4, 1, 5, 5)
        for network, forward in ((alone, alone), (shared, together)):
            network.zero_grad()
            loss = forward(x).square().mean() + (network.idle.weight.abs().sum() if step else 0.0)
            torch.autograd.backward(loss)
        for (name, one), other in zip(alone.named_parameters(), shared.parameters(), strict=True):
            assert (one.grad is None) == (other.grad is None), name
            if one.grad is not None and other.grad is not None:
                torch.testing.assert_close(other.grad, one.grad, msg=name)
    assert alone.idle.weight.grad is not None and alone.none.grad is None
    assert int(shared.norm.num_batches_tracked or 0) == 3, "looking for them left no trace"


def test_looking_for_parameters_without_gradient_keeps_away_from_a_broken_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As steps do (`sound_kernels`), backward included."""
    seen: list[Any] = []

    class Seen(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            seen.append(torch.backends.mkldnn.enabled)
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Tensor:
            seen.append(torch.backends.mkldnn.enabled)
            return gradients[0]

    class Net(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = Seen.apply(super().forward(x))
            return y

    monkeypatch.setattr(torch.backends.mkldnn, "enabled", True)
    assert without_gradient(Net(3, 2), (torch.zeros(2, 3),)) == []
    assert seen == [False, False]
    assert torch.backends.mkldnn.enabled


def test_looking_for_parameters_without_gradient_draws_no_random_number() -> None:
    network = nn.Sequential(nn.Dropout(), nn.Linear(3, 2))
    state = torch.random.get_rng_state()
    assert without_gradient(network, (torch.zeros(2, 3),)) == []
    assert torch.equal(torch.random.get_rng_state(), state)
