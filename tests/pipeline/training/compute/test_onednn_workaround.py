"""Steps of networks for which oneDNN has a kernel that writes past its memory (oneDNN issue 6035).

That nothing is overwritten is seen by test_checkpoint.py and test_stage.py, which die without it on such a processor.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline import config
from pipeline.data import load
from pipeline.progress import Silent
from pipeline.training.compute import onednn_workaround as sound_kernels
from pipeline.training.loop import Loop
from pipeline.training.train import Setting, train_dense


@pytest.fixture(params=["AVX2", "AVX512"])
def capability(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: request.param)
    return str(request.param)


@pytest.mark.parametrize(
    ("conv", "broken"),
    [
        (nn.Conv2d(4, 8, 1, stride=2), True),
        (nn.Conv2d(7, 64, 1, stride=(1, 2)), True),
        (nn.Conv2d(16, 16, 1, stride=2, groups=4), True),
        (nn.Conv2d(8, 8, 1, stride=2), False),
        (nn.Conv2d(4, 8, 1), False),
        (nn.Conv2d(4, 8, 3, stride=2), False),
    ],
)
def test_which_layers_are_concerned(conv: nn.Module, broken: bool, capability: str) -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Sequential(conv))
    assert sound_kernels.writes_past(network) == (broken and capability == "AVX2")


@pytest.mark.parametrize("width", [4, 8])
def test_steps_are_taken_without_onednn_and_the_rest_with_it(
    width: int, capability: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """demo:resnet halves its images in 1x1 convolutions of `width` channels."""
    seen: list[bool] = []
    step = Loop._step

    def watched(self: Loop, *batch: torch.Tensor) -> torch.Tensor:
        seen.append(bool(torch.backends.mkldnn.enabled))
        return step(self, *batch)

    monkeypatch.setattr(Loop, "_step", watched)
    task = Setting(config.Model(args={"width": width}), load(config.Data()), 1, 1, "cpu", tmp_path, Silent())
    train_dense(config.Training(epochs=1, batch_size=500), task)
    assert seen == [not (width == 4 and capability == "AVX2")] * len(seen)
    assert seen
    assert torch.backends.mkldnn.enabled


def test_onednn_comes_back_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), sound_kernels.without_onednn():
        assert not torch.backends.mkldnn.enabled
        raise ZeroDivisionError
    assert torch.backends.mkldnn.enabled
