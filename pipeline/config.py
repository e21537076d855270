"""The one frozen config tree: every default and the sentence that explains it live here.

A section belongs to a stage; a stage reads its own section and nothing else, so a change in one section
re-runs that stage and what depends on it. Reading files and overrides is `config_file.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Precision = Literal["fp32", "fp16"]


class Section(BaseModel):
    """Frozen, strict, and closed: an unknown key or a value of another type is an error."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Data(Section):
    source: str = Field("digits", description="digits | npz:FILE | torchvision:NAME | imagefolder:DIR | module:function")
    image_size: Positive | None = Field(
        None, description="Side in pixels that images of a folder are resized and cropped to; null keeps fixed-size sets as they are."
    )
    root: str = Field("~/.cache/demport", description="Folder that torchvision downloads into.")


class Model(Section):
    name: str = Field(
        "demo:resnet", description="demo:resnet | cifar:NAME | torchvision:NAME | timm:NAME | module:function"
    )
    weights: str | None = Field(None, description="safetensors file to start both trainings from; null starts afresh.")
    args: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments for the model's constructor.")


class Training(Section):
    epochs: Positive = Field(40, description="Passes over the training split.")
    batch_size: Positive = Field(128, description="Images a step.")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="sgd: momentum 0.9; adamw: betas 0.9, 0.999.")
    lr: NonNegative = Field(0.1, description="Peak learning rate.")
    momentum: Fraction = Field(0.9, description="Momentum of SGD.")
    weight_decay: NonNegative = Field(5e-4, description="Decoupled weight decay, times the learning rate, on all parameters.")
    schedule: Literal["one_cycle", "step", "constant"] = Field(
        "one_cycle", description="one_cycle: cosine up and down; step: times `step_factor` every `step_epochs`; constant."
    )
    step_epochs: Positive = Field(77, description="Epochs between two drops of the step schedule.")
    step_factor: Fraction = Field(0.2, description="Factor of each drop of the step schedule.")
    label_smoothing: Fraction = Field(0.0, description="Label smoothing of the cross entropy.")
    augment: Literal["none", "shift", "crop_flip"] = Field(
        "none", description="shift: random translation by 1/8 of the side; crop_flip: reflect-pad 1/8, crop, mirror."
    )


class Demp(Training):
    lambda_peak: NonNegative = Field(0.03, description="Peak weight of the L1 penalty on all normalisation scales.")
    sigma_peak: NonNegative = Field(5e-5, description="Peak standard deviation of the noise on live units, after each step.")
    span: Fraction = Field(1.0, description="Share of the steps that the one-cycle of lambda and sigma spans.")
    census_every: Positive = Field(1, description="Epochs between two censuses of dead channels.")
    census_batches: Positive = Field(3, description="Batches a census looks at.")
    census_batch_size: Positive = Field(512, description="Images a census batch.")


class Surgery(Section):
    align: Literal[1, 2, 4, 8, 16, 32, 64] = Field(
        16, description="Keep the most alive of the dead channels up to this multiple (exact: they are zeros)."
    )
    residual: Literal["tied", "untied"] = Field(
        "tied", description="tied: a channel of a residual stream goes only if dead at every member; untied: each block keeps its own."
    )
    law_tolerance: NonNegative = Field(1e-9, description="Largest relative difference of compact and dense in float64.")


class Onnx(Section):
    opset: Annotated[int, Field(ge=18, le=23)] = Field(18, description="ONNX operator set of the exported graph.")
    max_abs_diff: NonNegative = Field(1e-4, description="Largest absolute difference of ONNX Runtime's logits from torch's.")


class Simplify(Section):
    enabled: bool = Field(True, description="Run onnxsim; off keeps the exported graph.")
    max_abs_diff: NonNegative = Field(1e-4, description="Largest absolute difference of the simplified graph from its input.")


class PrecisionSection(Section):
    graphs: tuple[Literal["fp16"], ...] = Field(("fp16",), description="Lower precisions to write graphs for, beside fp32.")


class Profile(Section):
    min: Positive = Field(1, description="Smallest batch the engine takes.")
    opt: Positive = Field(32, description="Batch the engine is tuned for.")
    max: Positive = Field(256, description="Largest batch the engine takes.")


class Engine(Section):
    flavour: Literal["auto", "tensorrt", "tensorrt_rtx", "none"] = Field(
        "auto", description="auto: tensorrt where it and a GPU are present, else tensorrt_rtx ahead of time; none builds no engine."
    )
    targets: tuple[Literal["SM75", "SM80", "SM86", "SM89", "SM120", "SM121", "CURRENT"], ...] = Field(
        ("SM86", "SM89"), description="Compute capabilities of ahead-of-time tensorrt_rtx engines, one engine each."
    )
    precisions: tuple[Precision, ...] = Field(("fp32", "fp16"), description="Precisions of the engines.")
    profile: Profile = Field(default_factory=lambda: Profile(), description="Batch sizes of the optimisation profile.")
    workspace_mib: Positive = Field(1024, description="Scratch memory the builder may use, in MiB.")
    tf32: bool = Field(False, description="Let fp32 layers use TF32 tensor cores (about three decimal digits).")
    time_limit_s: Positive = Field(600, description="Seconds an engine build may take.")


class Gates(Section):
    max_accuracy_drop: NonNegative = Field(1.0, description="Largest loss of accuracy against dense, in percentage points.")
    min_speedup: NonNegative = Field(1.5, description="Smallest ratio of the dense to the compact p50 latency.")
    max_abs_diff: NonNegative = Field(1e-5, description="Largest difference of compact from dense-with-removed-held, fp32 logits.")


class Check(Section):
    batch_sizes: tuple[Positive, ...] = Field((1, 32), description="Batch sizes whose latency is measured.")
    gate_batch: Positive = Field(32, description="Batch size whose speedup is gated.")
    threads: Positive = Field(2, description="Threads of ONNX Runtime.")
    min_blocks: Positive = Field(30, description="Fewest ABBA blocks a latency comparison takes.")
    time_limit_s: Positive = Field(20, description="Seconds one latency comparison may take.")
    gates: Gates = Field(default_factory=lambda: Gates(), description="Limits that decide the verdict.")


class Config(Section):
    name: str = Field("run", description="Title of the report.")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="Seed of weights, data order, augmentation and noise.")
    threads: Positive = Field(2, description="CPU threads of training; the same number gives the same bytes.")
    data: Data = Field(default_factory=lambda: Data(), description="Images and labels.")
    model: Model = Field(default_factory=lambda: Model(), description="The network.")
    dense: Training = Field(default_factory=lambda: Training(), description="Training of the dense baseline.")
    demp: Demp = Field(default_factory=lambda: Demp(), description="Training with DemP.")
    surgery: Surgery = Field(default_factory=lambda: Surgery(), description="Cutting the dead channels out.")
    onnx: Onnx = Field(default_factory=lambda: Onnx(), description="Export to ONNX.")
    simplify: Simplify = Field(default_factory=lambda: Simplify(), description="Simplification of the ONNX graphs.")
    precision: PrecisionSection = Field(default_factory=lambda: PrecisionSection(), description="Lower precision in the graph.")
    engine: Engine = Field(default_factory=lambda: Engine(), description="TensorRT engines.")
    check: Check = Field(default_factory=lambda: Check(), description="Accuracy, latency and the verdict.")
