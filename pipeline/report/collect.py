"""Reads what the stages of a run left on disk into one Report; a stage that did not run leaves nulls and the reason.

Every file but stage.json and config.yaml is taken only as its stage recorded it, name, size and hash: what was changed
afterwards, and what a stage did not write, gets into no report.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.check.reading import damaged, read_object, typed
from pipeline.check.results import CheckDocument
from pipeline.config.file import load_config
from pipeline.report.document import Report
from pipeline.report.method import masked_of
from pipeline.report.training import Epoch, epochs_of
from pipeline.workspace.folder import CONFIG, STAGES
from pipeline.workspace.record import sealed
from pipeline.workspace.stages import PAIR, stages_of
from runtime.errors import UserError
from runtime.files import MAX_JSON_BYTES, read_bounded

DENSE, SPARSE, SURGERY, ONNX, SIMPLIFY, PRECISION, ENGINE, CHECK, PUBLISH = STAGES
HISTORY_BYTES = 256 << 20
"""A line has three figures of each layer: 10,000 epochs of 200 layers fit."""
IMAGE_BYTES = 8 << 20
CERTIFIED = ("evidence", "confirmation", "change", "law", "layers", "folded", "frozen", "alignment")
Json = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """A run folder: its report, the two trainings, the batch whose speedup is gated, latency samples
    (`<role>.<backend>.<precision>.b<batch>` -> ms in the order of time), and the PNGs that the report names."""

    folder: Path
    report: Report
    dense: Sequence[Epoch]
    sparse: Sequence[Epoch]
    gate_batch: int | None
    samples: Mapping[str, Sequence[float]]
    images: Mapping[str, bytes]


class StageFolder:
    """A finished stage. UserError names what is missing in it or was changed."""

    def __init__(self, folder: Path) -> None:
        self.folder, path = folder, folder / "stage.json"
        self.record = read_object(path)
        if not sealed(self.record):
            raise damaged(path, "it was changed after it was written")

    @property
    def result(self) -> Json:
        result: Json = self.record["result"]
        return result

    def bytes_of(self, name: str, limit: int) -> bytes:
        path, entry = self.folder / name, self.record["files"].get(name)
        if entry is None:
            raise damaged(path, "the stage did not write it")
        try:
            content = read_bounded(path, limit)
        except OSError as error:
            raise damaged(path, error.strerror or str(error)) from error
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise damaged(path, "it was changed after it was written")
        return content

    def json(self, name: str) -> Json:
        try:
            document = json.loads(self.bytes_of(name, MAX_JSON_BYTES))
        except (ValueError, RecursionError) as error:
            raise damaged(self.folder / name, str(error)) from error
        if not isinstance(document, dict):
            raise damaged(self.folder / name, "not an object")
        return document


def collect(run: Path) -> Run:
    """Everything the report shows of the run folder `run`; UserError where it holds no stage or a file is damaged."""
    config = load_config(run / CONFIG) if (run / CONFIG).exists() else None
    line = STAGES if config is None else (*stages_of(config), PUBLISH)
    stages = {name: StageFolder(run / name) for name in line if (run / name).is_dir()}
    if not stages:
        raise UserError(f"{run}: no finished stage", "expected a run folder", "run `demport run` first")
    check = None
    if CHECK in stages:
        check = typed(CheckDocument, stages[CHECK].json("check.json"), run / CHECK / "check.json")
    dense, sparse = (
        epochs_of(stages[stage].bytes_of("history.jsonl", HISTORY_BYTES), run / stage / "history.jsonl")
        if stage in stages and "history.jsonl" in stages[stage].record["files"]
        else []
        for stage in (DENSE, SPARSE)
    )
    try:
        document = _document(stages, line, check, sparse[-1].figures if sparse else {})
    except (KeyError, TypeError, AttributeError) as error:
        raise damaged(run, f"a stage left no {error}") from error
    name = config.name if config else run.resolve().name
    report = typed(Report, {"name": name, **document}, run)
    images = check.worst.images if check and check.worst else ()
    return Run(
        run,
        report,
        dense,
        sparse,
        config.check.gate_batch if config else None,
        dict(_samples(check)) if check else {},
        {image.file: stages[CHECK].bytes_of(image.file, IMAGE_BYTES) for image in images},
    )


def _document(
    stages: Mapping[str, StageFolder],
    line: Sequence[str],
    check: CheckDocument | None,
    figures: Mapping[str, float],
) -> dict[str, Any]:
    """`figures`: of the method, after the last epoch."""
    results = {name: stage.result for name, stage in stages.items()}
    surgery = _surgery(stages.get(SURGERY), PAIR in line)
    names = ("classes", "hops", "latency", "reference", "concurrency", "why", "broken", "worst", "accuracy_difference")
    unchecked: dict[str, Any] = {
        **dict.fromkeys(names, ()),
        **dict.fromkeys(("reference", "broken", "worst", "accuracy_difference")),
        "latency": {},
        "metric_name": "accuracy",
        "environment": _environment(stages),
        "verdict": {"status": "inconclusive", "gates": ()},
    }
    measured = {name: getattr(check, name) for name in unchecked} if check else unchecked
    return {
        **measured,
        "models": _models(check, surgery),
        "surgery": surgery,
        "graphs": list(_graphs(results.get(ONNX), results.get(SIMPLIFY), results.get(PRECISION))),
        "best": results.get(PRECISION, {}).get("best"),
        "engines": list(_engines(check, results.get(ENGINE))),
        "published": _published(stages),
        "masked": masked_of(figures, results.get(SIMPLIFY, {}).get("weights")),
        "pair": _pair(results.get(PAIR)),
        "stages": [_stage(name, stages.get(name)) for name in line],
    }


def _samples(check: CheckDocument) -> Mapping[str, Sequence[float]]:
    return {
        f"{role}.{backend}.{precision}.{batch}": timing.samples_ms
        for backend, precisions in check.latency.items()
        for precision, batches in precisions.items()
        for batch, entry in batches.items()
        for role, timing in (("dense", entry.dense), ("compact", entry.compact))
        if timing is not None
    }


def _models(check: CheckDocument | None, surgery: Json) -> dict[str, Any]:
    models = {}
    for role, channels in (("dense", surgery["channels_before"]), ("compact", surgery["channels_after"])):
        reasons = {} if channels is not None else {"channels": surgery["reasons"]["channels_before"]}
        if check is None:
            figures: dict[str, Any] = dict.fromkeys(("params", "macs", "bytes", "denormals"))
            reasons |= dict.fromkeys(figures, f"stage {CHECK} was not run")
            figures |= {
                "files": {},
                "accuracy": {},
                "top5": {},
                "metric": {},
                "intervals": {},
                "macro_f1": {},
                "beside": {},
            }
        else:
            figures = vars(getattr(check.models, role))
            reasons |= {f"accuracy.{form}": reason for form, reason in figures["reasons"].items()}
        models[role] = {**figures, "channels": channels, "reasons": reasons}
    return models


def _pair(result: Json | None) -> dict[str, Any] | None:
    if result is None:
        return None
    members = {
        role: {key: result[role][key] for key in ("form", "source", "max_abs_diff")} for role in ("dense", "compact")
    }
    return {**result, **members}


def _surgery(stage: StageFolder | None, paired: bool) -> dict[str, Any]:
    names = ("channels_before", "channels_dead", "channels_after", "max_abs_diff")
    if stage is None:
        nulls = (*names, "removal_rel_diff", "evidence", "confirmation", "change", "law", "alignment")
        why = "both networks were made elsewhere" if paired else f"stage {SURGERY} was not run"
        reasons = dict.fromkeys(nulls, why)
        nothing: dict[str, Any] = dict.fromkeys(nulls)
        return {**nothing, "removed_in_training": 0, "layers": (), "folded": (), "frozen": (), "reasons": reasons}
    certificate = stage.json("certificate.json")
    if missing := [name for name in (*CERTIFIED, "channels") if name not in certificate]:
        raise damaged(stage.folder / "certificate.json", f"lacks `{missing[0]}`")
    unasked = {
        "law": "the cut was asked not to check it",
        "confirmation": "no census was taken",
        "alignment": "surgery.align is set, so nothing was tried",
    }
    reasons = {name: reason for name, reason in unasked.items() if certificate[name] is None}
    training = certificate.get("training") or {}
    if not training:
        reasons["removal_rel_diff"] = "nothing was cut out during training"
    if certificate["change"]["train"] is None:
        reasons["change.train"] = "what was removed is constant on every training image"
    return {
        **{f"channels_{when}": certificate["channels"][when] for when in ("before", "dead", "after")},
        "removed_in_training": training.get("removed", 0),
        "removal_rel_diff": training.get("max_rel_diff"),
        "max_abs_diff": stage.result["max_abs_diff"],
        **{name: certificate[name] for name in CERTIFIED},
        "reasons": reasons,
    }


def _graphs(exported: Json | None, simplified: Json | None, lower: Json | None) -> Sequence[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    fp32: dict[str, Any] = dict.fromkeys(("drop_pp", "images", "holds"))
    for model in ("dense", "compact") if simplified else ():
        second = simplified[model] if simplified else {}
        first = exported[model] if exported else {"opset": None, "refused": {}}
        sets = {f"operator set {number}": reason for number, reason in first["refused"].items()}
        row = {"model": model, "precision": "fp32", "made_by": second["used"], "opset": first["opset"], "kept": ()}
        nodes = {"nodes_before": second["nodes_before"], "nodes": second["nodes_after"]}
        rows.append({**row, **nodes, **fp32, "refused": {**sets, **second["refused"]}})
        for precision, cast in (lower[model] if lower else {}).items():
            nodes = {"nodes_before": None, "nodes": cast["nodes_low"] + cast["nodes_fp32"]}
            figures = {name: cast[name] for name in ("opset", "drop_pp", "images", "holds", "kept")}
            made_by = cast["measured_by"] + _training_of(cast)
            row = {"model": model, "precision": precision, "made_by": made_by, "refused": {}}
            rows.append({**row, **nodes, **figures})
    return rows


def _training_of(cast: Json) -> str:
    """`; trained 5 epochs, 91.20 % before`: of a graph that was trained in its precision."""
    tuning = cast.get("tuning")
    if not tuning:
        return ""
    return f"; trained {tuning['epochs']} epochs, {100 * tuning['accuracy_before']:.2f} % before"


def _engines(check: CheckDocument | None, built: Json | None) -> Sequence[dict[str, Any]]:
    """The engines of stage 60 with what the check says of each, and the proof of each that was built."""
    results = built["engines"] if built else ()
    proofs = {(e["model"], e["precision"], e["target"]): e["engine"].get("proof") for e in results if e["engine"]}
    if check is not None:
        return [{**vars(e), "proof": proofs.get((e.model, e.precision, e.target))} for e in check.engines]
    return [
        {
            **{name: (entry["engine"] or entry).get(name) for name in ("flavour", "sha256", "bytes")},
            **{name: entry[name] for name in ("model", "precision", "target")},
            "path": f"{ENGINE}/{entry['engine']['path']}" if entry["engine"] else None,
            "measured_on": None,
            "reason": entry["reason"] or f"stage {CHECK} was not run",
            "proof": proofs.get((entry["model"], entry["precision"], entry["target"])),
        }
        for entry in results
    ]


def _published(stages: Mapping[str, StageFolder]) -> dict[str, Any] | None:
    """Where `demport publish` wrote the run; `current` while the stages it was made from are those that are there."""
    if PUBLISH not in stages:
        return None
    record, result = stages[PUBLISH].record, stages[PUBLISH].result
    digests = {name: stage.record.get("digest") for name, stage in stages.items()}
    return {
        **{key: result[key] for key in ("directory", "format", "serial")},
        "models": [model["name"] for model in result["models"]],
        "current": all(digests.get(stage) == digest for stage, digest in record["upstream"].items()),
    }


def _environment(stages: Mapping[str, StageFolder]) -> Json:
    """Without a check, the last finished stage says which machine this is."""
    return next((s.record["environment"] for s in reversed(list(stages.values())) if "environment" in s.record), {})


def _stage(name: str, stage: StageFolder | None) -> dict[str, Any]:
    keys = ("seconds", "fingerprint", "device", "seed", "command")
    record = stage.record if stage else {}
    return {"folder": name, "status": "done" if stage else "not run", **{key: record.get(key) for key in keys}}
