"""A python-based Triton backend called `onnxruntime`, on the CPU: it stands in for NVIDIA's, which is built for GPUs.

Like it, it takes `platform: "onnxruntime_onnx"`, reads <version>/model.onnx, and refuses a config whose tensors are not
the file's. Requests that the scheduler put together run as one batch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

TYPES = {
    "tensor(float)": "TYPE_FP32",
    "tensor(float16)": "TYPE_FP16",
    "tensor(int64)": "TYPE_INT64",
    "tensor(int32)": "TYPE_INT32",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(bool)": "TYPE_BOOL",
    "tensor(string)": "TYPE_STRING",
}


def misfit(kind: str, told: dict[str, Any], file: dict[str, Any], batched: bool) -> str | None:
    """What is wrong with one tensor of the config; None if nothing is."""
    name = told["name"]
    if name not in file:
        return f"unexpected inference {kind} '{name}', allowed {kind}s are: {', '.join(sorted(file))}"
    if TYPES.get(file[name].type) != told["data_type"]:
        return f"{kind} '{name}': the config says {told['data_type']}, the model {file[name].type}"
    dims = [] if "reshape" in told else [int(dim) for dim in told["dims"]]
    shape = [-1, *dims] if batched else dims
    have = [dim if isinstance(dim, int) else -1 for dim in file[name].shape]
    if len(shape) != len(have) or any(b not in (-1, a) for a, b in zip(shape, have, strict=True)):
        return f"{kind} '{name}': the config says {shape}, the model {have}"
    return None


class TritonPythonModel:
    """The interface that the python backend calls."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        path = Path(args["model_repository"], args["model_version"], "model.onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
        self.batched = config["max_batch_size"] > 0
        inputs = {tensor.name: tensor for tensor in self.session.get_inputs()}
        outputs = {tensor.name: tensor for tensor in self.session.get_outputs()}
        wrong = [misfit("input", told, inputs, self.batched) for told in config["input"]]
        wrong += [misfit("output", told, outputs, self.batched) for told in config["output"]]
        if missing := set(inputs) - {told["name"] for told in config["input"]}:
            wrong.append(f"the config lacks the inputs {sorted(missing)}")
        if told := [reason for reason in wrong if reason]:
            raise pb_utils.TritonModelException(told[0])
        self.inputs, self.outputs = list(inputs), [told["name"] for told in config["output"]]

    def execute(self, requests: list[Any]) -> list[Any]:
        feeds = [{n: pb_utils.get_input_tensor_by_name(r, n).as_numpy() for n in self.inputs} for r in requests]
        if not self.batched or len(requests) == 1:
            return [self.response(self.session.run(self.outputs, feed)) for feed in feeds]
        together = {name: np.concatenate([feed[name] for feed in feeds]) for name in self.inputs}
        results = self.session.run(self.outputs, together)
        ends = np.cumsum([len(feed[self.inputs[0]]) for feed in feeds])[:-1]
        return [self.response(list(parts)) for parts in zip(*(np.split(r, ends) for r in results), strict=True)]

    def response(self, arrays: list[Any]) -> Any:
        tensors = []
        for name, array in zip(self.outputs, arrays, strict=True):
            plain = array if array.dtype != object else np.array([[t.encode() for t in row] for row in array], object)
            tensors.append(pb_utils.Tensor(name, np.ascontiguousarray(plain)))
        return pb_utils.InferenceResponse(tensors)
