"""What a network is trained for: a task is one file (its `Options`, and `NAME(options) -> Task`) and one row here.

Training, check and export know a task by these few functions alone. Tensors are of a batch of B images; a data source
gives the targets, and the task says what they mean. Outputs are one tensor (B, ...), or several by their names where
`Task.outputs` has more than one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from pipeline.data import Dataset
    from runtime.backends import Array
    from runtime.measure.judged import Judge, Statistics
    from runtime.measure.statistics import Metric


TASKS = {
    "classification": "pipeline.tasks.classification:classification",
    "multilabel": "pipeline.tasks.multilabel:multilabel",
    "segmentation": "pipeline.tasks.segmentation:segmentation",
    "detection": "pipeline.tasks.detection:detection",
}


@dataclass(frozen=True)
class Pooled:
    """A metric that is not the mean of the images' scores, e.g. mIoU: computed from statistics of all images."""

    statistics: Callable[[Any, Tensor], Tensor | Sequence[Tensor]]
    """(outputs, targets) -> of each image: (B, ...), or B tensors where images have unlike numbers of things. An image
    with an output that is not a number counts as wrong in all."""
    metric: Metric
    """(statistics of N images, how often each counts (R, N)) -> (R,): 0 is worst, 1 is best. Arrays, (N, ...) or a list
    of N, on the CPU. Rows of `counts` are resamples of the images: two networks are compared by a bootstrap."""
    constant: Callable[[Statistics], float] | None = None
    """Statistics -> the metric of the best answer that is the same for every image and place: a network that is not
    above it has learnt nothing, and the verdict says so."""
    by_class: Callable[[Statistics], Array] | None = None
    """Statistics -> the metric of each class (K,), NaN where no image has it; the report then has them class by
    class."""
    beside: Mapping[str, Metric] = field(default_factory=dict)
    """Other metrics of the same statistics by their names, which the report shows and nothing is judged by."""


@dataclass(frozen=True)
class Task:
    """`score` is averaged over the test images to the metric: 0 is worst and 1 is best for an image. With `pooled` that
    is the metric, and the score orders the images that a network lost."""

    metric: str
    """Its name, for people, e.g. "accuracy"."""
    loss: Callable[[Any, Tensor], Tensor]
    """(what the network answers while it trains, targets) -> scalar with gradient."""
    score: Callable[[Any, Tensor], Tensor]
    """(outputs, targets) -> (B,): bool, or floats in 0..1."""
    answer: Callable[[Tensor], Tensor] | None = None
    """outputs -> int64 (B,): the class of each image, an index of the data's names; None where an image has no one
    class. With it the report says how often two forms agree, and what became of each class."""
    certainty: Callable[[Any, Tensor], Tensor] | None = None
    """(outputs, targets) -> floats (B,) that fall as an answer gets worse, for the order of the worst images; None: the
    score."""
    pooled: Pooled | None = None
    targets: str = "class"
    """What the data source must give of each image: "class" int64 (B,), "labels" float32 (B, K) of 0 and 1, "map" uint8
    (B, H, W) with 255 where there is no label, "boxes" (padded to one number of rows), or a word of your own source's;
    see `Dataset.targets`."""
    outputs: tuple[str, ...] = ("logits",)
    """Names of what `named` gives, in order: the outputs of the ONNX graphs and engines."""
    named: Callable[[Any], Any] | None = None
    """What the network answers in eval mode -> the outputs: a tensor, or a dict with the names of `outputs`; traced
    into the graphs. None: the network answers with one tensor, which is taken as it is."""
    fitted: Callable[[Dataset], Task] | None = None
    """(data) -> the task as its training images ask for, e.g. with weights of its classes; raises UserError where it
    cannot be of these. None: it asks for nothing."""
    demand: Callable[[Any, str, int, tuple[int, ...]], None] | None = None
    """(answer to 2 images in eval mode, the network's name, number of classes, (C, H, W)): raises UserError where the
    network is none for this task. Asked before any training."""
    distance: Callable[[Any, Any, float], Tensor] | None = None
    """(student's answer, teacher's answer, temperature) -> scalar with gradient: how far the student is from the dense
    network; None: nothing is distilled."""
    draw: Callable[[Array, Array, Sequence[Any], Sequence[str]], Array] | None = None
    """(image uint8 (H, W, 3), its target, outputs (1, ...) of the networks before and after, names of classes) -> uint8
    (H', W', 3): one picture of a worst image for the report; None: the image alone."""
    completed: Callable[[Path, Path, Array], Path] | None = None
    """(an ONNX graph of the outputs, where to write, images (N, C, H, W)): writes the graph with the task's own last
    step in it, beside the others, e.g. non-maximum suppression; None: there is none."""
    completion: str = ""
    """Name of that step, in the name of its files: dense.fp32.NAME.onnx."""
    drawn: str = ""
    """What the picture shows, for its caption, e.g. "image, truth, before, after", and what an image is scored by."""

    def scores(self, outputs: Any, targets: Array) -> Array:
        """`score` of arrays."""
        result: Array = on_arrays(self.score, outputs, targets)
        return result

    def answers(self, outputs: Any) -> Array | None:
        """`answer` of an array."""
        return None if self.answer is None else on_arrays(self.answer, outputs)

    def certainties(self, outputs: Any, targets: Array) -> Array:
        """`certainty` of arrays."""
        result: Array = on_arrays(self.certainty or self.score, outputs, targets)
        return result

    def judge(self, *, whole: bool = False) -> Judge:
        """How sessions are judged by this task; `whole`: all their outputs are needed afterwards."""
        from runtime.measure.judged import Judge

        pooled, whole = self.pooled, whole or self.answer is not None
        if pooled is None:
            return Judge(self.scores, self.outputs, whole=whole)
        function = pooled.statistics
        return Judge(self.scores, self.outputs, lambda o, t: on_arrays(function, o, t), pooled.metric, whole)

    def outputs_of(self, answer: Any) -> Any:
        """What the network answers in eval mode as the outputs of this task."""
        return answer if self.named is None else self.named(answer)

    def network(self, network: nn.Module) -> nn.Module:
        """The network with the outputs of this task: a copy that shares all parts, with their names."""
        if self.named is None:
            return network
        from pipeline.tasks.answers import answering

        return answering(network, self.named)


def on_arrays(function: Callable[..., Any], *arrays: Any) -> Any:
    """What a function of tensors says of arrays (or of several by name), which are copied: an array, or a list of
    them."""
    import torch

    result = function(
        *({k: torch.tensor(v) for k, v in a.items()} if isinstance(a, Mapping) else torch.tensor(a) for a in arrays)
    )
    return result.numpy() if isinstance(result, torch.Tensor) else [one.numpy() for one in result]
