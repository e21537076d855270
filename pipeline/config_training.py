"""The sections of the two trainings."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.config_section import Fraction, NonNegative, Positive, Section, impossible

Share = Annotated[float, Field(gt=0, lt=1)]


class Training(Section):
    epochs: Positive = Field(default=40, description="Passes over the training split.")
    batch_size: Positive = Field(default=128, description="Images a step, over all processes.")
    optimizer: Literal["sgd", "adamw"] = Field(
        default="sgd", description="sgd: with `momentum`; adamw: betas 0.9, 0.999."
    )
    lr: NonNegative = Field(default=0.1, description="Peak learning rate.")
    momentum: Fraction = Field(default=0.9, description="Momentum of SGD.")
    weight_decay: NonNegative = Field(
        default=5e-4, description="Decoupled weight decay, times the learning rate, on all parameters."
    )
    schedule: Literal["one_cycle", "step", "milestones", "constant"] = Field(
        default="one_cycle",
        description="one_cycle: cosine up and down; step: times `step_factor` every `step_epochs`; milestones: times "
        "`step_factor` at each of `milestones`; constant.",
    )
    step_epochs: Positive = Field(default=77, description="Epochs between two drops of the step schedule.")
    step_factor: Fraction = Field(default=0.2, description="Factor of each drop of the step and milestones schedules.")
    milestones: tuple[Positive, ...] = Field(
        default=(30, 70, 90), description="Epochs after which the milestones schedule drops."
    )
    warmup: Fraction = Field(
        default=0.0, description="Share of the steps over which the learning rate rises linearly; not for one_cycle."
    )
    norm_momentum: Share | None = Field(
        default=0.1,
        description="Share of a batch in the running statistics of batch norms, through which a census looks: where "
        "they lag behind, it takes living channels for dead; null: as the network has it.",
    )
    label_smoothing: Fraction = Field(default=0.0, description="Label smoothing of the cross entropy.")
    augment: Literal["none", "shift", "crop_flip", "zero_crop_flip", "resize_crop_flip"] = Field(
        default="none",
        description="shift: random translation by 1/8 of the side; crop_flip: reflect-pad 1/8, crop, mirror; "
        "zero_crop_flip: the same with zeros; resize_crop_flip: images of a folder resized to 8/7..15/7 of "
        "data.image_size, cropped, mirrored.",
    )
    amp: Literal["none", "bf16", "fp16"] = Field(
        default="none", description="Number format of the forward pass; weights stay fp32. fp16 with loss scaling."
    )
    channels_last: bool = Field(default=False, description="Tensors as (N, H, W, C) in memory.")
    compile: bool = Field(default=False, description="torch.compile the network, anew after each removal.")
    deterministic: bool | None = Field(
        default=None, description="Only operations that give the same bits again; null: on a CPU, not on a GPU."
    )
    checkpoint_s: NonNegative = Field(
        default=60.0, description="Seconds between two checkpoints that a killed run goes on from."
    )
    tensorboard: bool = Field(default=False, description="Write TensorBoard events (the tensorboard extra) as well.")


class Target(Section):
    """Exactly one of macs, channels and latency_ms."""

    macs: Share | None = Field(default=None, description="Share of the dense network's MACs to end with.")
    channels: Share | None = Field(default=None, description="Share of the channels that can go to end with.")
    latency_ms: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="p50 latency to end with, of `batch` images on `backend`."
    )
    backend: Literal["onnxruntime", "tensorrt", "tensorrt_rtx"] = Field(
        default="onnxruntime", description="What latency_ms is measured with."
    )
    batch: Positive = Field(default=32, description="Images a launch, for latency_ms.")
    reached_at: Share = Field(
        default=0.5, description="Share of the steps after which the target is reached; then survivors recover."
    )
    floor: Fraction = Field(default=0.1, description="Share of every group of channels that steering leaves alive.")

    @model_validator(mode="after")
    def _one_is_given(self) -> Self:
        given = [key for key in ("macs", "channels", "latency_ms") if getattr(self, key) is not None]
        if len(given) != 1:
            raise impossible(
                given[1] if given else "macs",
                f"target has {' and '.join(given) or 'no figure'}",
                "expected one of macs, channels, latency_ms",
                "give one, e.g. {macs: 0.35}",
            )
        return self


class Demp(Training):
    lambda_peak: NonNegative = Field(
        default=0.03, description="Peak weight of the L1 penalty on all normalisation scales; unused with a target."
    )
    sigma_peak: NonNegative = Field(
        default=5e-5, description="Peak standard deviation of the noise on live units, after each step."
    )
    span: Fraction = Field(default=1.0, description="Share of the steps that the one-cycle of lambda and sigma spans.")
    cost: Literal["plain", "macs", "latency"] = Field(
        default="plain",
        description="Weight of each scale in the penalty. plain: 1, as published; macs, latency: what its channel "
        "costs, with mean 1.",
    )
    target: Target | None = Field(
        default=None, description="The outcome to steer to, e.g. {macs: 0.35}; null: lambda_peak decides."
    )
    prune_every: Positive | Literal["auto", "end"] = Field(
        default="auto",
        description="Steps between two removals of dead channels; auto: an eighth of the training; end: none before "
        "the end; unused with a target, whose periods they end.",
    )
    census_every: Positive = Field(default=1, description="Epochs between two censuses of dead channels.")
    census_batches: Positive = Field(default=3, description="Batches a census looks at.")
    census_batch_size: Positive = Field(default=512, description="Images a census batch.")

    @model_validator(mode="after")
    def _something_can_die(self) -> Self:
        if self.lambda_peak == 0 and self.sigma_peak == 0 and self.target is None:
            raise impossible(
                "lambda_peak",
                "lambda_peak and sigma_peak are both 0, so no channel would die",
                "expected at least one above 0",
                "set lambda_peak, e.g. 0.03",
            )
        if self.span == 0:
            raise impossible(
                "span", "span is 0", "expected above 0 and at most 1", "set it to 1.0 for the whole training"
            )
        return self
