"""What learns stays; what the compact network does in training mode is what the dense one does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from pipeline.surgery import shrink
from pipeline.surgery.proof.gradients import check_step, step_of
from pipeline.surgery.shrink_training import Resumed, shrink_training
from runtime.errors import UserError
from tests.pipeline.surgery_training.nets import batches, kill, residual, step


def resume(model: nn.Module, x: Tensor, dead: dict[str, Tensor] | None = None, **options: Any) -> Resumed:
    return shrink_training(model.train(), (x,), SGD(model.parameters(), 0.1), dead, **options)


def image(size: int = 4, seed: int = 1) -> Tensor:
    """(size, 3, 6, 6)"""
    return torch.randn((size, 3, 6, 6), generator=torch.Generator().manual_seed(seed))


def head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 4)]


def widths(resumed: Resumed) -> dict[str, int]:
    """Output channels of each convolution."""
    found = resumed.compact.model.named_parameters()
    return {n.removesuffix(".weight"): p.shape[0] for n, p in found if p.dim() == 4}


def test_a_zero_that_learns_stays() -> None:
    """gamma = beta = 0 with nothing behind it that stops the gradient: zero in eval mode, and not for long."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 1), nn.ReLU(), *head(6))
    kill(model, {"1": [2, 5]}, beta=0.0)
    assert shrink(model.eval(), (image(),)).model.get_parameter("0.weight").shape[0] == 6
    assert widths(resume(model, image())) == {"0": 8, "2": 6}


def test_a_zero_at_the_kink_of_relu_goes() -> None:
    """ReLU passes no gradient at 0."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.ReLU(), *head(6))
    kill(model, {"1": [2, 5]}, beta=0.0)
    assert widths(resume(model, image())) == {"0": 6, "3": 6}
    kill(model, {"1": [2, 5]}, beta=0.25)  # a constant above zero: folded by shrink, but it learns
    assert shrink(model.eval(), (image(),)).model.get_parameter("0.weight").shape[0] == 6
    assert widths(resume(model, image())) == {"0": 8, "3": 6}


def test_activations_that_are_never_flat_keep_their_channels() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 6, 1), nn.ReLU(), *head(6))
    kill(model, {"1": [2, 5]}, beta=0.0)
    assert shrink(model.eval(), (image(),)).model.get_parameter("0.weight").shape[0] == 6
    assert widths(resume(model, image())) == {"0": 8, "3": 6}


def test_a_channel_that_fires_on_the_batch_stays() -> None:
    """The census saw zeros with running statistics; with those of this batch one of the two fires."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.ReLU(), *head(6))
    kill(model, {"1": [2]})
    norm = model.get_submodule("1")
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None
    norm.running_mean[5] = 100.0  # far above anything the convolution makes
    dead = torch.zeros(8, dtype=torch.bool)
    dead[[2, 5]] = True
    assert float(model.eval()[:3](image()).detach()[:, [2, 5]].abs().max()) == 0.0
    assert shrink(model, (image(),), {"_2": dead}).model.get_parameter("0.weight").shape[0] == 6
    assert widths(resume(model, image(), {"_2": dead})) == {"0": 7, "3": 6}


def test_a_constant_of_running_statistics_is_not_folded() -> None:
    """Zeros into a depthwise convolution; its batch norm makes 0 of them in training and 3 * 0.7 in eval mode."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1, groups=8, bias=False), nn.BatchNorm2d(8),
        nn.ReLU(), nn.Conv2d(8, 6, 1), nn.ReLU(), *head(6),
    )  # fmt: skip
    kill(model, {"1": [2, 5]})
    norm = model.get_submodule("4")
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None
    with torch.no_grad():
        norm.bias[[2, 5]] = -1.0
        norm.running_mean[2] = -3.1
    assert shrink(model.eval(), (image(),)).model.get_parameter("0.weight").shape[0] == 6
    resumed = resume(model, image())
    assert widths(resumed) == {"0": 7, "3": 7, "6": 6} and resumed.step_rel_diff is not None


@pytest.mark.parametrize("transposed", [False, True])
def test_grouped_convolutions(transposed: bool) -> None:
    """Two groups of four in, three out: one channel of each group goes; a third in one group has no partner."""
    torch.manual_seed(0)
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    middle: nn.Module = kind(8, 6, 3, padding=1, groups=2)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), middle, nn.BatchNorm2d(6), nn.ReLU(), *head(6)
    )
    kill(model, {"1": [1, 3, 6], "4": [0, 4]})
    resumed = resume(model, image())
    left = resumed.compact.model.get_parameter("3.weight")
    assert widths(resumed)["0"] == 6 and left.shape[:2] == ((6, 2) if transposed else (4, 3))
    assert resumed.step_rel_diff is not None and resumed.step_rel_diff < 1e-9


def test_a_zero_input_of_a_group_that_learns_stays() -> None:
    """Nothing stops the gradient on its way to channels 1 and 6."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3, groups=2), nn.ReLU(), *head(6))
    kill(model, {"1": [1, 6]}, beta=0.0)
    assert shrink(model.eval(), (image(),)).model.get_parameter("0.weight").shape[0] == 6
    assert widths(resume(model, image()))["0"] == 8


