"""check.json as the check leaves it, with invented figures whose consequences are worked out in the tests."""

from __future__ import annotations

from typing import Any

IMAGES = 397
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


CONDITIONS = {
    "before": {"load_1m": 0.5, "governor": None, "cpu_mhz": 2600, "gpus": []},
    "after": {"load_1m": 0.7, "governor": None, "cpu_mhz": 2600, "gpus": []},
    "looks": 4, "others_busy_pct": 3.1, "stolen_pct": 0.0, "cpu_mhz": [2600, 2600], "gpus": [],
}  # fmt: skip


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
        "classes": [
            {"name": "eight", "n": 40, "dense": 1.0, "compact": 0.95, "forms": {"torch": 0.95, "fp16": 0.9}},
            {"name": "one", "n": 357, "dense": 0.994, "compact": 0.994, "forms": {"torch": 0.994, "fp16": 0.994}},
        ],
        "broken": None,
        "worst": {"from": "dense", "to": "compact", "images": [WORST]},
        "reference": None,
        "concurrency": [
            loaded("onnxruntime", "fp32", 1, 12_000.0, 1.25),
            loaded("onnxruntime", "fp32", 2, 17_000.0, 1.5),
            loaded("onnxruntime", "fp16", 1, 9_000.0, 1.0),
            not_loaded("onnxruntime", "fp16", 2, "5 rounds of 2 at once would take 61 s, at most 20 s are allowed"),
            not_loaded("tensorrt_rtx", "fp16", 1, "no GPU on this machine"),
            not_loaded("tensorrt_rtx", "fp16", 2, "no GPU on this machine"),
        ],
        "why": [why(4.0, 1.6)],
        "hops": [
            hop("compact", "masked", "torch"),
            hop("dense", "torch", "onnx"),
            hop("dense", "onnx", "simplified"),
            hop("compact", "torch", "onnx"),
            hop("compact", "onnx", "simplified"),
            {
                **hop("compact", "simplified", "tensorrt_rtx.fp16.SM86"),
                **dict.fromkeys(("max_abs", "max_rel", "top1_agreement", "accuracy_delta", "paired")),
                "non_inferior": None,
                "reason": "no GPU",
            },
        ],
        "latency": latencies(),
        "engines": [engine(model, precision) for model in ("dense", "compact") for precision in ("fp32", "fp16")],
        "verdict": verdict(),
        "metric_name": "accuracy",
    }


def verdict() -> dict[str, Any]:
    return {
        "status": "inconclusive",
        "gates": [
            gate("max_accuracy_drop", "pass", 0.5038, 1.0, ""),
            gate("min_speedup", "pass", 1.6, 1.5, ""),
            gate("max_abs_diff", "pass", 3.8e-6, 1e-5, ""),
            gate(
                "engines",
                "inconclusive",
                None,
                None,
                "4 engines were built, none could run: no GPU on this machine",
            ),
        ],
    }


