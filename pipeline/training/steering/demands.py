"""What a network and a machine must have for channels to die as asked, and what is told of it before the first step."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from export.engines import EngineUnavailable, choose
from pipeline.config.training import Target
from pipeline.surgery.watch import anatomy
from pipeline.training.hooks import Training
from pipeline.training.steering.channels import channels_of
from pipeline.training.steering.controller import Steering
from runtime.errors import UserError


def trained_scales(model: nn.Module) -> list[Tensor]:
    """Every trained gamma, in the order of the modules."""
    norms = (module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
    return [norm.weight for norm in norms if norm.affine and norm.weight.requires_grad]


def batch_norm_scales(model: nn.Module) -> list[Tensor]:
    """The same. Raises UserError where there is none."""
    if not (scales := trained_scales(model)):
        raise UserError(
            "the network has no batch norm with a trained scale", "batch norms for DemP to act on",
            "choose a network with batch norm, e.g. torchvision:vgg16_bn for torchvision:vgg16",
        )  # fmt: skip
    return scales


def demand_something_dies(training: Training, gates: bool) -> None:
    """Raises UserError where there is neither a batch norm nor, with `gates`, anything that they could close."""
    network, none = training.network, "the network has no batch norm with a trained scale"
    if trained_scales(network):
        return
    if not gates:
        raise UserError(
            none, "batch norms, or a target that DemP steers to by gates on channels",
            "set the target, e.g. {macs: 0.5}, and leave gates: true",
        )  # fmt: skip
    traced = anatomy(network, training.example).traced
    channels = channels_of(traced, network, [p for p in network.parameters() if p.requires_grad])
    if not (channels.can_go(channels.everything) & (channels.costs.members > 0)).any():
        reason = "" if traced.frozen is None else f" ({traced.frozen})"
        raise UserError(
            f"{none}, and none of its channels can be cut{reason}", "layers whose channels are their own and trained",
            "`demport shrink --help` and docs/surgery.md say what can be cut",
        )  # fmt: skip


def gates_of(steering: Steering, scales: int) -> str:
    """What is told of gates before the first step."""
    names, staying = steering.gated, steering.staying
    beside = f", beside {scales} batch norms" if scales else ""
    rest = f"; {some(staying)} as wide as before, for nothing can be cut there" if staying else ""
    return f"gates{beside}: channels of {some(names)} die by first-order importance and a fade{rest}"


def some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def demand_backend(target: Target | None) -> None:
    """Raises UserError where a latency is asked for on engines that cannot be built and timed here."""
    if target is None or target.latency_ms is None or target.backend == "onnxruntime":
        return
    try:
        choose(target.backend, ("CURRENT",))
    except EngineUnavailable as error:
        raise UserError(
            f"sparse.target.backend {target.backend}: {error}", "what its engines can be built and timed with",
            "set sparse.target.backend: onnxruntime, or train where there is a GPU",
        ) from None  # fmt: skip