def test_alignment_keeps_dead_channels() -> None:
    model = residual()
    resumed = resume(model, batches(1)[0][0], align=4)
    assert widths(resumed) == {
        "stem": 12, "one.conv1": 8, "one.conv2": 16, "one.down.0": 16,
        "two.conv1": 12, "two.conv2": 20, "two.down.0": 20,
    }  # fmt: skip
    assert resumed.step_rel_diff is not None and resumed.step_rel_diff < 1e-9


class Adding(nn.Module):
    """x + relu(bn(conv(x))) on a stream of 8: a branch's zeros can go while the stream's channel lives."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.bn = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.head = nn.Sequential(*head(8))

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.stem(x))
        return self.head(x + F.relu(self.bn(self.conv(x))))


def test_an_untied_stream_goes_branch_by_branch() -> None:
    torch.manual_seed(0)
    model = Adding()
    kill(model, {"bn": [2, 4]})
    assert widths(resume(model, image())) == {"stem": 8, "conv": 8}
    untied = resume(model, image(), residual="untied")
    assert widths(untied) == {"stem": 8, "conv": 6} and untied.step_rel_diff is not None
    again = shrink_training(untied.compact.model, (image(),), untied.optimizer)
    assert again.compact.plan.residual == "untied" and widths(again) == widths(untied)


def test_dropout_batch_norm_and_frozen_modules_go_on() -> None:
    model = residual(dropout=0.5)
    x = batches(1)[0][0]
    frozen = model.one.bn1.eval()
    assert frozen is model.one.bn1
    model.train()
    model.one.bn1.eval()
    compact = shrink_training(model, (x,), SGD(model.parameters(), 0.1)).compact.model
    norm, other = compact.get_submodule("bn"), compact.get_submodule("one.bn1")
    assert isinstance(norm, nn.BatchNorm2d) and isinstance(other, nn.BatchNorm2d)
    assert compact.training and norm.training and not other.training and compact.get_submodule("drop").training
    before, still = norm.running_mean.clone(), other.running_mean.clone()  # type: ignore[union-attr]
    assert not torch.equal(compact(x), compact(x))
    assert not torch.equal(before, norm.running_mean) and torch.equal(still, other.running_mean)  # type: ignore[arg-type]
    assert int(norm.num_batches_tracked) == 2 + int(model.bn.num_batches_tracked)  # type: ignore[arg-type]
    compact.eval()
    assert torch.equal(compact(x), compact(x))


def test_a_model_in_eval_mode_gives_a_compact_one_in_eval_mode() -> None:
    model = residual().eval()
    resumed = shrink_training(model, (batches(1)[0][0],), SGD(model.parameters(), 0.1))
    assert not any(m.training for m in resumed.compact.model.modules())
    assert resumed.compact.certificate["channels"]["after"] == 94


@pytest.mark.parametrize("groups", [1, 2])
def test_a_channel_that_is_flat_but_not_zero_stays(groups: int) -> None:
    """ReLU6 at its ceiling passes no gradient, so only the reader's weights, trained or not, say that 6 arrives."""
    torch.manual_seed(0)
    reader = nn.Conv2d(8, 6, 1, groups=groups).requires_grad_(False)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU6(), reader, nn.ReLU(), *head(6))
    kill(model, {"1": [1, 6]})
    norm = model.get_submodule("1")
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        norm.bias[[0, 5]] = 100.0
    dead = torch.zeros(8, dtype=torch.bool)
    dead[[0, 1, 5, 6]] = True  # a wrong census
    resumed = shrink_training(model.train(), (image(),), SGD(model[:2].parameters(), 0.1), {"_2": dead})
    assert widths(resumed) == {"0": 6, "3": 6}
    assert not resumed.compact.model.get_parameter("3.weight").requires_grad
    assert torch.equal(resumed.compact.model.get_parameter("1.bias"), norm.bias[[0, 2, 3, 4, 5, 7]])


