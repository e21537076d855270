"""A Triton model repository from ONNX files and engines: whole or absent, and nothing in it but what was asked for.

Layout: `<repository>/<model>/{config.pbtxt, labels.txt, input-data.json, sample-request.json, sample-response.json,
warmup/, <version>/model.onnx | model.plan}`, an ensemble with `sample.png` and without a model file, and
`<repository>/demport.json`, which lists the files with their hashes. Triton reads folders only at the top, so it passes
over that list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from export.onnx.graph import Array, GraphError, read_graph
from export.serving import triton_ensemble
from export.serving.files import Model, Sources, check_models, copy_versions, write_labels
from export.serving.pbtxt import Extras, Serving, Signature, config_text, signature_of_onnx
from export.serving.recorded import SAMPLES, record, write_recorded, write_warmup
from export.serving.release_index import PublishedModel, write_index
from export.serving.releases import Swap, new_release
from export.serving.triton_ensemble import CLASSIFY, NAMES, PIXELS, Images
from runtime.files import sha256


@dataclass(frozen=True)
class Repository:
    """`swap`: how it came to stand there, see `export.serving.releases`."""

    path: Path
    models: tuple[PublishedModel, ...]
    serial: int
    swap: Swap


@dataclass(frozen=True)
class Content:
    """What goes into a repository beside the model files.

    `labels` are the class names of the first output; `samples` (N, C, H, W) float32 are real inputs, of which four are
    recorded with their outputs and the first warms the models up. With `images`, the same before normalisation, each
    model that takes them gets an ensemble MODEL_classify: pixels in, class name out; `prefix` names the models that the
    ensembles share.
    """

    labels: Sequence[str] = ()
    samples: Array | None = None
    images: Images | None = None
    prefix: str = "images"


NOTHING = Content()
DEFAULTS = Serving()


def publish(
    models: Sequence[Model],
    directory: Path,
    sources: Sources,
    *,
    content: Content = NOTHING,
    serving: Serving = DEFAULTS,
    replace: bool = False,
) -> Repository:
    """Writes the Triton model repository `directory`; it appears complete, at once.

    `replace` puts it in the place of an earlier one, which stays to be rolled back to. `UserError`: a file lies outside
    the sources' root, is a link, or has another hash; versions of a model differ; a name is none; and what
    `export.serving.releases.new_release` refuses.
    """
    shared = (f"{content.prefix}_{PIXELS}", f"{content.prefix}_{NAMES}")
    more = [*shared, *(f"{model.name}_{CLASSIFY}" for model in models)] if content.images is not None else []
    check_models(models, content.labels, more)
    with new_release(directory, replace=replace) as release:
        folder = release.folder
        published: list[PublishedModel] = []
        signatures: dict[str, Signature] = {}
        for model in models:
            signature, digests = copy_versions(model, folder / model.name, sources)
            _describe(model, folder / model.name, signature, sources, content, _serving_of(model, serving))
            signatures[model.name] = signature
            published.append(
                PublishedModel(
                    name=model.name,
                    platform=signature.platform,
                    max_batch_size=signature.max_batch,
                    sha256=digests,
                )
            )
        if content.images is not None:
            published += _ensembles(models, folder, signatures, serving, content, content.images, shared)
        write_index(folder, "triton", release.serial, published)
    return Repository(directory, tuple(published), release.serial, release.swap)


def _serving_of(model: Model, serving: Serving) -> Serving:
    """As asked for, of the versions the model has: all of them where it has none that is asked for."""
    asked = [version for version in serving.versions or () if version in model.versions]
    return replace(serving, versions=tuple(asked) or None)


def _latest(model: Model, serving: Serving) -> int:
    """The version that answers a client that names none."""
    return max(model.versions if serving.versions is None else serving.versions)


def _describe(
    model: Model, folder: Path, signature: Signature, sources: Sources, content: Content, serving: Serving
) -> None:
    """Writes labels, recorded requests, the sample to warm up with, and the config."""
    batched = signature.max_batch > 0
    extras = Extras()
    if content.labels:
        extras = Extras(labels=write_labels(folder, model.name, signature, content.labels))
    if content.samples is not None:
        exchanges = record(model, folder, signature, content.samples, sources.root, _latest(model, serving))
        write_recorded(folder, model.name, exchanges, batched=batched)
        if serving.warmup:
            extras = replace(extras, warmup=write_warmup(folder, exchanges[0], batched=batched))
    text = config_text(model.name, signature, serving, extras)
    (folder / "config.pbtxt").write_text(text, encoding="utf-8")


def _ensembles(
    models: Sequence[Model],
    folder: Path,
    signatures: dict[str, Signature],
    serving: Serving,
    content: Content,
    images: Images,
    shared: tuple[str, str],
) -> list[PublishedModel]:
    """An ensemble for each model that takes the images, and the two graphs they share."""
    fitting = [model for model in models if triton_ensemble.fits(images, signatures[model.name], content.labels)]
    if not fitting:
        return []
    largest = max(signatures[model.name].max_batch for model in fitting)
    ensembles = []
    graphs = (triton_ensemble.pixels_graph(images), triton_ensemble.names_graph(content.labels))
    for name, graph in zip(shared, graphs, strict=True):
        path = triton_ensemble.write_step(folder / name, graph)
        text = config_text(name, signature_of_onnx(graph, largest), Serving())
        (folder / name / "config.pbtxt").write_text(text, encoding="utf-8")
        ensembles.append(
            PublishedModel(name=name, platform="onnxruntime_onnx", max_batch_size=largest, sha256={"1": sha256(path)})
        )
    for model in fitting:
        signature = signatures[model.name]
        name = f"{model.name}_{CLASSIFY}"
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "1" / "ensemble.txt").write_text("An ensemble has no file; see config.pbtxt.\n")
        text = triton_ensemble.ensemble_config(
            name, (shared[0], model.name, shared[1]), signature, images, signature.outputs[0].name, signature.max_batch
        )
        (folder / name / "config.pbtxt").write_text(text, encoding="utf-8")
        triton_ensemble.write_sample(folder / name, images)
        _record_classes(model, folder, name, content, images, _latest(model, _serving_of(model, serving)))
        ensembles.append(
            PublishedModel(
                name=name,
                platform="ensemble",
                max_batch_size=signature.max_batch,
                sha256={},
                image=images.described,
            )
        )
    return ensembles


def _record_classes(model: Model, folder: Path, name: str, content: Content, images: Images, version: int) -> None:
    """Requests for the ensemble and the classes; none where the network is an engine without a
    reference, or does not run here."""
    served = folder / model.name / str(version) / "model.onnx"
    network = served if served.exists() else model.reference
    if network is not None:
        try:
            exchanges = triton_ensemble.record_classes(images, content.labels, read_graph(network), SAMPLES)
        except GraphError:  # ONNX Runtime does not run it here, as bfloat16 on a CPU
            return
        write_recorded(folder / name, name, exchanges, batched=True)
