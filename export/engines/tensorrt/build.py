"""The process that runs the TensorRT builder: `python -m export.engines.tensorrt.build CONNECTION PARENT`.

It is a process of its own because the builder may crash or hang. CONNECTION is the descriptor of one end of a pipe:
over it the process receives a `Request` and sends ("progress", fraction, phase) as often as that changes and, at the
end, ("built", answer), ("refused", found, expected, remedy) or ("unavailable", reason).
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from export.engines import EngineUnavailable, Report
from export.engines.proof import Proof, check, document
from export.engines.tensorrt import timing_cache
from export.engines.tensorrt.config import Request, configure
from export.engines.tensorrt.features import Features, features
from export.engines.tensorrt.inspector import engine_layers, engine_proof
from export.engines.tensorrt.network import layer_table, network_proof, parse, tensor
from export.engines.tensorrt.progress import monitor
from export.engines.tensorrt.targets import load
from runtime.backends.trt_library import Log
from runtime.errors import UserError
from runtime.files import write_json
from runtime.gpu import first_gpu


def build(request: Request, trt: Any, log: Log, report: Report) -> dict[str, Any]:
    """Builds the engine and writes it; what the manifest needs to know. `UserError` with the first logged error."""
    started = time.perf_counter()
    can = features(trt)
    name = f"{request.flavour} {can.version}"
    builder = trt.Builder(log.logger)
    # The parser holds the weights, the monitor and the cache are only borrowed by the config: all stay until the end.
    network, parser = parse(request.onnx, trt, builder, can, log, name)
    proof = network_proof(network, trt, request.precision)
    check(proof, request.onnx)
    config, profiles = configure(request, trt, builder, network, can)
    progress = monitor(trt, report) if can.progress else None
    if progress is not None:
        config.progress_monitor = progress
    cache = Path(request.timing_cache) if request.timing_cache else None
    attached = timing_cache.attach(config, cache, log) if cache else None
    plan = _plan(request, builder, network, config, can, log)
    if cache is not None:
        timing_cache.save(config, cache, log)
    del attached, parser, progress
    proof = _inspected(request, trt, plan, log) or proof
    check(proof, f"the engine from {request.onnx}")
    return {
        "version": can.version,
        "inputs": [tensor(network.get_input(i)) for i in range(network.num_inputs)],
        "outputs": [tensor(network.get_output(i)) for i in range(network.num_outputs)],
        "profiles": profiles,
        "layers": layer_table(network),
        "proof": document(proof),
        "notes": log.notes,
        "versions": {"onnx_parser": str(trt.get_nv_onnx_parser_version()), "python": sys.version.split()[0]},
        "seconds": round(time.perf_counter() - started, 3),
    }


def _plan(request: Request, builder: Any, network: Any, config: Any, can: Features, log: Log) -> Any:
    """The engine's bytes, already in their file."""
    log.begin()
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _refusal(request, can, log.reason())
    try:
        Path(request.engine).write_bytes(memoryview(plan))
    except OSError as error:
        raise UserError(
            f"{request.engine} cannot be written ({error.strerror})", f"{plan.nbytes} bytes of space", "free some space"
        ) from error
    return plan


def _refusal(request: Request, can: Features, reason: str) -> UserError:
    """Why there is no engine, and what to change: the option that the reason points at, if it points at one."""
    targets = "+".join(request.targets) or "this GPU"
    problem = f"{request.flavour} cannot build {request.onnx} for {targets}: {reason}"
    if re.search("OutOfMemory|workspace", reason):
        largest = max(profile.max for profile in request.options.profiles)
        remedy = (
            f"double engine.workspace_mib ({request.options.workspace_mib}) or lower engine.profile.max ({largest})"
        )
        return UserError(problem, "more workspace", remedy)
    if request.options.version_compatible and "lean" in reason:
        return UserError(
            problem, "TensorRT's lean runtime beside it", "install it, or leave engine.version_compatible out"
        )
    if request.options.refit and can.ahead_of_time:
        remedy = "leave engine.refit out: TensorRT-RTX compiles refittable engines only on a GPU"
        return UserError(problem, "a GPU, for engine.refit", remedy)
    if request.options.pin_tactics and "cache" in reason.lower():
        return UserError(
            problem, "every kernel's time in the cache", "build once without engine.pin_tactics to fill it"
        )
    remedy = "leave the target out, or change the layer that the reason names"
    return UserError(problem, "a network that this target supports", remedy)


def _inspected(request: Request, trt: Any, plan: Any, log: Log) -> Proof | None:
    """The engine's own proof; what its inspector tells of each layer goes to `request.layers`.

    None where no GPU of this machine can load the engine, and, with a note, where it does not load all the same or its
    inspector tells no types: then the strongly typed network stays the proof.
    """
    gpu = first_gpu()
    if gpu is None or (request.targets and gpu.target not in request.targets):
        return None
    log.begin()
    runtime = trt.Runtime(log.logger)
    if request.options.version_compatible:
        runtime.engine_host_code_allowed = True  # code that this very process has just built
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        log.note(f"the engine was built, but this GPU did not load it for inspection: {log.reason()}")
        return None
    text = str(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))
    try:
        write_json(Path(request.layers), {"schema": 1, "layers": engine_layers(text)})
        proof = engine_proof(text, request.precision)
    except UserError as error:
        log.note(f"{error.found}; the types are those of the network")
        return None
    if not proof.products:
        log.note("the engine inspector tells no types of convolutions or matrix products; they are the network's")
        return None
    return proof


def _die_with_parent(parent: int) -> None:
    """On Linux the kernel ends this process when its parent is killed; nothing is left building."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it was killed before the kernel was asked
        sys.exit(1)


def main(descriptor: int, parent: int) -> None:
    _die_with_parent(parent)
    with Connection(descriptor) as connection:
        request: Request = connection.recv()
        try:
            trt = load(request.flavour)
            with Path(request.log).open("w", encoding="utf-8") as file:
                answer = build(request, trt, Log(trt, file), lambda *news: connection.send(("progress", *news)))
            connection.send(("built", answer))
        except EngineUnavailable as error:
            connection.send(("unavailable", str(error)))
        except UserError as error:
            connection.send(("refused", error.found, error.expected, error.remedy))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
