"""The sections `sparse`, whose keys are those of every training and those of its method, and `surgery`."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import Field, create_model

from pipeline.config import extension
from pipeline.config.section import NonNegative, Section
from pipeline.config.training import Distill, Target, Training
from pipeline.training.methods import METHODS
from runtime.errors import UserError


class Sparse(Training):
    """A method's `Options` may override the properties."""

    method: str = Field(default="demp", description=f"{' | '.join(METHODS)} | {extension.FORMS}")
    start: Literal["auto", "dense", "init"] = Field(
        default="auto",
        description="dense: from the trained dense network; init: as the dense training starts; auto: dense where "
        "model.weights are given.",
    )
    distill: Distill | Literal["auto"] | None = Field(
        default="auto",
        description="Learn from the answers of the trained dense network too; auto: where the training starts from it.",
    )

    if TYPE_CHECKING:

        def __getattr__(self, key: str) -> Any:
            """The keys of the method."""

    @property
    def asked(self) -> Target | None:
        """The outcome that the method steers to, which the check then looks at."""
        return getattr(self, "target", None)

    @property
    def removes(self) -> bool:
        """Whether channels may leave before the end, so that the training depends on surgery's alignment."""
        return True

    @property
    def timed(self) -> bool:
        """Whether the training measures latency, and so depends on the machine."""
        return False


class Surgery(Section):
    align: Literal[1, 2, 4, 8, 16, 32, 64, "auto"] = Field(
        default=16,
        description="Keep the most alive of the dead channels up to this multiple (exact: they are zeros). auto: "
        "the fastest of several and of not cutting at all, timed at `check.gate_batch` on OpenVINO "
        "with `engine.flavour: openvino`, else with ONNX Runtime.",
    )
    residual: Literal["tied", "untied"] = Field(
        default="tied",
        description="tied: a channel of a residual stream goes only if dead at every member; untied: block by block.",
    )
    gather: Literal["off", "on", "auto"] = Field(
        default="off",
        description="Convolutions whose outputs read at most 16 whole kernels, and at most half of the inputs, as "
        "Gather, depthwise convolutions and a sum. on: all of them; auto: those that are faster so, timed as "
        "`align: auto` is, and none where the network as a whole is not.",
    )
    law_tolerance: NonNegative = Field(
        default=1e-9, description="Largest relative difference of compact and dense in float64."
    )


@cache
def section_of(method: str) -> type[Sparse]:
    """The section with the keys of this method. Raises UserError where there is no such method."""
    options = options_of(method)
    if shared := sorted(options.model_fields.keys() & Sparse.model_fields.keys()):
        raise UserError(
            f"the options of {method} have the key {shared[0]}, which every training has",
            "options with names of their own",
            "rename it",
        )
    method_field = Sparse.model_fields["method"]
    field: Any = (str, Field(default=method, description=method_field.description))
    bases = (Sparse,) if options is Section else (options, Sparse)  # of one's own, and without any
    section = create_model("Sparse", __base__=bases, __module__=__name__, method=field)
    return cast(type[Sparse], section)


@cache
def options_of(method: str) -> type[Section]:
    """The `Options` of a method. Raises UserError."""
    return extension.options_of(method, METHODS, "sparse.method")


@cache
def function_of(method: str) -> Callable[..., Any]:
    """The function of a method, which loads what it works with. Raises UserError."""
    return extension.function_of(method, METHODS, "sparse.method")


def sparse_of(**keys: Any) -> Any:
    """A checked section of these keys: a `Sparse` that is the method's `Options` too."""
    return section_of(keys.get("method", "demp")).model_validate(keys)
