"""Thin stand-ins for `tensorrt` 10.x and 11.x that have no name their version lacks.

`module(version)` gives what the builder sees of one version: classes with a little behaviour, each reduced to the names
that the real bindings of that version have (`trt_names.json`, see `record_names.py`). Code that touches any other name
fails with AttributeError. The network is always one convolution on `input` (-1, 3, 8, 8), in the type that the file's
first word names; nothing is computed.
"""

from __future__ import annotations

import json
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

NAMES: dict[str, dict[str, list[str]]] = json.loads((Path(__file__).parent / "trt_names.json").read_text())
VERSIONS = tuple(NAMES)
ENUMS = (
    "BuilderFlag NetworkDefinitionCreationFlag MemoryPoolType ProfilingVerbosity HardwareCompatibilityLevel "
    "LayerInformationFormat DataType TensorIOMode LayerType"
).split()


class Guarded:
    """Has the public names in `NAMES_HERE` and no others; what begins with an underscore is the stand-in's own."""

    NAMES_HERE: frozenset[str] = frozenset()

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_") and name not in type(self).NAMES_HERE and name != "NAMES_HERE":
            raise AttributeError(f"{type(self).__name__} of this version has no {name}")
        return object.__getattribute__(self, name)

    def __setattr__(self, name: str, value: object) -> None:
        if not name.startswith("_") and name not in type(self).NAMES_HERE:
            raise AttributeError(f"{type(self).__name__} of this version has no {name}")
        object.__setattr__(self, name, value)


class ITensor(Guarded):
    def __init__(self, name: str, kind: Any, shape: tuple[int, ...]) -> None:
        self.name, self.dtype, self.shape = name, kind, shape


class ILayer(Guarded):
    def __init__(self, kind: Any, given: ITensor, made: ITensor) -> None:
        self.name, self.type, self.num_inputs, self.num_outputs = "conv1", kind, 1, 1
        self._given, self._made = given, made

    def get_input(self, index: int) -> ITensor | None:
        return self._given if index == 0 else None

    def get_output(self, index: int) -> ITensor:
        assert index == 0
        return self._made


class IConvolutionLayer(ILayer):
    """5x5, 3 to 8 channels."""

    kernel_size_nd = (5, 5)
    num_groups = 1
    num_output_maps = 8


class INetworkDefinition(Guarded):
    num_layers = num_inputs = num_outputs = 1

    def __init__(self, flags: int) -> None:
        self._flags = flags
        self._layer: Any = None

    def get_layer(self, index: int) -> Any:
        return self._layer

    def get_input(self, index: int) -> Any:
        return self._layer.get_input(0)

    def get_output(self, index: int) -> Any:
        return self._layer.get_output(0)


class ParserError(Guarded):
    def node_name(self) -> str:
        return "relu1"

    def node_operator(self) -> str:
        return "Mystery"

    def desc(self) -> str:
        return "no importer"


class OnnxParser(Guarded):
    def __init__(self, network: Any, logger: Any) -> None:
        self._network = network
        self.num_errors = 0

    def parse_from_file(self, path: str) -> bool:
        word = Path(path).read_text().split()[0]
        trt = self._trt
        if word == "empty":
            self._network.num_outputs = 0
            return True
        if word not in trt.DataType.__members__:
            self.num_errors = 1
            return False
        given = trt.ITensor("input", trt.DataType.FLOAT, (-1, 3, 8, 8))
        made = trt.ITensor("logits", trt.DataType[word], (-1, 8, 8, 8))
        self._network._layer = trt.ILayer(trt.LayerType.CONVOLUTION, given, made)
        return True

    def get_error(self, index: int) -> Any:
        return self._trt.ParserError()


class ITimingCache(Guarded):
    def __init__(self, content: bytes) -> None:
        self._entries = set(content.split(b"\n")) - {b""}

    def combine(self, other: Any, ignore_mismatch: bool) -> bool:
        self._entries |= other._entries
        return not ignore_mismatch

    def serialize(self) -> memoryview:
        return memoryview(b"\n".join(sorted(self._entries)))


class IOptimizationProfile(Guarded):
    def __init__(self) -> None:
        self._shapes: dict[str, Any] = {}

    def set_shape(self, name: str, low: Any, opt: Any, high: Any) -> None:
        self._shapes[name] = (low, opt, high)


