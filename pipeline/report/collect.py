"""Reads what the stages of a run left on disk into one Report; a stage that did not run leaves nulls and the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.config_file import load_config
from pipeline.workspace import CONFIG, STAGES
from runtime.errors import UserError

from .engine_schema import with_proofs
from .graph_schema import graphs
from .reading import Json, Told, damaged, read_told
from .schema import Report
from .training_view import read_history
from .view import Source

DENSE, DEMP, SURGERY, ENGINE, CHECK, PUBLISH = (
    "10-dense", "20-demp", "30-surgery", "60-engine", "70-check", "80-publish"
)  # fmt: skip


def collect(run: Path) -> Source:
    """Everything the report shows of the run folder `run`; UserError where it holds no stage or a file is damaged."""
    records = {name: read_told(run / name / "stage.json") for name in STAGES if (run / name).is_dir()}
    if not records:
        raise UserError(f"{run}: no finished stage", "expected a run folder", "run `demport run` first")
    check = read_told(run / CHECK / "check.json") if CHECK in records else None
    certificate = read_told(run / SURGERY / "certificate.json") if SURGERY in records else None
    surgery = _surgery(certificate, records.get(SURGERY))
    config = load_config(run / CONFIG) if (run / CONFIG).exists() else None
    document = {
        "name": config.name if config else run.resolve().name,
        "environment": check["environment"] if check else _environment(records),
        "models": _models(check, surgery),
        "accuracy_difference": check["accuracy_difference"] if check else None,
        "surgery": surgery,
        "latency": check["latency"] if check else {},
        **{key: check[key] if check else [] for key in ("classes", "concurrency", "why", "hops")},
        **{key: check[key] if check else None for key in ("reference", "broken", "worst")},
        "graphs": graphs(*(_result(records.get(name)) for name in ("40-onnx", "50-simplify", "55-precision"))),
        "best": (_result(records.get("55-precision")) or {}).get("best"),
        "engines": with_proofs(
            check["engines"] if check else _engines(records.get(ENGINE)), _result(records.get(ENGINE))
        ),
        "published": _published(records),
        "verdict": check["verdict"] if check else {"status": "inconclusive", "gates": []},
        "stages": [_stage(name, records.get(name)) for name in STAGES],
    }
    try:
        report = Report.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        damaged(run, f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
    gates = config.check if config else None
    return Source(
        report,
        read_history(run / DENSE),
        read_history(run / DEMP),
        gates.gate_batch if gates else None,
        _samples(check) if check else {},
        run / CHECK,
    )


def _samples(check: Json) -> dict[str, list[float]]:
    """`<role>.<backend>.<precision>.b<batch>` -> milliseconds of launches, in the order of time."""
    return {
        f"{role}.{backend}.{precision}.{batch}": [float(ms) for ms in entry[role]["samples_ms"]]
        for backend, precisions in check["latency"].items()
        for precision, batches in precisions.items()
        for batch, entry in batches.items()
        for role in ("dense", "compact")
        if entry[role] is not None
    }


def _models(check: Json | None, surgery: Json) -> dict[str, Json]:
    channels = {"dense": surgery["channels_before"], "compact": surgery["channels_after"]}
    if check is None:
        reason = f"stage {CHECK} was not run"
        figures: dict[str, Any] = dict.fromkeys(("params", "macs", "bytes", "denormals"))
        reasons = dict.fromkeys(figures, reason)
        figures |= {"files": {}, "accuracy": {}, "top5": {}, "metric": {}}
    out: dict[str, Json] = {}
    for name, count in channels.items():
        if check is not None:
            figures = dict(check["models"][name])
            reasons = {f"accuracy.{hop}": why for hop, why in figures["reasons"].items()}
        no_channels = {"channels": f"stage {SURGERY} was not run"} if count is None else {}
        out[name] = {**figures, "channels": count, "reasons": {**reasons, **no_channels}}
    return out


CERTIFIED = ("evidence", "confirmation", "change", "law", "layers", "folded", "frozen", "alignment")


def _surgery(certificate: Json | None, record: Json | None) -> dict[str, Any]:
    names = ("channels_before", "channels_dead", "channels_after", "max_abs_diff")
    if certificate is None or record is None:
        reasons = dict.fromkeys(
            (*names, "removal_rel_diff", "evidence", "confirmation", "change", "law", "alignment"),
            f"stage {SURGERY} was not run",
        )
        return {**dict.fromkeys(reasons), "layers": [], "folded": [], "frozen": [], "reasons": reasons}
    unasked = {
        "law": "the cut was asked not to check it",
        "confirmation": "no census was taken",
        "alignment": "surgery.align is set, so nothing was tried",
    }
    reasons = {name: why for name, why in unasked.items() if certificate[name] is None}
    if not certificate.get("training"):
        reasons["removal_rel_diff"] = "nothing was cut out during training"
    if certificate["change"]["train"] is None:
        reasons["change.train"] = "what was removed is constant on every training image"
    return {
        **{f"channels_{when}": certificate["channels"][when] for when in ("before", "dead", "after")},
        "removed_in_training": (certificate.get("training") or {}).get("removed", 0),
        "removal_rel_diff": (certificate.get("training") or {}).get("max_rel_diff"),
        "max_abs_diff": record["result"]["max_abs_diff"],
        **{name: certificate[name] for name in CERTIFIED},
        "reasons": reasons,
    }


def _result(record: Json | None) -> Json | None:
    """What a stage returned, None where it did not run."""
    result: Json | None = record["result"] if record else None
    return result


def _engines(record: Json | None) -> list[dict[str, Any]]:
    """The engines that stage 60 built or could not build, before the check says where they were measured."""
    names = ("flavour", "precision", "target", "sha256", "bytes")
    return [
        {
            **{name: (entry["engine"] or entry).get(name) for name in names},
            "model": entry["model"],
            "path": f"{ENGINE}/{entry['engine']['path']}" if entry["engine"] else None,
            "measured_on": None,
            "reason": entry["reason"] or f"stage {CHECK} was not run",
        }
        for entry in (record["result"]["engines"] if record else ())
    ]


def _published(records: dict[str, Told]) -> dict[str, Any] | None:
    """Where `demport publish` wrote the run; `current` while the stages it was made from are those that are there."""
    if PUBLISH not in records:
        return None
    record, now = records[PUBLISH], {name: other.get("digest") for name, other in records.items()}
    try:
        return {
            **{key: record["result"][key] for key in ("directory", "format", "serial")},
            "models": [model["name"] for model in record["result"]["models"]],
            "current": all(now.get(stage) == digest for stage, digest in record["upstream"].items()),
        }
    except (KeyError, TypeError, AttributeError) as error:
        damaged(record.path, f"{type(error).__name__}: {error}")


def _environment(records: dict[str, Told]) -> Json:
    """Without a check, the last finished stage tells where the run is at home."""
    return next((record["environment"] for record in reversed(records.values()) if "environment" in record), {})


def _stage(name: str, record: Json | None) -> dict[str, Any]:
    keys = ("seconds", "fingerprint", "device", "seed", "command")
    return {"folder": name, "status": "done" if record else "not run", **{key: (record or {}).get(key) for key in keys}}
