"""The sections of what a run starts from: data, the network, its weights, or two networks made elsewhere."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from pipeline.config.section import Positive, Section, Validation, impossible
from pipeline.config.training import Target
from pipeline.data import sources
from runtime.images import Policy

MODELS = "demo:resnet | demo:unet | cifar:NAME | mlp:NAME | torchvision:NAME | timm:NAME | module:function"
MODULE_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
DEFAULT = "default"
ONNX, WEIGHTS = ".onnx", (".safetensors", ".pt", ".pth", ".bin")
SOURCES = " | ".join([*sources.SOURCES, sources.OWN])
Level = Annotated[int, Field(ge=0, le=255)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Spread = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Data(Section):
    source: str = Field(default="digits", description=SOURCES)
    image_size: Positive | None = Field(
        default=None,
        description="Side in pixels that images of a folder are resized and cropped to; null keeps fixed-size sets.",
    )
    resize: Positive | None = Field(
        default=None,
        description="Shorter side in pixels that images of a folder are resized to before their middle, image_size x "
        "image_size, is cut out; null: image_size.",
    )
    fit: Policy = Field(
        default="crop",
        description="How images of a folder become image_size x image_size. crop: the middle, after resizing; "
        "letterbox: the whole, with `background` around it; stretch: both sides resized. Training, graphs that take "
        "pixels and `demport ask` do the same.",
    )
    background: tuple[Level, Level, Level] = Field(
        default=(255, 255, 255), description="Colour under transparent pixels and around a letterbox, 0..255."
    )
    mean: tuple[Finite, ...] | None = Field(
        default=None,
        description="Mean of pixel / 255 (of float pixels: of the pixel) that a network subtracts, one or one a "
        "channel, e.g. what starting weights were trained with; null: with model.weights default what those were "
        "trained with, else that of the training images.",
    )
    std: tuple[Spread, ...] | None = Field(default=None, description="Standard deviation, as mean.")
    channels_first: bool | None = Field(
        default=None, description="Whether arrays are (N, C, H, W); null: (N, H, W, C), where that is plain to see."
    )
    root: str = Field(default="~/.cache/demport", description="Folder that torchvision downloads into.")
    workers: Positive = Field(default=4, description="Threads that decode the images of a folder.")
    validation: Validation = Field(
        default=0.0,
        description="Share of the training images, of each class, that choices are made on in place of the test split: "
        "best epoch, early stopping, precisions; val: of image folders val/, and test/ is the test split.",
    )

    @model_validator(mode="after")
    def _source_is_named(self) -> Self:
        if sources.row_of(self.source) is None and not MODULE_FUNCTION.fullmatch(self.source):
            raise impossible(
                "source", f"`{self.source}` names no data", f"expected {SOURCES}", "write one of these forms"
            )
        if (self.mean is None) != (self.std is None):
            one, other = ("std", "mean") if self.mean is None else ("mean", "std")
            raise impossible(other, f"{one} is set and {other} is not", "expected both or none", f"set data.{other}")
        if self.fit != "crop" and (not sources.reads_pictures(self.source) or self.image_size is None):
            problem = f"fit {self.fit} with data.source {self.source} and image_size {self.image_size or 'null'}"
            raise impossible(
                "fit", problem, "expected a folder of images and its image_size", "set image_size, or leave it"
            )
        return self

    @model_validator(mode="after")
    def _what_is_cut_out_is_there(self) -> Self:
        if self.resize is None:
            return self
        if not sources.reads_pictures(self.source) or self.image_size is None or self.resize < self.image_size:
            raise impossible(
                "resize",
                f"resize {self.resize} with data.source {self.source} and image_size {self.image_size or 'null'}",
                "expected a folder of images, and no less than its image_size",
                "take it out, or set both, e.g. {resize: 256, image_size: 224}",
            )
        return self


def demand_spec(key: str, name: str) -> None:
    """Raises `impossible` where `name` has none of the forms that name a network."""
    kind, _, rest = name.partition(":")
    listed = kind in ("demo", "cifar", "mlp", "torchvision", "timm") and rest
    if not listed and not MODULE_FUNCTION.fullmatch(name):
        raise impossible(key, f"`{name}` names no model", f"expected {MODELS}", "write one of these forms")


class Model(Section):
    name: str = Field(default="demo:resnet", description=MODELS)
    weights: str | None = Field(
        default=None,
        description="What training starts from: a safetensors file, a .pt, .pth or .bin checkpoint (a state dict, bare "
        "or under state_dict, model, model_state_dict or ema), or `default`, the pretrained weights of torchvision or "
        "timm; null starts afresh.",
    )
    new_head: bool = Field(
        default=False,
        description="Begin with a fresh last layer where `weights` are for another number of classes; false: an error.",
    )
    args: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments for the model's constructor.")

    @model_validator(mode="after")
    def _name_is_a_spec(self) -> Self:
        demand_spec("name", self.name)
        if self.weights == DEFAULT and self.name.partition(":")[0] not in ("torchvision", "timm"):
            raise impossible(
                "weights", f"default with {self.name}", "expected a network of torchvision or timm", "give a file"
            )
        if self.new_head and self.weights is None:
            raise impossible("new_head", "there are no weights", "expected model.weights", "set it, or leave this out")
        return self


class Pair(Section):
    """The dense network and the smaller one, each with what builds it where its file does not say so."""

    dense: str = Field(description="An ONNX file, or weights of `model` (as model.weights).")
    compact: str = Field(
        description="An ONNX file, the folder that `demport shrink` or `demport.save` wrote, or weights of `network`."
    )
    network: str | None = Field(default=None, description=f"What `compact` holds weights of: {MODELS}")
    args: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments for its constructor.")

    @model_validator(mode="after")
    def _files_say_what_they_are(self) -> Self:
        suffix = PurePath(self.dense).suffix
        if suffix not in (ONNX, *WEIGHTS):
            forms = ", ".join(f"*{suffix}" for suffix in (ONNX, *WEIGHTS))
            raise impossible("dense", f"`{self.dense}`", f"expected a file {forms}", "name one")
        weights = PurePath(self.compact).suffix in WEIGHTS
        if weights and self.network is None:
            raise impossible(
                "network", "weights alone do not say what builds the network", "expected what builds it",
                "set given.network: module:function",
            )  # fmt: skip
        if not weights and (self.network is not None or self.args):
            raise impossible(
                "network", f"`{self.compact}` says how the network is built", "expected it beside weights only",
                "leave network and args out",
            )  # fmt: skip
        if self.network is not None:
            demand_spec("network", self.network)
        return self

    def demand_alone(self, model: Model, target: Target | None) -> None:
        """Raises `impossible` where the config asks for a training or other weights as well."""
        if model.weights is not None:
            raise impossible("model.weights", "given.dense names the weights", "expected one of them", "leave it out")
        if target is not None:
            raise impossible("sparse.target", "nothing is trained from `given`", "expected no target", "leave it out")