class IBuilderConfig(Guarded):
    """Remembers what it is told. A timing cache is this version's where its entries begin with the version."""

    builder_optimization_level = 3

    def __init__(self) -> None:
        self._flags = {self._trt.BuilderFlag.TF32}
        self._cache: Any = None
        self._profiles: list[Any] = []
        self._limits: dict[Any, int] = {}

    def set_flag(self, flag: Any) -> None:
        self._flags.add(flag)

    def clear_flag(self, flag: Any) -> None:
        self._flags.discard(flag)

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self._limits[pool] = size

    def add_optimization_profile(self, profile: Any) -> int:
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, content: bytes) -> Any:
        return self._trt.ITimingCache(content)

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        version = self._trt.__version__.encode()
        if not all(entry.startswith(version) for entry in cache._entries):
            return False
        self._cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self._cache


class Builder(Guarded):
    """Measures one kernel, "conv1", and logs an error where it may not; its engine is the word "engine"."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def create_network(self, flags: int) -> Any:
        return self._trt.INetworkDefinition(flags)

    def create_builder_config(self) -> Any:
        config = self._trt.IBuilderConfig()
        self._configs.append(config)
        return config

    def create_optimization_profile(self) -> Any:
        return self._trt.IOptimizationProfile()

    def build_serialized_network(self, network: Any, config: Any) -> memoryview | None:
        trt = self._trt
        flags, cache = config._flags, config._cache
        measured = f"{trt.__version__} conv1".encode()
        if cache is not None and measured not in cache._entries:
            if trt.BuilderFlag.ERROR_ON_TIMING_CACHE_MISS in flags:
                self._logger.log(trt.ILogger.Severity.ERROR, "Tactic of conv1 is missing in the timing cache.")
                return None
            cache._entries.add(measured)
        watcher = vars(config).get("progress_monitor")
        if watcher is not None:
            watcher.phase_start("Building", None, 2)
            assert watcher.step_complete("Building", 0)
            assert watcher.step_complete("Building", 1)
            watcher.phase_finish("Building")
        return memoryview(b"engine")


class EngineInspector(Guarded):
    """Tells of one convolution in the schema of its version; `_kind` is the type it runs in."""

    _kind = "Float"

    def get_engine_information(self, form: Any) -> str:
        assert form == self._trt.LayerInformationFormat.JSON
        layer: dict[str, Any] = {"Name": "conv1", "LayerType": "CaskConvolution"}
        if self._trt.__version__.startswith("10."):
            layer["Inputs"] = [{"Name": "input", "Format/Datatype": f"Row major linear {self._kind} format"}]
            return json.dumps({"Layers": [layer], "Bindings": ["input", "logits"]})
        layer["Inputs"] = [{"Name": "input", "Format": "LINEAR", "DataType": self._kind}]
        return json.dumps({"Layers": [layer], "I/O Tensors": [{"Name": "input"}, {"Name": "logits"}]})


class ICudaEngine(Guarded):
    def create_engine_inspector(self) -> Any:
        return self._trt.EngineInspector()


class Runtime(Guarded):
    """Takes the builder's engine; one that is version-compatible only where its code is allowed."""

    engine_host_code_allowed = False

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self, plan: memoryview) -> Any:
        flags = self._trt.configs[-1]._flags
        if self._trt.BuilderFlag.VERSION_COMPATIBLE in flags and not self.engine_host_code_allowed:
            self._logger.log(self._trt.ILogger.Severity.ERROR, "host code is not allowed")
            return None
        assert bytes(plan) == b"engine"
        return self._trt.ICudaEngine()


class IProgressMonitor:
    """A base to derive from, as the real one."""

    def __init__(self) -> None:
        pass


class ILogger:
    """A base to derive from, as the real one."""

    Severity = IntEnum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE", start=0)

    def __init__(self) -> None:
        pass


STOOD_IN_FOR = (
    ITensor, ILayer, IConvolutionLayer, INetworkDefinition, ParserError, OnnxParser, ITimingCache,
    IOptimizationProfile, IBuilderConfig, Builder, EngineInspector, ICudaEngine, Runtime,
)  # fmt: skip


def module(version: str) -> Any:
    """What `import tensorrt` gives with that version, as far as the builder may touch it; `configs` are those made."""
    names = NAMES[version]
    configs: list[Any] = []
    trt = SimpleNamespace(
        __version__=version,
        ILogger=ILogger,
        IProgressMonitor=IProgressMonitor,
        get_nv_onnx_parser_version=lambda: 0,
        configs=configs,
    )
    for name in ENUMS:
        vars(trt)[name] = IntEnum(name, [n for n in names[name] if n not in ("name", "value")], start=0)
    made: dict[type, type] = {Guarded: Guarded}
    for kind in STOOD_IN_FOR:
        here = {"NAMES_HERE": frozenset(names[kind.__name__]), "_trt": trt, "_configs": configs}
        made[kind] = type(kind.__name__, (kind,), here)
        vars(trt)[kind.__name__] = made[kind]
    return trt
