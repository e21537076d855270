"""Records the names of TensorRT's Python bindings: `python -m tests.export.record_names TENSORRT.SO` prints JSON.

`trt_names.json` holds what this printed for the files tensorrt_bindings/tensorrt.so in the wheels
`tensorrt-cu12-bindings` 10.9.0.34 and `tensorrt-cu13-bindings` 10.13.3.9, 10.16.1.11, 11.0.0.114 and 11.4.0.106. The
wheels come from the package registry, the library they bind does not; the module loads all the same where shared
libraries of the names it links (libnvinfer.so.11, libnvonnxparser.so.11, libnvinfer_plugin.so.11) define the ten or so
functions it imports (`nm -D --undefined-only`), whatever these do: names are registered without calling them.
"""

from __future__ import annotations

import importlib.util
import json
import sys

CLASSES = (
    "Builder INetworkDefinition ILayer IConvolutionLayer IDeconvolutionLayer ITensor IBuilderConfig "
    "IOptimizationProfile ITimingCache IProgressMonitor ILogger Logger OnnxParser ParserError Runtime ICudaEngine "
    "IExecutionContext IRuntimeConfig EngineInspector IHostMemory BuilderFlag NetworkDefinitionCreationFlag "
    "MemoryPoolType ProfilingVerbosity HardwareCompatibilityLevel LayerInformationFormat DataType TensorIOMode "
    "LayerType ComputeCapability EngineValidity EngineInvalidityDiagnostics CudaGraphStrategy IRuntimeCache IProfiler"
).split()


def names(path: str) -> dict[str, list[str]]:
    """Class -> its public names, for the classes the project touches; "" -> the functions and constants beside them."""
    spec = importlib.util.spec_from_file_location("tensorrt", path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    told = {name: getattr(module, name) for name in dir(module) if not name.startswith("_")}
    plain = sorted(name for name, item in told.items() if not isinstance(item, type))
    public = {name: sorted(n for n in dir(told[name]) if not n.startswith("_")) for name in CLASSES if name in told}
    return {**public, "": plain}


if __name__ == "__main__":
    print(json.dumps(names(sys.argv[1])))
