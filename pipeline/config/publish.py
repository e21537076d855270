"""The config section of `demport publish`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.config.section import Positive, Section, impossible, once


class Publish(Section):
    layout: Literal["versions", "names"] = Field(
        default="versions",
        description="versions: dense is version 1 of a model, compact version 2; names: NAME_dense and NAME_compact.",
    )
    serve: Literal["both", "dense", "compact"] = Field(
        default="both", description="Versions that Triton serves; the others only lie there. No meaning with names."
    )
    max_batch: Positive | None = Field(
        default=None, description="Largest batch a server may form; null: engine.profile.max. Engines keep their own."
    )
    preferred_batches: tuple[Positive, ...] | None = Field(
        default=None, description="Batches Triton aims at; null: those the engine is tuned for, none for ONNX."
    )
    queue_delay_us: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        default=100, description="Microseconds a request waits at most for others to share a batch with."
    )
    instances: Annotated[int, Field(ge=1, le=1024)] = Field(default=1, description="Instances of a model per device.")
    warmup: bool = Field(default=True, description="Run a real sample through a model before it takes requests.")
    cuda_graphs: bool = Field(default=False, description="Let Triton capture CUDA graphs of engines.")
    classify: bool = Field(
        default=True, description="Add an ensemble to each model that takes pixels and answers with a class name."
    )
    storage_uri: str = Field(
        default="pvc://models/demport", description="Where KServe finds the bundle; goes into its manifest."
    )

    @model_validator(mode="after")
    def _batches_fit(self) -> Self:
        once("preferred_batches", self.preferred_batches or ())
        largest = max(self.preferred_batches or (1,))
        if self.max_batch is not None and largest > self.max_batch:
            raise impossible(
                "preferred_batches",
                f"{largest} is over max_batch {self.max_batch}",
                "expected at most max_batch",
                "lower it or raise max_batch",
            )
        return self
