"""One narrow interface over everything that runs a network: bind, launch, wait, fetch.

Copies are apart from compute: `bind` copies the inputs to where the network runs, `launch` and `wait` run it,
`fetch` copies the results back. So latency is the time of `launch` and `wait` and needs no special case.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, TypeAlias, cast

from runtime.errors import UserError
from runtime.files import read_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

Array: TypeAlias = "NDArray[Any]"

DeviceName = Literal["auto", "cpu", "cuda"]
Setting = str | int | bool | None
Action = Literal["bind", "launch", "wait", "fetch", "close"]

# How a file is opened. Networks in memory have no file: runtime.backends.torch.TorchSession takes the module itself.
BACKENDS = {
    "onnxruntime": "runtime.backends.onnxruntime:OrtSession",
    "onnxruntime_tensorrt": "runtime.backends.onnxruntime:open_tensorrt_provider",
    "onnxruntime_tensorrt_rtx": "runtime.backends.onnxruntime:open_rtx_provider",
    "tensorrt": "runtime.backends.tensorrt:open_tensorrt",
    "tensorrt_rtx": "runtime.backends.tensorrt:open_tensorrt_rtx",
    "openvino": "runtime.backends.openvino:OpenVinoSession",
}
OPTIONS = {flavour: {"cuda_graph", "allow_host_code"} for flavour in ("tensorrt", "tensorrt_rtx")}
OPEN_ONNX = ("onnxruntime", "onnxruntime_tensorrt", "onnxruntime_tensorrt_rtx", "openvino")
"""The backends that run an .onnx file as it is, without an engine."""
# By suffix: the backends that may open the file. A manifest beside an engine says which of several built it.
SUFFIXES = {
    ".onnx": ("onnxruntime",),
    ".engine": ("tensorrt", "tensorrt_rtx"),
    ".plan": ("tensorrt", "tensorrt_rtx"),
    ".xml": ("openvino",),
}
ENGINE_SUFFIXES = tuple(suffix for suffix in SUFFIXES if suffix != ".onnx")
SIDECAR_BYTES = 1 << 20


@dataclass(frozen=True)
class TensorSpec:
    """An input or output: `shape` has None on a dynamic axis, `dtype` is NumPy's name ("float32").

    `smallest` and `largest` bound every axis where an engine's optimisation profile does, else they are None.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    smallest: tuple[int, ...] | None = None
    largest: tuple[int, ...] | None = None


