"""A config whose whole line takes seconds."""

from __future__ import annotations

from pathlib import Path

# A penalty strong enough for channels to die within two epochs.
CONFIG = """
name: tiny
threads: 1
model: {args: {width: 4}}
dense: {epochs: 1, batch_size: 100}
sparse: {epochs: 2, batch_size: 100, lambda_peak: 1.0}
surgery: {align: 1}
engine: {flavour: none}
check:
  {batch_sizes: [8], gate_batch: 8, threads: 1, min_blocks: 5, time_limit_s: 1, streams: [],
   gates: {min_speedup: 0, max_accuracy_drop: 100}}
"""


def compact_weights(run: Path) -> bytes:
    return (run / "30-surgery" / "weights.safetensors").read_bytes()
