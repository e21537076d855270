"""Sessions of a torch module in memory, on the CPU or on a CUDA device: eager, compiled, or as a CUDA graph."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from runtime.backends import Array, DeviceName, Guard, Setting, TensorSpec
from runtime.backends.feeds import check_feeds
from runtime.device import usable_cores
from runtime.errors import UserError


def image_inputs(input_shape: tuple[int, ...]) -> tuple[TensorSpec, ...]:
    """The specs of a classifier's only input: `input`, float32 (batch, C, H, W) for `input_shape` (C, H, W)."""
    return (TensorSpec("input", (None, *input_shape), "float32"),)


Mode = Literal["eager", "compiled", "cuda_graph"]
Precision = Literal["fp32", "fp16", "bf16"]
_DTYPES = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}
_WARM_UP = 3  # runs before a capture, as torch.cuda.graph asks for


class TorchSession:
    """A copy of `module` in eval mode; the given module is left untouched. `outputs` names what it returns, in order.

    `mode` compiled is `torch.compile`: `bind` compiles for each new shape, so that no launch does. cuda_graph captures
    the eager run for the bound shape and replays it. `precision` converts the module and its float inputs; inputs and
    outputs of the session stay float32.

    The first axis of every output is taken for the batch. On a CUDA device work is queued on a stream of the
    session's own and waited for by an event; TF32 is off during a run, so that float32 means float32.

    A run sets torch's number of threads for the thread it is called in, which has a team of its own: sessions in
    several threads take `threads` cores each. `close` puts back the number from before the session was opened, so close
    the last one opened first. (Changed at every run, torch would start its threads anew.)
    """

    backend = "torch"

    def __init__(
        self,
        module: nn.Module,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[str] = ("logits",),
        *,
        name: str = "torch",
        device: DeviceName = "auto",
        threads: int | None = None,
        mode: Mode = "eager",
        precision: Precision = "fp32",
    ) -> None:
        self.name, self.inputs, self._names = name, tuple(inputs), tuple(outputs)
        self.device = _device(device)
        if mode == "cuda_graph" and self.device != "cuda":
            raise UserError("mode cuda_graph without a CUDA device", "an NVIDIA GPU and its driver", "use mode eager")
        self._mode, self._dtype = mode, _DTYPES[precision]
        self._threads = threads or usable_cores()
        self._threads_before: int | None = torch.get_num_threads()
        self._module = copy.deepcopy(module).to(self.device).eval().requires_grad_(False)
        if self._dtype is not None:
            self._module = self._module.to(self._dtype)
        self._run_module = torch.compile(self._module, dynamic=False) if mode == "compiled" else self._module
        self._graph: Any = None
        cuda: Any = torch.cuda  # its classes have no types
        self._stream = cuda.Stream() if self.device == "cuda" else None
        self._done = cuda.Event() if self.device == "cuda" else None
        self._arguments: tuple[Tensor, ...] = ()
        self._results: tuple[Tensor, ...] = ()
        self.settings: dict[str, Setting] = {
            "threads": self._threads,
            "denormals": "as the process has them",
            "mode": mode,
            "precision": precision,
            "tf32": False,
        }
        self._guard = Guard(name)
        try:
            self.outputs = self._output_specs()
        except BaseException:
            self._put_threads_back()
            raise

    def bind(self, feeds: Mapping[str, Array]) -> None:
        """See Session."""
        with self._guard("bind"):
            checked = check_feeds(self.name, self.inputs, feeds)
            self._place(tuple(checked.values()))
            self._settle()
            if self._mode != "eager":
                self._prepare()

    def launch(self) -> None:
        """See Session. On the CPU it returns when the run is done."""
        with self._guard("launch"):
            self._run()

    def wait(self) -> None:
        """See Session."""
        with self._guard("wait"):
            self._synchronize()

    def fetch(self) -> dict[str, Array]:
        """See Session."""
        with self._guard("fetch"):
            self._synchronize()
            return {
                name: np.array(_float32(result).cpu().numpy())
                for name, result in zip(self._names, self._results, strict=True)
            }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """See Session."""
        with self._guard("close"):
            self._arguments = self._results = ()
            self._module = self._run_module = nn.Identity()
            self._graph = None
            self._put_threads_back()

    def _place(self, arrays: Sequence[Array]) -> None:
        """Copies the inputs to the device; into the tensors there where their shapes are the same."""
        tensors = tuple(torch.from_numpy(array.copy()) for array in arrays)
        if self._dtype is not None:
            tensors = tuple(tensor.to(self._dtype) if tensor.is_floating_point() else tensor for tensor in tensors)
        if [tensor.shape for tensor in tensors] == [tensor.shape for tensor in self._arguments]:
            with torch.inference_mode():
                for held, tensor in zip(self._arguments, tensors, strict=True):
                    held.copy_(tensor)
            return
        self._graph = None  # it is one of other shapes and addresses
        with torch.inference_mode():
            self._arguments = tuple(tensor.to(self.device) for tensor in tensors)

    def _use_threads(self) -> None:
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)

    def _run(self) -> None:
        self._use_threads()
        with torch.inference_mode():
            if self._stream is None or self._done is None:
                self._results = _as_tuple(self._run_module(*self._arguments))
                return
            with torch.cuda.stream(self._stream), _WITHOUT_TF32:
                if self._graph is not None:
                    self._graph.replay()
                else:
                    self._results = _as_tuple(self._run_module(*self._arguments))
            self._done.record(self._stream)

    def _prepare(self) -> None:
        """Compiles or captures for the bound shapes. `UserError` with torch's first line where it cannot."""
        if self._graph is not None:
            return
        try:
            for _ in range(_WARM_UP if self._mode == "cuda_graph" else 1):
                self._run()
            self._settle()
            if self._mode == "cuda_graph":
                self._capture()
        except UserError:
            raise
        except Exception as error:  # compilers and captures fail in many ways
            first = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            raise UserError(
                f"torch cannot run {self.name} in mode {self._mode}: {first}",
                "a network that it can compile or capture",
                "use mode eager",
            ) from error

    def _capture(self) -> None:
        cuda: Any = torch.cuda
        graph = cuda.CUDAGraph()
        with torch.inference_mode(), _WITHOUT_TF32, cuda.graph(graph, stream=self._stream):
            self._results = _as_tuple(self._run_module(*self._arguments))
        self._settle()
        self._graph = graph

    def _put_threads_back(self) -> None:
        if self._threads_before is not None:
            torch.set_num_threads(self._threads_before)
        self._threads_before = None

    def _settle(self) -> None:
        """Waits for the copies, which ran on torch's own stream."""
        if self._stream is not None:
            torch.cuda.synchronize()

    def _synchronize(self) -> None:
        if self._done is not None:
            self._done.synchronize()

    def _output_specs(self) -> tuple[TensorSpec, ...]:
        """What the module returns for one image of zeros."""
        shapes = [tuple(1 if size is None else size for size in spec.shape) for spec in self.inputs]
        arrays = [np.zeros(shape, spec.dtype) for shape, spec in zip(shapes, self.inputs, strict=True)]
        self._place(arrays)
        self._settle()
        self._use_threads()
        with torch.inference_mode():  # eager: compiling waits for the first shapes that are bound
            self._results = _as_tuple(self._module(*self._arguments))
        self._settle()
        if len(self._results) != len(self._names):
            raise UserError(
                f"{self.name} returns {len(self._results)} tensors",
                f"{len(self._names)}: {self._names}",
                "name every output",
            )
        return tuple(
            TensorSpec(name, (None, *result.shape[1:]), str(_float32(result).dtype).removeprefix("torch."))
            for name, result in zip(self._names, self._results, strict=True)
        )


