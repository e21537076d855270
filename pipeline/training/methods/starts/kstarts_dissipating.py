"""K-starts, then dissipating gradients: the fittest of several random masks of moderate density is trained on, and its
weights that hardly move go until the density is met (after the abstract of arXiv 2209.02201; what it leaves open is
ours).

The masks that are tried have the square root of the density, half of its logarithm. Weights are compared with what
they were before the first step, decayed as often as the winner's were.
"""

from __future__ import annotations

from pydantic import Field

from pipeline.config.options.masks import Tried
from pipeline.config.section import Positive
from pipeline.training.hooks import Hooks, Training
from pipeline.training.methods.starts.dissipating import Dissipating
from pipeline.training.methods.starts.kstarts import KStarts, demand_longer
from pipeline.training.methods.weights.layers import counts_of
from pipeline.training.state import TrainState


class Options(Tried):
    epochs_of_removal: Positive = Field(
        default=5, description="Epochs of the winner, behind its try, after each of which weights are removed."
    )


def kstarts_dissipating(options: Options, training: Training) -> Hooks:
    """Raises UserError where the density cannot be met, or the training has no epochs for the removals."""
    epochs = options.try_epochs + options.epochs_of_removal
    demand_longer(training, epochs, "sparse.try_epochs and sparse.epochs_of_removal", "for what is left to recover")
    counts = counts_of(options, training.network)
    first = KStarts(options.model_copy(update={"density": options.density**0.5}), training)
    second = Dissipating(counts, options.epochs_of_removal, training, first.masks, begins=first.tries)

    def begin(state: TrainState) -> None:
        first.begin(state)
        second.begin(state)

    def after_step(step: int, stepped: bool) -> None:
        first.after_step(step, stepped)
        if step + 1 == first.tries:
            for position in range(first.position(step) + 1):
                second.decay(position)
        second.after_step(step, stepped, first.position(step))

    return Hooks(
        begin=begin, masks=first.masks, carried={"start": second.start}, steps=first.steps, position=first.position,
        after_step=after_step, figures=first.figures, state=first.state, load=first.load,
    )  # fmt: skip
