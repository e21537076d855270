"""Sessions of TensorRT engines, built by `tensorrt` or `tensorrt_rtx`: same names, so one code for both."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from runtime.backends import Array, DeviceName, Guard, Setting, TensorSpec, sidecar
from runtime.backends.cuda import Buffer, cuda_device
from runtime.backends.cuda_graph import CapturedGraph
from runtime.backends.feeds import check_feeds
from runtime.backends.profiles import Limits, Profile, bounds, choose_profile
from runtime.backends.trt_library import Log, library, profiler
from runtime.errors import UserError

_NUMPY_NAMES = {
    "FLOAT": "float32", "HALF": "float16", "INT8": "int8", "INT32": "int32", "INT64": "int64", "UINT8": "uint8",
    "BOOL": "bool",
}  # fmt: skip

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: work on the default stream, torch's too, neither waits nor breaks a capture


def open_tensorrt(
    path: Path, *, device: DeviceName = "auto", threads: int | None = None, **options: bool
) -> TrtSession:
    """An engine built by `tensorrt`; the options are those of TrtSession."""
    return TrtSession(path, "tensorrt", device=device, threads=threads, **options)


def open_tensorrt_rtx(
    path: Path, *, device: DeviceName = "auto", threads: int | None = None, **options: bool
) -> TrtSession:
    """An engine built by `tensorrt_rtx`; the options are those of TrtSession."""
    return TrtSession(path, "tensorrt_rtx", device=device, threads=threads, **options)


class TrtSession:
    """An engine on the first GPU, with a stream and an event of its own.

    `bind` takes the optimisation profile that is tuned nearest to the shapes it is fed. Buffers are kept between calls
    and grow with the batch. With `cuda_graph` a launch replays a captured graph; TensorRT-RTX captures for itself.
    A version-compatible engine brings code to run on the host, so it is opened only with `allow_host_code`. `threads`
    has no meaning here and is only recorded as such.
    """

    def __init__(
        self,
        path: Path,
        flavour: str,
        *,
        device: DeviceName = "auto",
        threads: int | None = None,
        cuda_graph: bool = False,
        allow_host_code: bool = False,
    ) -> None:
        if device == "cpu":
            raise UserError(
                f"device cpu for the engine {path}", "device auto or cuda", "engines run on NVIDIA GPUs only"
            )
        _check_trust(path, allow_host_code)
        trt = library(flavour)
        self.name, self.backend, self.device = path.name, flavour, "cuda"
        self._device = cuda_device()
        self._log = Log(trt)
        self._own_graphs = cuda_graph and not hasattr(trt, "CudaGraphStrategy")
        self._graph: CapturedGraph | None = None
        self._captured: object = None
        with self._device.current():
            self._open(path, trt, cuda_graph, allow_host_code)
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        inputs = [name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self._profiles = _profiles(self._engine, inputs)
        self._profile = 0
        self.inputs = tuple(self._spec(name, *bounds(self._profiles, name)) for name in inputs)
        self.outputs = tuple(self._spec(name) for name in names if name not in inputs)
        self._buffers = {name: Buffer(self._device.driver) for name in names}
        self.settings: dict[str, Setting] = {
            "gpu": self._device.name,
            "version": trt.__version__,
            "threads": None,
            "cuda_graph": cuda_graph,
            "profiles": len(self._profiles),
        }
        self._guard = Guard(self.name)

    def _open(self, path: Path, trt: Any, cuda_graph: bool, allow_host_code: bool) -> None:
        self._runtime = trt.Runtime(self._log.logger)
        if allow_host_code:
            self._runtime.engine_host_code_allowed = True
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        self._check(self._engine, path, "was not accepted by the runtime")
        if cuda_graph and not self._own_graphs:
            config = self._engine.create_runtime_config()
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            self._context = self._engine.create_execution_context(config)
        else:
            self._context = self._engine.create_execution_context()
        self._check(self._context, path, "got no execution context")
        self._stream = self._device.driver.Stream(_NON_BLOCKING)
        self._done = self._device.driver.Event()

    def bind(self, feeds: Mapping[str, Array]) -> None:
        """See Session. Shapes that no optimisation profile takes are a UserError."""
        with self._guard("bind"):
            checked = check_feeds(self.name, self.inputs, feeds)
            profile = choose_profile(self.name, self._profiles, {name: array.shape for name, array in checked.items()})
            with self._device.current():
                self._select(profile)
                for name, array in checked.items():
                    if not self._context.set_input_shape(name, array.shape):
                        raise self._failed(f"refused the shape {array.shape} of {name}")
                    self._place(name, array.shape, str(array.dtype))
                    self._buffers[name].upload(array, self._stream)
                unknown = self._context.infer_shapes()
                if unknown:
                    raise self._failed(f"left the shapes of {list(unknown)} open")
                for spec in self.outputs:
                    self._place(spec.name, tuple(self._context.get_tensor_shape(spec.name)), spec.dtype)
                self._stream.synchronize()
                if self._own_graphs:
                    self._capture()

    def launch(self) -> None:
        """See Session. Returns when the work is queued on the stream."""
        with self._guard("launch"), self._device.current():
            if self._graph is not None:
                self._graph.launch()
            else:
                self._enqueue()
            self._done.record(self._stream)

    def wait(self) -> None:
        """See Session. Waits for the event that the launch left behind its work."""
        with self._guard("wait"), self._device.current():
            self._done.synchronize()

    def fetch(self) -> dict[str, Array]:
        """See Session."""
        with self._guard("fetch"), self._device.current():
            for spec in self.outputs:
                self._buffers[spec.name].download(self._stream)
            self._stream.synchronize()
            return {spec.name: self._buffers[spec.name].host.copy() for spec in self.outputs}

    def layer_times(self, runs: int) -> dict[str, list[float]]:
        """Microseconds of each layer in each of `runs` launches on the bound inputs, by TensorRT's profiler. It stays
        on afterwards, and graphs stay off: time nothing else with this session."""
        watching = profiler(library(self.backend))
        with self._device.current():
            self._drop_graph()
            self._own_graphs = False
            self._context.profiler = watching
        for _ in range(runs):
            self.launch()
            self.wait()
        times: dict[str, list[float]] = watching.times
        return times

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """See Session. Memory goes back while the context is current, the context before its engine and runtime."""
        with self._guard("close"):
            if "_context" not in self.__dict__:
                return
            with self._device.current():
                self._stream.synchronize()
                self._drop_graph()
                for buffer in self._buffers.values():
                    buffer.free()
                for attribute in ("_context", "_engine", "_runtime", "_done", "_stream"):
                    del self.__dict__[attribute]

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream.handle):
            raise self._failed("did not start")

    def _select(self, profile: int) -> None:
        if profile == self._profile:
            return
        if not self._context.set_optimization_profile_async(profile, self._stream.handle):
            raise self._failed(f"refused its optimisation profile {profile}")
        self._stream.synchronize()
        self._profile = profile

    def _capture(self) -> None:
        """A graph for the bound shapes and addresses; the one there is stays while they do."""
        state = (self._profile, tuple((b.address, b.host.shape) for b in self._buffers.values()))
        if state == self._captured:
            return
        self._drop_graph()
        self._enqueue()  # the first run after a change of shapes sets up what a capture may not
        self._stream.synchronize()
        self._graph = CapturedGraph(self._stream.handle, self._enqueue, f"engine {self.name}")
        self._captured = state

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self._graph.free()
        self._graph = self._captured = None

    def _place(self, name: str, shape: tuple[int, ...], dtype: str) -> None:
        self._buffers[name].resize(shape, dtype)
        if not self._context.set_tensor_address(name, self._buffers[name].address):
            raise self._failed(f"refused the address of {name}")

    def _spec(
        self, name: str, smallest: tuple[int, ...] | None = None, largest: tuple[int, ...] | None = None
    ) -> TensorSpec:
        kind = self._engine.get_tensor_dtype(name).name
        if kind not in _NUMPY_NAMES or self._engine.is_shape_inference_io(name):
            raise UserError(
                f"tensor {name} of the engine is {kind}{' and sets a shape' if kind in _NUMPY_NAMES else ''}",
                f"a plain tensor of {', '.join(_NUMPY_NAMES)}",
                "export the network with such inputs and outputs",
            )
        shape = tuple(None if size < 0 else int(size) for size in self._engine.get_tensor_shape(name))
        return TensorSpec(name, shape, _NUMPY_NAMES[kind], smallest, largest)

    def _check(self, handle: object, path: Path, what: str) -> None:
        if handle is None:
            raise UserError(
                f"{path} {what}: {self._log.reason()}",
                f"an engine built for {self._device.name} by this version of {self.backend}",
                "run `demport preflight` on it, and build it again for this device",
            )

    def _failed(self, what: str) -> UserError:
        return UserError(
            f"engine {self.name} {what}: {self._log.reason()}", "an engine that runs", "build the engine again"
        )


def _profiles(engine: Any, inputs: list[str]) -> tuple[Profile, ...]:
    def limits(name: str, index: int) -> Limits:
        shapes = engine.get_tensor_profile_shape(name, index)
        return Limits(*(tuple(int(size) for size in shape) for shape in shapes))

    return tuple({name: limits(name, index) for name in inputs} for index in range(engine.num_optimization_profiles))


def _check_trust(path: Path, allow_host_code: bool) -> None:
    """`UserError` for an engine that its manifest calls version-compatible, unless the caller allows its code."""
    options = (sidecar(path) or {}).get("options")
    if isinstance(options, dict) and options.get("version_compatible") is True and not allow_host_code:
        raise UserError(
            f"{path} is version-compatible: it brings code that runs on this machine's processor",
            "your word that you trust where it comes from",
            "open it with allow_host_code=True, check it by `demport run` of your own config, or build it without "
            "engine.version_compatible",
        )
