"""The sections of the two trainings."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.config.section import Fraction, NonNegative, Positive, Section, impossible, once

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
    augment: Literal["none", "shift", "crop_flip", "zero_crop_flip", "resize_crop_flip"] = Field(
        default="none",
        description="shift: random translation by 1/8 of the side; crop_flip: reflect-pad 1/8, crop, mirror; "
        "zero_crop_flip: the same with zeros; resize_crop_flip: images of a folder resized to 8/7..15/7 of "
        "data.image_size, cropped, mirrored.",
    )
    auto_augment: Literal["none", "randaugment", "trivialaugment"] = Field(
        default="none",
        description="randaugment: two of torchvision's operations at magnitude 9 of 30 on each image, after `augment`; "
        "trivialaugment: one, at a magnitude drawn from the wide range.",
    )
    mixup: NonNegative = Field(
        default=0.0, description="Alpha of mixup (arXiv 1710.09412): images and labels of two are blended; 0: none."
    )
    cutmix: NonNegative = Field(
        default=0.0,
        description="Alpha of cutmix (arXiv 1905.04899): a patch comes from another image; with mixup one of the two a "
        "batch; 0: none.",
    )
    sampling: Literal["shuffled", "balanced"] = Field(
        default="shuffled",
        description="balanced: an epoch has as many images of each class, those of small classes several times.",
    )
    ema: Share | None = Field(
        default=None,
        description="Decay of averaged weights, which the training is judged by and leaves, e.g. 0.999; with "
        "data.validation it leaves the better of the two; null: none.",
    )
    best_epoch: bool = Field(
        default=False,
        description="Leave the weights of the epoch that scored best on data.validation; of a sparse training, after "
        "its target is reached.",
    )
    patience: Positive | None = Field(
        default=None,
        description="Stop after as many epochs without a better one on data.validation, and leave the best; of a "
        "sparse training, after its target is reached; null: train to the end.",
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
    log: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = Field(
        default=(), description="What gets the figures of every epoch beside history.jsonl; each is an extra."
    )

    @model_validator(mode="after")
    def _loggers_are_listed_once(self) -> Self:
        once("log", self.log)
        return self


class Dense(Training):
    epochs: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        default=40, description="Passes over the training split; 0: model.weights are the baseline as they are."
    )


class Distill(Section):
    """Loss = (1 - weight) * cross entropy + weight * temperature^2 * KL(dense || sparse), both at the temperature
    (Hinton et al., arXiv 1503.02531)."""

    weight: Annotated[float, Field(gt=0, le=1)] = Field(default=0.5, description="Share of what the dense says.")
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        default=4.0, description="Both logits are divided by it."
    )


class Target(Section):
    """Exactly one of macs, channels and latency_ms."""

    macs: Share | None = Field(default=None, description="Share of the dense network's MACs to end with.")
    channels: Share | None = Field(default=None, description="Share of the channels that can go to end with.")
    latency_ms: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="p50 latency to end with, of `batch` images on `backend`."
    )
    backend: Literal["onnxruntime", "openvino", "tensorrt", "tensorrt_rtx"] = Field(
        default="onnxruntime", description="What latency_ms is measured with."
    )
    batch: Positive = Field(default=32, description="Images a launch, for latency_ms.")
    reached_at: Share = Field(
        default=0.5, description="Share of the steps after which the target is reached; then survivors recover."
    )
    floor: Fraction = Field(default=0.1, description="Share of every group of channels that steering leaves alive.")

    @model_validator(mode="after")
    def _one_is_given(self) -> Self:
        figures = [key for key in ("macs", "channels", "latency_ms") if getattr(self, key) is not None]
        if len(figures) != 1:
            raise impossible(
                figures[1] if figures else "macs",
                f"target has {' and '.join(figures) or 'no figure'}",
                "expected one of macs, channels, latency_ms",
                "give one, e.g. {macs: 0.35}",
            )
        return self
