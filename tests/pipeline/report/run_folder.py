"""A run folder as `demport run` leaves it, with invented figures whose consequences are worked out in the tests."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from pathlib import Path
from typing import Any

from pipeline.workspace.folder import STAGES as STAGES
from tests.pipeline.report.check_document import ENVIRONMENT, check

LAYERS = (
    {"layer": "stem.conv", "before": 32, "dead": 3, "after": 32},
    {"layer": "layer1.0.conv1", "before": 32, "dead": 20, "after": 16},
    {"layer": "layer2.0.conv1", "before": 64, "dead": 40, "after": 32},
    {"layer": "layer2", "before": 64, "dead": 17, "after": 48},
    {"layer": "layer3.0.conv1", "before": 128, "dead": 101, "after": 32},
    {"layer": "layer3", "before": 128, "dead": 0, "after": 128},
)
BEFORE, DEAD, AFTER = 448, 181, 288  # sums of the above
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAAAAABX3VL4AAAADklEQVR4nGNgaGBgaAAAAwgBAZ0GkVgAAAAASUVORK5CYII="
)


def write_run(run: Path, stages: tuple[str, ...] = STAGES, **changes: Any) -> Path:
    """Write `stages` of a run into `run`; `changes` replace keys at the top of check.json."""
    for index, name in enumerate(STAGES):
        if name not in stages:
            continue
        folder = run / name
        folder.mkdir(parents=True)
        if index < 2:
            write_history(folder / "history.jsonl", deaths=index == 1)
        if name == "30-surgery":
            (folder / "certificate.json").write_text(json.dumps(certificate()), encoding="utf-8")
        if name == "70-check":
            (folder / "check.json").write_text(json.dumps({**check(), **changes}), encoding="utf-8")
            (folder / "worst").mkdir()
            (folder / "worst" / "17.png").write_bytes(PNG)
        write_json(folder / "stage.json", stage(name, index))
    (run / "config.yaml").write_text("name: digits, a small residual network\n", encoding="utf-8")
    return run


def write_json(path: Path, value: Any) -> None:
    """Write a file of a stage as the stage would have: its stage.json has the hash of each file, and a seal."""
    record = value
    if path.name != "stage.json":
        path.write_text(json.dumps(value), encoding="utf-8")
        record = json.loads((path.parent / "stage.json").read_text("utf-8"))
    files = [one for one in path.parent.rglob("*") if one.is_file() and one.name != "stage.json"]
    record["files"] = {
        one.relative_to(path.parent).as_posix(): {"sha256": sha256(one.read_bytes()), "bytes": one.stat().st_size}
        for one in files
    }
    content = {key: inner for key, inner in record.items() if key != "seal"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    (path.parent / "stage.json").write_text(json.dumps({**content, "seal": sha256(text.encode())}), encoding="utf-8")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write_history(path: Path, *, deaths: bool, epochs: int = 40) -> None:
    lines = []
    for epoch in range(1, epochs + 1):
        rise = 1 - math.exp(-epoch / (9 if deaths else 6))
        line: dict[str, Any] = {
            "epoch": epoch,
            "loss": 2.3 - 2.2 * rise,
            "accuracy": 0.1 + 0.893 * rise,
            "lr": 0.1,
            "seconds": 0.5,
            "images_per_s": 2800.0,
            "macs": 6_812_544,
            "removals": [],
        }
        if deaths:
            dead = min(DEAD, 6 * epoch)
            removed = min(DEAD, 60 * (epoch // 10))
            line |= {
                "lambda": 0.03 * math.sin(math.pi * epoch / epochs),
                "sigma": 5e-5 * math.sin(math.pi * epoch / epochs),
                "macs": 6_812_544 - 10_000 * removed,
                "dead": dead,
                "channels": BEFORE,
                "removals": [{"channels": 60}] if epoch % 10 == 0 and 6 * epoch <= DEAD else [],
                "dead_by_layer": {"conv1": dead // 2, "layer1.0.conv1": dead - dead // 2},
                "removed_by_layer": {"conv1": removed // 2, "layer1.0.conv1": removed - removed // 2},
                "channels_by_layer": {"conv1": BEFORE // 2, "layer1.0.conv1": BEFORE - BEFORE // 2},
            }
        lines.append(json.dumps(line))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


EXPORTED = {"opset": 20, "refused": {"18": "no Gelu"}}
SIMPLIFIED = {
    "used": "onnxslim", "nodes_before": 30, "nodes_after": 21,
    "refused": {"onnxsim": "its outputs differ by 1 at batch 1, over 1e-05"},
}  # fmt: skip
FP16 = {
    "opset": 20, "drop_pp": 0.5, "images": 400, "holds": True, "measured_by": "ONNX Runtime", "nodes_low": 12,
    "nodes_fp32": 9,
    "kept": [{"layer": "node_conv_3", "weight": "layer1.0.conv1", "reason": "sensitive", "error": 0.25}],
}  # fmt: skip


def stage(name: str, index: int) -> dict[str, Any]:
    results: dict[str, Any] = {
        "30-surgery": {"max_abs_diff": 3.8e-6},
        "40-onnx": {"dense": EXPORTED, "compact": EXPORTED},
        "50-simplify": {"dense": SIMPLIFIED, "compact": SIMPLIFIED},
        "55-precision": {"dense": {}, "compact": {"fp16": FP16}, "best": None},
        "60-engine": {"engines": []},
        "80-publish": {
            "directory": "/srv/models", "format": "triton", "serial": 3,
            "models": [{"name": "digits"}, {"name": "digits_fp16"}],
        },
    }  # fmt: skip
    upstream = {"50-simplify": "digest 4", "60-engine": "digest 6"} if name == "80-publish" else {}
    return {
        "schema": 1,
        "stage": name,
        "fingerprint": f"{index:x}" * 64,
        "digest": f"digest {index}",
        "upstream": upstream,
        "seconds": 7.25 * (index + 1),
        "device": "cpu",
        "seed": 0,
        "environment": ENVIRONMENT,
        "command": f"demport run configs/quickstart.yaml --out runs/quickstart --until {name[3:]} --redo {name[3:]}",
        "result": results.get(name, {}),
    }


def certificate() -> dict[str, Any]:
    return {
        "schema": 1,
        "channels": {"before": BEFORE, "dead": DEAD, "after": AFTER},
        "evidence": {"by_proof": 5, "by_measurement": BEFORE - AFTER - 5},
        "parameters": {"before": 707_000, "after": 180_000},
        "groups": [group("layer1_0_relu", 16, proof=5, measured=11), group("layer3_0_relu", 96, proof=0, measured=96)],
        "confirmation": {"images": 1400, "revived": 2, "largest_activation": {"layer1_0_relu": 0.0}, "approximate": []},
        "change": {"test": {"images": 400, "max_abs": 0.02, "top1_changed": 1}, "train": None},
        "alignment": None,
        "folded": [{"layer": "layer1.0.conv2", "bias": "gained", "largest": 0.01}],
        "law": {
            "max_rel_diff": 4.1e-15,
            "tolerance": 1e-9,
            "inputs": ["random, batch 2", "8 test images"],
            "held": True,
        },
        "layers": list(LAYERS),
        "frozen": [{"where": "fc", "reason": "output of the network", "channels": 10}],
    }


def group(name: str, removed: int, *, proof: int, measured: int) -> dict[str, Any]:
    return {
        "group": name,
        "layers": [name],
        "channels": 128,
        "dead": removed + 2,
        "removed": removed,
        "kept_dead": 2,
        "removed_indices": list(range(removed)),
        "by_proof": proof,
        "by_measurement": measured,
    }
