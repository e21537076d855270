"""What a training method adds to a training: a few functions of the step, each with a default that does nothing.

A method is one file in `training.methods` (or a user's own): a class `Options` of the keys that a config may set, and a
function `NAME(options, training) -> Hooks`. Steps count from 0 over the whole training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pipeline.training.compute.distributed import Ranks
    from pipeline.training.masks import Masks
    from pipeline.training.state import TrainState

Dead = Mapping[str, "Tensor"]
"""Watched output -> bool (channels,), True = dead."""


@dataclass(frozen=True)
class Training:
    """What a method may know of the training it joins, before the first step."""

    first: Callable[[], nn.Module | None]
    """A weak reference to the network as it begins: its memory is to be of use after a removal."""
    steps: int
    """Of a training without a method; `Hooks.steps` may ask for more."""
    steps_per_epoch: int
    rate: Callable[[int], float]
    """Learning rate of a training without a method at a step; in a loop of one's own, at a step that is over."""
    samples: Callable[[int, int, int], Iterator[tuple[Tensor, ...]]]
    """(step, batches, batch size) -> inputs of the network, not augmented, others at each step; this process's share.
    In a loop of one's own the last batches that the network has seen, whatever their number and size."""
    example: tuple[Tensor, ...]
    """Inputs of 2 samples, on the device."""
    ranks: Ranks
    seed: int = 0
    align: int = 1
    """Multiple of channels that surgery will keep; a target is reached with it."""
    removal_align: int = 1
    """Dead channels stay up to this multiple until surgery."""
    threads: int = 2
    """Of the CPU, where latency is measured."""
    labelled: Callable[[int, int, int], Iterator[tuple[tuple[Tensor, ...], Any]]] | None = None
    """As `samples`, each with its labels; None in a loop of one's own."""
    loss: Callable[[Any, Any], Tensor] | None = None
    """(outputs, labels) -> scalar; None in a loop of one's own."""
    note: Callable[[str], None] = print
    """Tells the user."""

    @property
    def network(self) -> nn.Module:
        """As it begins, for a look before the first step; later networks come through `Hooks.begin`."""
        network = self.first()
        assert network is not None, "a method does not keep the first network"
        return network


Method = Callable[[Any, Training], "Hooks"]
"""(options, training) -> hooks; `options` are the method's own `Options`, checked."""


def _nothing(*_: Any) -> None:
    return None


def _never(step: int) -> bool:
    return False


def _empty(*_: Any) -> dict[str, Any]:
    return {}


def _same_step(step: int) -> int:
    return step


def same_network(network: nn.Module, step: int) -> nn.Module:
    return network


def _no_state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    return {}, {}


@dataclass(frozen=True)
class Hooks:
    """The order within a step: `penalty`, backward, `after_backward`, the optimizer's step at `rate`, the masks,
    `after_step`, where something is `due` `dead` and the removal of what it names, `figures` where an epoch ends, and
    `between`."""

    begin: Callable[[TrainState], None] = _nothing
    """Work on this network and optimizer from now on: at the start, after a removal or another change of the network,
    and after a restart, before `load`."""
    penalty: Callable[[int], Tensor | None] = _nothing
    """A scalar to add to the loss, with gradient."""
    after_backward: Callable[[int], None] = _nothing
    """Gradients are complete and unscaled, parameters are as they were; may change gradients in place."""
    after_step: Callable[[int, bool], None] = _nothing
    """(step, stepped): the optimizer has made its step, gradients are still there; may change parameters in place. With
    `stepped` False it made none: gradients overflowed and are not to be used."""
    between: Callable[[int], None] = _nothing
    """The step is over, and so is what the history tells of it: work before the next, such as begins a new round."""
    due: Callable[[int], bool] = _never
    """Whether `dead` is asked after this step, which takes its time."""
    dead: Callable[[int], Dead | None] = _nothing
    """Channels to remove after this step; the proof decides which of them go."""
    pinned: Callable[[], Mapping[str, Tensor]] = _empty
    """Parameter name -> bool mask of its shape: entries that `after_step` holds at what they are, so that channels
    which a gradient reaches there can be removed nevertheless. Those of `masks` are known."""
    masks: Masks | None = None
    """Of weights that are held at 0: put into force after each step, cut and saved with the network."""
    carried: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """Key -> parameter name -> tensor of the parameter's shape: cut, saved and restored with the network, in place;
    `begin` finds them cut already."""
    steps: int | None = None
    """Of the whole training, rounds included; None: as without a method. The last step ends an epoch."""
    position: Callable[[int], int] = _same_step
    """The step of a training without a method that this step repeats, in the order of its data, in what is random, and
    in its learning rate: for rounds that go back to step k."""
    rate: Callable[[int], float | None] = _nothing
    """Learning rate of this step; None: that of its position."""
    build: Callable[[nn.Module, int], nn.Module] = same_network
    """The network to train from this step on, made of the plain one or of the one so far; asked at the start, after a
    restart and after each step that `rebuilds`. The last must be the plain one again."""
    rebuilds: Callable[[int], bool] = _never
    """Whether `build` makes another network after this step."""
    figures: Callable[[int], dict[str, Any]] = _empty
    """JSON values for the history at the end of an epoch, whose last step this is. The network is in training mode."""
    census: Callable[[], Dead] | None = None
    """The final verdict; None: the channels that are dead on some training samples."""
    state: Callable[[], tuple[dict[str, Tensor], dict[str, Any]]] = _no_state
    """What a checkpoint keeps of the method beside `masks` and `carried`: tensors and plain JSON."""
    load: Callable[[Mapping[str, Tensor], Mapping[str, Any]], None] = _nothing
    """Go on from what `state` gave."""
