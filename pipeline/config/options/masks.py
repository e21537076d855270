"""Keys of methods that mask weights."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.section import Positive, Section

Density = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]


class Masking(Section):
    """Of weights that are held at 0."""

    @property
    def removes(self) -> bool:
        """Masks remove no channel before the end; surgery's proof finds those that go."""
        return False


class Scored(Masking):
    """Of masks with a density. Biases, normalisations and learned scalars are never masked."""

    density: Density = Field(
        default=0.1, description="Share of the weights of convolutions and linear layers that live."
    )


class Masked(Scored):
    """Of masks whose counts are given layer by layer."""

    distribution: Literal["erk", "er", "uniform"] = Field(
        default="erk",
        description="How the living weights spread over the layers. erk: small layers are denser (Erdos-Renyi-Kernel); "
        "er: the same without kernel sizes; uniform: the same share in each.",
    )
    dense: tuple[str, ...] = Field(default=(), description="Layers that stay dense, by module name, e.g. [fc].")
    densities: dict[str, Density] = Field(
        default={},
        description="Densities of single layers, by module name, e.g. {fc: 0.2}; `density` is that of the others.",
    )


class Rewired(Masked):
    """Of masks that move while the network trains."""

    every: Positive | Literal["epoch"] = Field(default=100, description="Steps between two changes of the masks.")
    drop: Share = Field(
        default=0.3, description="Share of a layer's living weights that a change moves; falls as a cosine to 0."
    )
    until: Share = Field(default=0.75, description="Share of the steps after which the masks stay.")


class Evolved(Rewired):
    """Of SET: masks that move after each epoch."""

    distribution: Literal["erk", "er", "uniform"] = Field(
        default="er", description="How the living weights spread over the layers; the paper's is er (Erdos-Renyi)."
    )
    every: Positive | Literal["epoch"] = Field(
        default="epoch", description="Steps between two changes of the masks; the paper changes them after each epoch."
    )
    drop: Share = Field(
        default=0.3, description="Share of a layer's positive, and of its negative, weights that a change moves."
    )
    until: Share = Field(default=1.0, description="Share of the steps after which the masks stay.")
    rewire_last: bool = Field(default=False, description="Whether the last layer's mask moves too.")


class Tried(Masked):
    """Of K-starts: several random masks, of which the fittest is trained on."""

    starts: Positive = Field(default=10, description="Masks that are tried.")
    try_epochs: Positive = Field(default=1, description="Epochs of each try.")
    fitness: Literal["weights", "gradients", "both"] = Field(
        default="weights",
        description="What makes a mask fit: the sum of |w| of its weights, that of |gradient| over the try, or both, "
        "each divided by its mean over the tries.",
    )
