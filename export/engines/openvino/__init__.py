"""OpenVINO engines from ONNX graphs: the IR, and what it is compiled with.

An engine is two files, `<name>.xml` and `<name>.bin`. The precision is proven from the graph that the compiled network
executes; int8 comes from the same QDQ graph as for TensorRT.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.engines import Engine, EngineUnavailable, Order, manifest
from export.engines.machine import Image, Preflight, Status
from export.engines.options import TENSORRT_ONLY
from export.engines.proof import Precision, Product, Proof, check, document, prove
from runtime.backends import openvino as backend
from runtime.errors import UserError
from runtime.files import replacing, sha256, write_text

PRODUCTS = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")
_PRECISIONS = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "i8": "int8", "u8": "int8"}


@dataclass(frozen=True)
class OpenVino:
    """Builds for the CPU at hand; see Builder."""

    suffix: str = ".xml"

    def version(self) -> str:
        """See Builder."""
        try:
            return _version(backend.core())
        except UserError as error:
            raise EngineUnavailable(error.found) from error

    def targets(self, requested: Sequence[str]) -> tuple[str, ...]:
        """One engine serves every CPU, whatever is requested."""
        self.version()
        return (backend.DEVICE,)

    def build(self, order: Order) -> Engine:
        """See Builder."""
        for name in TENSORRT_ONLY:
            if getattr(order.options, name) != type(order.options).model_fields[name].default:
                raise UserError(f"engine.{name}, and OpenVINO has nothing of the kind", "its default", "leave it out")
        version = self.version()
        if order.precision not in backend.precisions():
            here = ", ".join(backend.precisions())
            raise EngineUnavailable(f"this CPU computes in {here}: no {order.precision} engine")
        started, path = time.perf_counter(), order.path
        log = path.with_name(path.name + ".log")
        with tempfile.TemporaryDirectory() as scratch:
            draft = Path(scratch) / "model.xml"
            _write_ir(order.onnx, draft)
            session = backend.OpenVinoSession(draft, precision=order.precision)
            with closing(session):
                executed = session.compiled.get_runtime_model().get_ordered_ops()
                proof = execution_proof(executed, order.precision)
                check(proof, f"the network that OpenVINO executes from {order.onnx}")
            manifest.manifest_path(path).unlink(missing_ok=True)
            with replacing(path) as xml, replacing(path.with_suffix(".bin")) as weights:
                xml.write_bytes(draft.read_bytes())
                weights.write_bytes(draft.with_suffix(".bin").read_bytes())
        size = path.stat().st_size + path.with_suffix(".bin").stat().st_size
        content = _manifest(order, session, _layers(executed), proof, version, started)
        write_text(log, "".join(f"{_kind(one)} {_type(one)} {one.get_friendly_name()}\n" for one in executed))
        return Engine(
            path, manifest.write(path, content), log, content.flavour, version, order.precision, content.target,
            content.sha256, size, content.seconds, content.layers, document(proof), tuple(content.notes),
        )  # fmt: skip

    def preflight(self, engine: Path, content: manifest.Manifest, image: Image | None, target: str | None) -> Preflight:
        """See Builder. The IR loads in every later OpenVINO; the precision must be one that the CPU has."""
        if image is not None or target is not None:
            reason = f"{engine.name} runs on a CPU: --triton-image and --gpu say nothing about it"
            return Preflight(engine, image.reference if image else "this machine", "unknown", (reason,), None)
        try:
            here = self.version()
        except EngineUnavailable as error:
            return Preflight(engine, "this machine", "wrong machine", (str(error),), None)
        reasons: list[str] = []
        status: Status = "ok"
        if content.precision not in backend.precisions():
            have = ", ".join(backend.precisions())
            reasons.append(f"the engine is in {content.precision}, this CPU computes in {have}")
            status = "wrong machine"
        elif here != content.version:
            reasons.append(f"openvino is {here} here, the engine was built and proven by {content.version}")
        rebuild = content.command() if status != "ok" else None
        return Preflight(engine, "this machine", status, tuple(reasons), rebuild)


OPENVINO = OpenVino()


def _write_ir(onnx: Path, xml: Path) -> None:
    """The IR of `onnx`, its weights in their own type: OpenVINO's save_model would store them in float16."""
    from openvino import serialize

    try:
        serialize(backend.core().read_model(onnx), xml, xml.with_suffix(".bin"))
    except RuntimeError as error:
        raise UserError(
            f"OpenVINO cannot read {onnx}: {backend.reason(error)}", "a whole ONNX file", "export the network again"
        ) from error


def execution_proof(executed: Sequence[Any], precision: Precision) -> Proof:
    """The type of every product that the compiled network executes; work is not weighed, as batches are dynamic."""
    products = [
        Product(one.get_friendly_name(), _PRECISIONS.get(_type(one), _type(one)), 0)
        for one in executed
        if _kind(one) in PRODUCTS
    ]
    kinds = Counter(_kind(one) for one in executed)
    return prove(
        "engine",
        precision,
        products,
        reformats=kinds["Reorder"],
        casts=kinds["Convert"],
        quantizes=kinds["FakeQuantize"] + kinds["Quantize"],
    )


def _layers(executed: Sequence[Any]) -> dict[str, dict[str, int]]:
    table: dict[str, Counter[str]] = {}
    for one in executed:
        table.setdefault(_kind(one), Counter())[_type(one)] += 1
    return {kind: dict(sorted(counts.items())) for kind, counts in sorted(table.items())}


def _kind(operation: Any) -> str:
    return str(operation.get_rt_info()["layerType"].astype(str))


def _type(operation: Any) -> str:
    return str(operation.get_rt_info()["runtimePrecision"].astype(str))


def _version(core: Any) -> str:
    """2026.4.1 of "2026.4.1-22982-e213a147257-releases/2026/4"."""
    return str(core.get_versions(backend.DEVICE)[backend.DEVICE].build_number).split("-")[0]


def _manifest(
    order: Order,
    session: backend.OpenVinoSession,
    layers: dict[str, dict[str, int]],
    proof: Proof,
    version: str,
    started: float,
) -> manifest.Manifest:
    path = order.path
    weights = path.with_suffix(".bin")
    ports = {
        key: [{"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)} for spec in specs]
        for key, specs in (("inputs", session.inputs), ("outputs", session.outputs))
    }
    return manifest.Manifest.model_validate(
        {
            "schema": manifest.SCHEMA,
            "file": path.name,
            "sha256": sha256(path),
            "bytes": path.stat().st_size,
            "flavour": "openvino",
            "version": version,
            "cuda": {"library": None, "driver": None},
            "targets": [backend.DEVICE],
            "precision": order.precision,
            **ports,
            "profiles": [],
            "layers": layers,
            "proof": document(proof),
            "options": order.options,
            "settings": dict(session.settings),
            "onnx": {"file": os.path.relpath(order.onnx, path.parent), "sha256": order.onnx_sha256},
            "weights": {"file": weights.name, "sha256": sha256(weights)},
            "timing_cache": None,
            "plan_sha256": order.plan_sha256,
            "versions": {"openvino": version, "python": platform.python_version()},
            "gpu": None,
            "seconds": round(time.perf_counter() - started, 3),
            "notes": [],
            "measured": None,
        }
    )
