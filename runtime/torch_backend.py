"""Sessions of a torch module as it is in memory, on the CPU or on a CUDA device, eager."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from runtime.backend import Array, DeviceName, Guard, Setting, TensorSpec
from runtime.device import usable_cores
from runtime.errors import UserError
from runtime.feeds import check_feeds


def image_inputs(input_shape: tuple[int, ...]) -> tuple[TensorSpec, ...]:
    """The specs of a classifier's only input: `input`, float32 (batch, C, H, W) for `input_shape` (C, H, W)."""
    return (TensorSpec("input", (None, *input_shape), "float32"),)


class TorchSession:
    """A copy of `module` in eval mode; the given module is left untouched. `outputs` names what it returns, in order.

    The first axis of every output is taken for the batch. On a CUDA device work is queued on a stream of the
    session's own and waited for by an event; TF32 is off during a run, so that float32 means float32. Torch's number
    of threads is the process's: a run sets it, and
    `close` puts back the one from before the session was opened. (Changed at every run, torch would start its threads
    anew.)
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
    ) -> None:
        self.name, self.inputs, self._names = name, tuple(inputs), tuple(outputs)
        self.device = _device(device)
        self._threads = threads or usable_cores()
        self._threads_before: int | None = torch.get_num_threads()
        self._module = copy.deepcopy(module).to(self.device).eval().requires_grad_(False)
        cuda: Any = torch.cuda  # its classes have no types
        self._stream = cuda.Stream() if self.device == "cuda" else None
        self._done = cuda.Event() if self.device == "cuda" else None
        self._arguments: tuple[Tensor, ...] = ()
        self._results: tuple[Tensor, ...] = ()
        self.settings: dict[str, Setting] = {
            "threads": self._threads,
            "denormals": "as the process has them",
            "mode": "eager",
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
            self._arguments = tuple(torch.from_numpy(array.copy()).to(self.device) for array in checked.values())
            self._settle()

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
                name: np.array(result.cpu().numpy()) for name, result in zip(self._names, self._results, strict=True)
            }

    def close(self) -> None:
        """See Session."""
        with self._guard("close"):
            self._arguments = self._results = ()
            self._module = nn.Identity()
            self._put_threads_back()

    def _run(self) -> None:
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        with torch.inference_mode():
            if self._stream is None or self._done is None:
                self._results = _as_tuple(self._module(*self._arguments))
                return
            with torch.cuda.stream(self._stream), _without_tf32():
                self._results = _as_tuple(self._module(*self._arguments))
            self._done.record(self._stream)

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
        self._arguments = tuple(torch.from_numpy(array).to(self.device) for array in arrays)
        self._settle()
        self._run()
        self._synchronize()
        if len(self._results) != len(self._names):
            raise UserError(
                f"{self.name} returns {len(self._results)} tensors",
                f"{len(self._names)}: {self._names}",
                "name every output",
            )
        return tuple(
            TensorSpec(name, (None, *result.shape[1:]), str(result.dtype).removeprefix("torch."))
            for name, result in zip(self._names, self._results, strict=True)
        )


def _device(device: DeviceName) -> str:
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("torch finds no CUDA device", "an NVIDIA GPU and its driver", "use device cpu")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def _as_tuple(result: object) -> tuple[Tensor, ...]:
    results = tuple(result) if isinstance(result, (tuple, list)) else (result,)
    if not all(isinstance(tensor, Tensor) for tensor in results):
        raise UserError(
            f"the network returns {type(result).__name__}", "a tensor or a tuple of tensors", "wrap it so that it does"
        )
    return results


@contextmanager
def _without_tf32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