def _device(device: DeviceName) -> str:
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("torch finds no CUDA device", "an NVIDIA GPU and its driver", "use device cpu")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def _float32(result: Tensor) -> Tensor:
    """Half-precision results in float32: NumPy has no bfloat16."""
    return result.float() if result.dtype in (torch.float16, torch.bfloat16) else result


def _as_tuple(result: object) -> tuple[Tensor, ...]:
    """Of a mapping its values, which the network gives in the order of the session's names."""
    whole = result.values() if isinstance(result, Mapping) else result
    results = (whole,) if isinstance(whole, Tensor) or not isinstance(whole, Iterable) else tuple(whole)
    if not all(isinstance(tensor, Tensor) for tensor in results):
        raise UserError(
            f"the network returns {type(result).__name__}",
            "a tensor, or several in a tuple or by name",
            "wrap it so that it does",
        )
    return results


class _WithoutTf32:
    """TF32 is off from the first run that begins to the last that ends: the switches are the process's, and sessions
    run in several threads at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs = 0
        self._before = False, False

    def __enter__(self) -> None:
        with self._lock:
            if self._runs == 0:
                self._before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
                torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
            self._runs += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._runs -= 1
            if self._runs == 0:
                torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = self._before


_WITHOUT_TF32 = _WithoutTf32()