def latencies() -> dict[str, Any]:
    """ONNX Runtime in two precisions; an engine that did not run here."""
    return {
        "onnxruntime": {
            "fp32": {"b1": latency(0.21, 0.16, 1.31), "b32": latency(1.83, 1.144, 1.6)},
            "fp16": {"b32": latency(2.0, 2.02, 0.99)},
        },
        "tensorrt_rtx": {
            "fp16": {
                "b32": {
                    **dict.fromkeys(("dense", "compact", "speedup", "end_to_end", "settings", "protocol")),
                    "reason": "no GPU on this machine",
                }
            }
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
        "top5": {"torch": 1.0, "onnx": 1.0},
        "metric": {},
        "denormals": 0,
        "reasons": {"tensorrt_rtx.fp16.SM86": "no GPU on this machine"},
        "intervals": {},
    }


WORST = {
    "index": 17, "label": "eight", "before": "eight", "after": "one", "p_before": 0.91, "p_after": 0.22,
    "file": "worst/17.png",
}  # fmt: skip


def loaded(backend: str, precision: str, streams: int, dense: float, ratio: float) -> dict[str, Any]:
    """An entry of `concurrency`; `dense` is in images a second."""
    return {
        "backend": backend, "precision": precision, "streams": streams, "batch": 32, "threads": 1,
        "dense": load(dense, 1.9), "compact": load(dense * ratio, 1.2), "speedup": speedup(ratio), "reason": None,
    }  # fmt: skip


def not_loaded(backend: str, precision: str, streams: int, reason: str) -> dict[str, Any]:
    nothing = dict.fromkeys(("threads", "dense", "compact", "speedup"))
    return {
        "backend": backend, "precision": precision, "streams": streams, "batch": 32, **nothing, "reason": reason
    }  # fmt: skip


def load(images_per_s: float, p50: float) -> dict[str, Any]:
    return {"images_per_s": images_per_s, "p50_ms": p50, "p95_ms": p50 * 1.3, "p99_ms": p50 * 2, "n": 900}


def speedup(ratio: float) -> dict[str, Any]:
    verdict = "faster" if ratio > 1.05 else "not distinguishable"
    edges = [round(ratio - 0.04, 4), round(ratio + 0.05, 4)]
    return {"ratio": ratio, "ci95": edges, "verdict": verdict, "detectable": 1.06}


def why(macs_ratio: float, ratio: float) -> dict[str, Any]:
    """An entry of `why` with two layers, of which the second kept its channels."""
    layers = [
        {"layer": "stem.conv", "channels_before": 32, "channels_after": 20, "width": 24, "dense_us": 300.0,
         "compact_us": 200.0, "dense_macs": 4_000_000, "compact_macs": 1_000_000, "bound": "compute", "floor_us": 40.0},
        {"layer": "layer3", "channels_before": 128, "channels_after": 128, "width": 128, "dense_us": 500.0,
         "compact_us": 400.0, "dense_macs": 9_000_000, "compact_macs": 9_000_000, "bound": "memory", "floor_us": 350.0},
    ]  # fmt: skip
    times = {"layers_us": 600.0, "reformat_us": 50.0, "other_us": 20.0, "between_us": 30.0, "kernels": {"Conv": 2}}
    return {
        "where": "ONNX Runtime fp32 on the CPU", "batch": 32, "threads": 2, "speedup": ratio, "macs_ratio": macs_ratio,
        "share": ratio / macs_ratio,
        "roofline": {"backend": "onnxruntime", "device": "cpu", "threads": 2, "peak_gflops": 100.0,
                     "bandwidth": [[262144, 40.0], [134217728, 20.0]], "op_us": 0.2, "run_us": 4.0},
        "layers": layers,
        "time": {"dense": {"run_us": 900.0, **times}, "compact": {"run_us": 700.0, **times}},
        "bound_pct": {"compute": 30.0, "memory": 57.0, "launch": 2.0, "reformat": 7.0, "between": 4.0},
        "verdict": "memory",
        "findings": [{"what": "57 % of a run is in 1 layers that lost no work (layer3)",
                      "remedy": "more pressure there (sparse.lambda_peak)", "pct": 57.0}],
    }  # fmt: skip


def hop(model: str, source: str, target: str) -> dict[str, Any]:
    return {
        "model": model,
        "from": source,
        "to": target,
        "max_abs": 2.4e-6,
        "max_rel": 1.1e-6,
        "top1_agreement": 1.0,
        "accuracy_delta": 0.0,
        "paired": {
            "n": IMAGES, "only_first": 0, "only_second": 0, "difference_pp": 0.0, "ci95_pp": [-0.96, 0.96],
            "p_value": 1.0, "method": "p: exact McNemar test",
        },
        "non_inferior": "yes",
        "reason": None,
    }  # fmt: skip


def latency(dense_ms: float, compact_ms: float, ratio: float) -> dict[str, Any]:
    def timing(name: str, p50: float) -> dict[str, Any]:
        return {
            "name": name,
            "p50_ms": p50,
            "p95_ms": p50 * 1.2,
            "p99_ms": p50 * 1.3,
            "mean_ms": p50 * 1.05,
            "best_ms": p50 * 0.95,
            "images_per_s": 1000 / p50,
            "n": 640,
            "repeats": 1,
            "samples_ms": [p50 * (1 + step / 100) for step in range(-3, 10)],
        }

    pair = {"dense": timing("dense.onnx", dense_ms), "compact": timing("compact.onnx", compact_ms)}
    return {
        **pair,
        "speedup": speedup(ratio),
        "end_to_end": {**pair, "speedup": speedup(round(0.9 * ratio, 4))},
        "settings": {"dense": {"threads": 2, "device": "cpu"}, "compact": {"threads": 2, "device": "cpu"}},
        "protocol": {"blocks": 40, "order": "ABBA, turning", "conditions": CONDITIONS},
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


def gate(name: str, status: str, value: float | None, limit: float | None, reason: str) -> dict[str, Any]:
    return {"name": name, "status": status, "value": value, "limit": limit, "reason": reason}