def test_zero_weights_of_a_transposed_convolution_learn() -> None:
    torch.manual_seed(0)
    middle = nn.ConvTranspose2d(8, 6, 3, groups=2, bias=False)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), middle, nn.Conv2d(6, 5, 1), nn.ReLU(), *head(5))
    with torch.no_grad():
        middle.weight[:, 1] = 0.0
    assert shrink(model.eval(), (image(),)).model.get_parameter("2.weight").shape[:2] == (8, 2)
    assert resume(model, image()).compact.model.get_parameter("2.weight").shape[:2] == (8, 3)


class Moody(nn.Module):
    """Asks self.training what to do."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv, self.bn, self.fc = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Linear(8, 4)
        self.aux = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.bn(self.conv(x))).mean((2, 3))
        if self.kind == "dropout":
            x = F.dropout(x, 0.5, self.training)
        if self.kind == "aux" and self.training:
            return self.fc(x), self.aux(x)
        return self.fc(x * 2 if self.kind == "scale" and self.training else x)


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("dropout", "another training step: output 0 differs"),
        ("scale", "another training step: output 0 differs"),
        ("aux", "2 outputs in training mode, the compact one 1"),
    ],
)
def test_a_forward_that_asks_for_the_mode_is_refused(kind: str, found: str) -> None:
    model = Moody(kind).train()
    kill(model, {"bn": [1]})
    with pytest.raises(UserError) as caught:
        resume(model, image())
    assert found in caught.value.found and "nn.Dropout instead of self.training" in caught.value.remedy


def test_parameters_the_forward_never_uses_leave_the_optimizer() -> None:
    model = Moody("plain").train()
    kill(model, {"bn": [1]})
    groups = [{"params": model.fc.parameters()}, {"params": model.aux.parameters()}]
    optimizer: Optimizer = SGD(groups, 0.1, momentum=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert len(optimizer.state) == 4
    resumed = shrink_training(model, (image(),), optimizer)
    assert [len(g["params"]) for g in resumed.optimizer.param_groups] == [2, 0]
    assert len(resumed.optimizer.state) == 2
    batch = image(), torch.tensor([0, 1, 2, 3])
    assert step(resumed.compact.model, resumed.optimizer, batch) == pytest.approx(step(model, optimizer, batch))


def test_the_check_of_the_step_sees_every_part() -> None:
    """A wrong gradient, statistic, output or shape of the compact network is found and named."""
    model = residual().train()
    x = batches(1)[0][0]
    from pipeline.surgery.shrink import cut_of
    from pipeline.surgery.trace import trace

    cut = cut_of(trace(model, (x,)), None)[2]
    compact = shrink(model, (x,)).model.train()
    dense, good = step_of(model, (x,)), step_of(compact, (x,))
    assert check_step(dense, good, cut, 1e-6) < 1e-9
    for part, name, expected in (
        ("gradients", "one.conv2.weight", "the gradient of one.conv2.weight differs"),
        ("buffers", "two.bn1.running_var", "two.bn1.running_var differs"),
    ):
        bad = step_of(compact, (x,))
        getattr(bad, part)[name].view(-1)[0] += 1e-3
        with pytest.raises(UserError, match=expected):
            check_step(dense, bad, cut, 1e-6)
    with pytest.raises(UserError, match="output 0 differs"):
        check_step(dense, step_of(residual(seed=5), (x,)), cut, 1e-6)


def test_random_gradients_are_alike_for_both_and_leave_nothing_behind() -> None:
    model = residual().train()
    x = batches(1)[0][0]
    before = {n: t.clone() for n, t in model.state_dict().items()}
    first, again = step_of(model, (x,)), step_of(model, (x,))
    assert all(torch.equal(first.gradients[n], again.gradients[n]) for n in first.gradients)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters()) and first.outputs[0].dtype == torch.float64
