"""A run folder as `demport run` leaves it, with invented figures whose consequences are worked out in the tests."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

STAGES = (
    "10-dense",
    "20-demp",
    "30-surgery",
    "40-onnx",
    "50-simplify",
    "55-precision",
    "60-engine",
    "70-check",
    "80-publish",
)
IMAGES = 397
LAYERS = (
    {"layer": "stem.conv", "before": 32, "dead": 3, "after": 32},
    {"layer": "layer1.0.conv1", "before": 32, "dead": 20, "after": 16},
    {"layer": "layer2.0.conv1", "before": 64, "dead": 40, "after": 32},
    {"layer": "layer2", "before": 64, "dead": 17, "after": 48},
    {"layer": "layer3.0.conv1", "before": 128, "dead": 101, "after": 32},
    {"layer": "layer3", "before": 128, "dead": 0, "after": 128},
)
BEFORE, DEAD, AFTER = 448, 181, 288  # sums of the above
ENVIRONMENT = {
    "fingerprint": "0123456789abcdef",
    "cpu": "Example CPU (family 6)",
    "cores": 2,
    "gpus": [],
    "memory_gib": 23.4,
    "os": "Debian GNU/Linux 12 (bookworm)",
    "python": "3.11.7",
    "versions": {"torch": "2.15.0", "onnxruntime": "1.31.1"},
}


def write_run(run: Path, stages: tuple[str, ...] = STAGES, **changes: Any) -> Path:
    """Write `stages` of a run into `run`; `changes` replace keys at the top of check.json."""
    for index, name in enumerate(stages):
        folder = run / name
        folder.mkdir(parents=True)
        write_json(folder / "stage.json", stage(name, index))
    if "10-dense" in stages:
        write_history(run / "10-dense" / "history.jsonl", deaths=False)
    if "20-demp" in stages:
        write_history(run / "20-demp" / "history.jsonl", deaths=True)
    if "30-surgery" in stages:
        write_json(run / "30-surgery" / "certificate.json", certificate())
    if "70-check" in stages:
        write_json(run / "70-check" / "check.json", {**check(), **changes})
    (run / "config.yaml").write_text("name: digits, a small residual network\n", encoding="utf-8")
    return run


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


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
        }
        if deaths:
            line |= {
                "lambda": 0.03,
                "sigma": 5e-5,
                "dead": min(DEAD, 6 * epoch),
                "channels": BEFORE,
                "dead_by_layer": {},
            }
        lines.append(json.dumps(line))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def stage(name: str, index: int) -> dict[str, Any]:
    results: dict[str, Any] = {"30-surgery": {"max_abs_diff": 3.8e-6}, "60-engine": {"engines": []}}
    return {
        "schema": 1,
        "stage": name,
        "fingerprint": f"{index:x}" * 64,
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
        "parameters": {"before": 707_000, "after": 180_000},
        "groups": [group("layer1_0_relu", 16, proof=5, measured=11), group("layer3_0_relu", 96, proof=0, measured=96)],
        "confirmation": {"images": 1400, "revived": 2, "largest_activation": {"layer1_0_relu": 0.0}, "approximate": []},
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


def check() -> dict[str, Any]:
    """check.json: compact is 1.6 times as fast at a quarter of the MACs, with 98.99 % against 99.50 % accuracy."""
    return {
        "schema": 1,
        "environment": ENVIRONMENT,
        "models": {
            "dense": model(params=707_000, macs=20_000_000, size=2_840_000, right=395),
            "compact": model(params=180_000, macs=5_000_000, size=741_000, right=393),
        },
        "accuracy_difference": {
            "n": IMAGES,
            "only_first": 3,
            "only_second": 1,
            "difference_pp": -0.5038,
            "ci95_pp": [-1.81, 0.66],
            "p_value": 0.625,
            "method": "p: exact McNemar test",
        },
        "hops": [
            hop("dense", "torch", "onnx"),
            hop("dense", "onnx", "simplified"),
            hop("compact", "torch", "onnx"),
            hop("compact", "onnx", "simplified"),
            {
                **hop("compact", "simplified", "tensorrt_rtx.fp16.SM86"),
                **dict.fromkeys(("max_abs", "max_rel", "top1_agreement", "accuracy_delta")),
                "reason": "no GPU",
            },
        ],
        "latency": {
            "onnxruntime": {
                "fp32": {"b1": latency(0.21, 0.16, 1.31), "b32": latency(1.83, 1.144, 1.6)},
                "fp16": {"b32": latency(2.0, 2.02, 0.99)},
            },
            "tensorrt_rtx": {
                "fp16": {
                    "b32": {
                        **dict.fromkeys(("dense", "compact", "speedup", "settings", "protocol")),
                        "reason": "no GPU on this machine",
                    }
                }
            },
        },
        "engines": [engine(model, precision) for model in ("dense", "compact") for precision in ("fp32", "fp16")],
        "verdict": {
            "status": "inconclusive",
            "gates": [
                gate("max_accuracy_drop", "pass", 0.5038, 1.0, None),
                gate("min_speedup", "pass", 1.6, 1.5, None),
                gate("max_abs_diff", "pass", 3.8e-6, 1e-5, None),
                gate(
                    "engines",
                    "inconclusive",
                    None,
                    None,
                    "4 engines were built, none could run: no GPU on this machine",
                ),
            ],
        },
    }


def model(*, params: int, macs: int, size: int, right: int) -> dict[str, Any]:
    accuracy: dict[str, float | None] = dict.fromkeys(("torch", "onnx", "simplified", "fp16"), right / IMAGES)
    return {
        "params": params,
        "macs": macs,
        "bytes": size,
        "files": {"onnx": size + 900, "simplified": size, "fp16": size // 2},
        "accuracy": {**accuracy, "tensorrt_rtx.fp16.SM86": None},
        "reasons": {"tensorrt_rtx.fp16.SM86": "no GPU on this machine"},
    }


def hop(model: str, source: str, target: str) -> dict[str, Any]:
    return {
        "model": model,
        "from": source,
        "to": target,
        "max_abs": 2.4e-6,
        "max_rel": 1.1e-6,
        "top1_agreement": 1.0,
        "accuracy_delta": 0.0,
        "reason": None,
    }


def latency(dense_ms: float, compact_ms: float, ratio: float) -> dict[str, Any]:
    def timing(name: str, p50: float) -> dict[str, Any]:
        return {
            "name": name,
            "p50_ms": p50,
            "p95_ms": p50 * 1.2,
            "mean_ms": p50 * 1.05,
            "best_ms": p50 * 0.95,
            "n": 640,
            "repeats": 1,
            "samples_ms": [p50] * 3,
        }

    verdict = "faster" if ratio > 1.05 else "not distinguishable"
    return {
        "dense": timing("dense.onnx", dense_ms),
        "compact": timing("compact.onnx", compact_ms),
        "speedup": {"ratio": ratio, "ci95": [round(ratio - 0.04, 4), round(ratio + 0.05, 4)], "verdict": verdict},
        "settings": {"threads": 2},
        "protocol": {"blocks": 40},
        "reason": None,
    }


def engine(model: str, precision: str) -> dict[str, Any]:
    return {
        "model": model,
        "flavour": "tensorrt_rtx",
        "precision": precision,
        "target": "SM86",
        "path": f"60-engine/{model}.{precision}.SM86.engine",
        "sha256": "ab12" * 16,
        "bytes": 912_345,
        "measured_on": None,
        "reason": "no GPU on this machine",
    }


def gate(name: str, status: str, value: float | None, limit: float | None, reason: str | None) -> dict[str, Any]:
    return {"name": name, "status": status, "value": value, "limit": limit, "reason": reason}
