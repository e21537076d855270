"""report.json's `surgery`: what was cut, on what evidence."""

from __future__ import annotations

from pydantic import Field

from .parts import Part, Reasoned


class Layer(Part):
    """Output channels of a layer; `after` is `before` minus what was cut out, which may be less than what is dead."""

    layer: str
    before: int
    dead: int
    after: int


class Evidence(Part):
    """What the removal after training rests on; with `removed_in_training` these make up the channels that are gone."""

    by_proof: int
    by_measurement: int


class Law(Part):
    """compact(x) == dense(x) in float64, measured channels held at zero where `held`; operators `single` in float32."""

    max_rel_diff: float
    tolerance: float
    inputs: tuple[str, ...]
    held: bool
    single: tuple[str, ...] = ()


class Confirmation(Part):
    """The census taken again on the whole training split: a channel that fired once was kept as alive."""

    images: int
    revived: int
    largest_activation: dict[str, float] = Field(
        description="Activation -> largest value of a channel that stays dead."
    )
    approximate: list[str] = Field(description="Activations other than ReLU, where a measured death is not exactly 0.")


class Moved(Part):
    """How far the outputs of compact are from those of the network that was cut, nothing held, in fp32."""

    images: int
    max_abs: float
    top1_changed: int


class Change(Part):
    """On the test split, and on the training split where measured deaths are approximate."""

    test: Moved
    train: Moved | None


class Candidate(Part):
    """One choice of `align: auto`; p50 over all rounds, its lowest and highest, None where nothing was timed."""

    align: str
    channels: int
    p50_ms: float | None
    p50_ms_low: float | None
    p50_ms_high: float | None
    chosen: bool


class Alignment(Part):
    """What each alignment would have cost, timed where the cut was made; `backend` is None where nothing was timed."""

    backend: str | None
    device: str
    threads: int
    batch: int
    candidates: list[Candidate]


class Folded(Part):
    layer: str
    bias: str
    largest: float


class Frozen(Part):
    where: str
    reason: str
    channels: int


class Surgery(Reasoned):
    channels_before: int | None
    channels_dead: int | None
    channels_after: int | None
    removed_in_training: int = Field(default=0, description="Channels that the training cut out as they died.")
    removal_rel_diff: float | None = Field(
        default=None, description="Largest relative float64 difference that a removal during training made."
    )
    max_abs_diff: float | None = Field(
        description="Largest fp32 difference of compact from dense with removed held at 0."
    )
    evidence: Evidence | None
    confirmation: Confirmation | None
    change: Change | None
    law: Law | None
    layers: list[Layer]
    folded: list[Folded] = Field(description="Layers whose bias took up constant channels.")
    alignment: Alignment | None
    frozen: list[Frozen] = Field(description="Channels that could not be cut, where and why.")
