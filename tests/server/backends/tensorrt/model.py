"""A sentinel in place of NVIDIA's TensorRT backend: a config that reaches it has passed the server's own validation."""

from __future__ import annotations

import json
from pathlib import Path

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """The interface that the python backend calls."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        plan = Path(args["model_repository"], args["model_version"], "model.plan")
        raise pb_utils.TritonModelException(
            f"config accepted: batch {config['max_batch_size']}, {plan.stat().st_size} bytes; no GPU to load it"
        )