class Session(Protocol):
    """A network ready to run. One thread at a time: anything else raises UserError, never a wrong result.

    `name` is for people (the file's or the model's name), `backend` a key of BACKENDS or "torch", `device` "cpu" or
    "cuda".
    `settings` records what decides speed or values (threads, providers, denormals).
    """

    @property
    def name(self) -> str: ...
    @property
    def backend(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...
    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...
    @property
    def settings(self) -> Mapping[str, Setting]: ...

    def bind(self, feeds: Mapping[str, Array]) -> None:
        """Copies the inputs in; later changes of the given arrays have no effect. Names, types and shapes must fit
        `inputs`."""

    def launch(self) -> None:
        """Starts one run on the bound inputs; may return before it is done. Repeat as often as wanted."""

    def wait(self) -> None:
        """Returns when the launched run is done."""

    def fetch(self) -> dict[str, Array]:
        """Waits and copies the outputs of the last launch back, as arrays of their own."""

    def close(self) -> None:
        """Frees everything; a second call does nothing, any other use afterwards raises UserError."""


class OpenSession(Session, Protocol):
    """A session of a file: `with open_session(path) as session` closes it at the end."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...


class Guard:
    """Keeps a session's calls in order (bind, launch, fetch) and in one thread: `with guard("launch"): ...`.

    A call that fails takes its step back. The thread that bound the inputs owns the session until another one binds.
    Written as a plain context manager without a generator because it runs inside the timed part (under 1 us).
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._busy = threading.Lock()
        self._owner: int | None = None
        self._state: Literal["open", "bound", "launched", "closed"] = "open"

    def __call__(self, action: Action) -> Guard:
        if not self._busy.acquire(blocking=False):
            raise self._two_threads()
        problem = self._problem(action)
        if problem is not None:
            self._busy.release()
            raise problem
        if action == "bind":
            self._owner, self._state = threading.get_ident(), "bound"
        elif action == "launch":
            self._state = "launched"
        elif action == "close":
            self._state = "closed"
        return self

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and self._state in ("bound", "launched"):
            self._state = "open" if self._state == "bound" else "bound"
        self._busy.release()

    def _problem(self, action: Action) -> UserError | None:
        if action == "close":
            return None
        if self._state == "closed":
            return UserError(f"session {self._name} is closed", "an open session", "open it again")
        if action == "bind":
            return None
        if self._state == "open":
            return UserError(f"{action} on session {self._name} before bind", "bind, launch, fetch", "call bind first")
        if action == "fetch" and self._state == "bound":
            return UserError(f"fetch on session {self._name} before launch", "bind, launch, fetch", "call launch first")
        if self._owner != threading.get_ident():
            return self._two_threads()
        return None

    def _two_threads(self) -> UserError:
        return UserError(
            f"session {self._name} is used from two threads", "one thread at a time", "open one session for each thread"
        )


class _Opener(Protocol):
    def __call__(self, path: Path, *, device: DeviceName, threads: int | None, **options: bool) -> OpenSession: ...


def open_session(
    path: Path | str,
    backend: str | None = None,
    device: DeviceName = "auto",
    threads: int | None = None,
    **options: bool,
) -> OpenSession:
    """Opens an .onnx file or a TensorRT .engine/.plan; `backend` None reads it from the suffix and the engine's
    manifest.

    `threads` None uses every core this process may run on. `options` are the backend's own: cuda_graph and
    allow_host_code for an engine, see TrtSession. Raises UserError for a file that is missing or does not
    load, for an unknown backend or device, and where the library or the device is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is no file", "an .onnx, .engine or .plan file", "check the path")
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"unknown device {device!r}", "auto, cpu or cuda", "choose one of them")
    if threads is not None and threads < 1:
        raise UserError(f"{threads} threads", "at least 1", "give a positive number, or leave it out to use every core")
    backend = backend or _backend_of(path)
    if backend not in BACKENDS:
        raise UserError(f"unknown backend {backend!r}", f"one of {', '.join(BACKENDS)}", "choose one of them")
    module, name = BACKENDS[backend].split(":")
    opener = cast(_Opener, getattr(import_module(module), name))
    if unknown := sorted(options.keys() - OPTIONS.get(backend, set())):
        raise UserError(
            f"the option {unknown[0]!r} for {backend}",
            f"one of {', '.join(sorted(OPTIONS.get(backend, set()))) or 'none'}",
            "leave it out",
        )
    return opener(path, device=device, threads=threads, **options)


def _backend_of(path: Path) -> str:
    if path.suffix not in SUFFIXES:
        raise UserError(
            f"{path} ends in {path.suffix!r}",
            ".onnx, " + " or ".join(ENGINE_SUFFIXES),
            f"rename it, or name the backend ({', '.join(BACKENDS)})",
        )
    candidates = SUFFIXES[path.suffix]
    flavour = _manifest_flavour(path) if path.suffix in ENGINE_SUFFIXES else None
    if flavour is not None:
        return flavour
    if len(candidates) == 1:
        return candidates[0]
    installed = [name for name in candidates if find_spec(name) is not None]
    if len(installed) == 1:
        return installed[0]
    state = f"both {' and '.join(installed)} are" if installed else f"neither {' nor '.join(candidates)} is"
    raise UserError(
        f"{path} has no manifest {path.name}.json beside it and {state} installed",
        "to know which of the two built the engine",
        "name the backend, or put the manifest back" if installed else "install the library that built the engine",
    )


def companions(path: Path) -> tuple[Path, ...]:
    """The files that a session reads beside `path`: of an IR the weights, and the manifest for its precision."""
    return (path.with_suffix(".bin"), path.with_name(path.name + ".json")) if path.suffix == ".xml" else ()


def sidecar(engine: Path) -> dict[str, Any] | None:
    """The content of `<engine>.json`, None where there is none. UserError where it is no JSON object.

    It is read for what it says and not verified: `export.engines.manifest.verify` holds it against the engine.
    """
    path = engine.with_name(engine.name + ".json")
    if not path.is_file():
        return None
    try:
        content = read_json(path, SIDECAR_BYTES)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", "an engine manifest", "build the engine again") from error
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error})", "an engine manifest", "build the engine again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is no JSON object", "an engine manifest", "build the engine again")
    return content


def _manifest_flavour(engine: Path) -> str | None:
    """The flavour that the sidecar names; None where there is no sidecar."""
    content = sidecar(engine)
    if content is None:
        return None
    flavour, candidates = content.get("flavour"), SUFFIXES.get(engine.suffix, ())
    if flavour not in candidates:
        raise UserError(
            f"{engine.name}.json names the flavour {flavour!r}", " or ".join(candidates), "build the engine again"
        )
    return cast(str, flavour)
