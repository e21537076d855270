"""ONNX models for servers other than Triton: each version's file, its signature, and a request with its answer.

Layout: `<bundle>/<model>/{<version>/model.onnx, signature.json, sample-{request,response}.json, labels.txt}`, where
OpenVINO engines were measured `<model>/openvino.json`; `config.json` for OpenVINO Model Server, `kserve.json` for
`kubectl apply -f`. A model's folder with numbered versions is what OpenVINO Model Server, and KServe's Triton runtime
with its completion of configs, take as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.engines import manifest
from export.onnx.graph import Array, TensorSpec
from export.serving.files import Model, Sources, check_models, copy_versions, write_labels
from export.serving.pbtxt import Signature
from export.serving.recorded import INPUT_DATA, record, v2_type, write_recorded
from export.serving.release_index import PublishedModel, write_index
from export.serving.releases import Swap, new_release
from runtime.errors import UserError

MOUNT, OPENVINO = "/models", "openvino.json"


@dataclass(frozen=True)
class Bundle:
    path: Path
    models: tuple[PublishedModel, ...]
    serial: int
    swap: Swap


def bundle(
    models: Sequence[Model],
    directory: Path,
    sources: Sources,
    *,
    labels: Sequence[str],
    samples: Array,
    storage_uri: str,
    plugin_config: Mapping[str, Mapping[str, str]],
    measured: Sequence[manifest.Manifest] = (),
    replace: bool = False,
) -> Bundle:
    """Writes the bundle; it appears complete, at once, and is replaced and rolled back like a Triton repository.

    All models are ONNX, else UserError; `samples` as for `triton.publish`. `storage_uri` is where KServe will
    find the folder, `plugin_config` what OpenVINO Model Server compiles each model with, by its name. `measured`:
    manifests of OpenVINO engines; those made of the very files that are published go with them, figures included.
    """
    check_models(models, labels)
    for model in models:
        if engines := [path for path in model.versions.values() if path.suffix != ".onnx"]:
            raise UserError(f"{engines[0]} in a bundle", "ONNX files", "publish engines with --format triton")
    with new_release(directory, replace=replace) as release:
        published = []
        for model in models:
            folder = release.folder / model.name
            signature, digests = copy_versions(model, folder, sources)
            if labels:
                write_labels(folder, model.name, signature, labels)
            exchanges = record(model, folder, signature, samples, sources.root, max(model.versions))
            write_recorded(folder, model.name, exchanges, batched=signature.max_batch > 0)
            (folder / INPUT_DATA).unlink()  # of Triton's perf_analyzer
            _write(folder / "signature.json", signature_document(model.name, signature, digests))
            if figures := _figures(digests, measured):
                _write(folder / OPENVINO, figures)
            published.append(
                PublishedModel(
                    name=model.name,
                    platform="onnxruntime_onnx",
                    max_batch_size=signature.max_batch,
                    sha256=digests,
                )
            )
        _write(release.folder / "config.json", _openvino({model.name: plugin_config[model.name] for model in models}))
        _write(release.folder / "kserve.json", _kserve(models[0].name, storage_uri))
        write_index(release.folder, "bundle", release.serial, published)
    return Bundle(directory, tuple(published), release.serial, release.swap)


def signature_document(name: str, signature: Signature, digests: Mapping[str, str]) -> dict[str, Any]:
    """Model metadata as a server of the V2 protocol gives them (-1 may vary), with the largest batch and the hashes."""

    def tensor_document(spec: TensorSpec) -> dict[str, Any]:
        shape = [-1 if dim is None else dim for dim in spec.shape]
        return {"name": spec.name, "datatype": v2_type(spec.dtype), "shape": shape}

    return {
        "name": name,
        "versions": sorted(digests),
        "platform": "onnxruntime_onnx",
        "inputs": [tensor_document(spec) for spec in signature.inputs],
        "outputs": [tensor_document(spec) for spec in signature.outputs],
        "parameters": {"max_batch_size": signature.max_batch, "sha256": dict(digests)},
    }


def _figures(digests: Mapping[str, str], measured: Sequence[manifest.Manifest]) -> dict[str, Any]:
    """Version -> what OpenVINO was measured with on the very file of the version, and what came out."""
    keys = {"version", "precision", "onnx", "settings", "layers", "proof", "measured"}
    by_graph = {one.onnx.sha256: one.model_dump(mode="json", include=keys) for one in measured}
    return {version: by_graph[digest] for version, digest in digests.items() if digest in by_graph}


def _openvino(plugin_config: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """OpenVINO Model Server's config, for the bundle mounted at /models."""
    models = [
        {
            "name": name,
            "base_path": f"{MOUNT}/{name}",
            "model_version_policy": {"all": {}},
            "plugin_config": dict(properties),
        }
        for name, properties in plugin_config.items()
    ]
    return {"model_config_list": [{"config": model} for model in models]}


def _kserve(name: str, storage_uri: str) -> dict[str, Any]:
    """An InferenceService of KServe, whose names are those of DNS: lower-case letters, digits, '-', at most 63."""
    service = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:63].strip("-") or "model"
    if not service[0].isalpha():
        service = f"m-{service}"[:63].strip("-")
    model = {"modelFormat": {"name": "onnx", "version": "1"}, "protocolVersion": "v2", "storageUri": storage_uri}
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": service},
        "spec": {"predictor": {"model": model}},
    }


def _write(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
