"""`python -m export ONNX ENGINE ...` builds one engine: the command that a manifest names to rebuild its own."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from export.build_flags import BuildFlags
from export.build_progress import Report
from export.engine_from_onnx import Engine, engine_from_onnx
from export.features import HARDWARE_LEVELS
from export.flavours import EngineUnavailable
from runtime.errors import EXIT_INCONCLUSIVE, EXIT_INTERRUPTED, EXIT_PASS, EXIT_USAGE, UserError

PROFILE = "1,32,256"


def main(arguments: list[str] | None = None) -> int:
    """Builds the engine; 0, or 2 with one line on stderr, or 3 where no TensorRT can build here, 130 interrupted."""
    parser = _parser()
    given = parser.parse_args(arguments)
    profiles = []
    for text in given.profile or [PROFILE]:
        try:
            low, opt, high = map(int, text.split(","))
        except ValueError:
            parser.error(f"--profile {text}: expected three whole numbers such as {PROFILE}")
        profiles.append((low, opt, high))
    try:
        engine = _build(given, profiles)
    except EngineUnavailable as error:
        print(f"no engine: {error}", file=sys.stderr)
        return EXIT_INCONCLUSIVE
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    for note in engine.notes:
        print(f"note: {note}", file=sys.stderr)
    proof = engine.proof
    print(
        f"{engine.path}: {engine.bytes} bytes for {engine.target} in {engine.seconds:g} s; {proof['share']:.0%} of the "
        f"multiply-accumulates in {engine.precision} ({proof['source']}), {proof['reformats']} reformats, "
        f"{proof['casts']} casts",
        file=sys.stderr,
    )
    return EXIT_PASS


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m export", description="Build a TensorRT engine from an ONNX file.")
    add = parser.add_argument
    add("onnx", type=Path)
    add("engine", type=Path)
    add("--flavour", default="auto", choices=("auto", "tensorrt", "tensorrt_rtx"))
    add("--precision", default="fp32", choices=("fp32", "fp16", "bf16", "int8"), help="the precision the graph is in")
    add("--target", default="CURRENT", help="compute capability such as SM86, several as SM86+SM89, or CURRENT")
    add("--profile", action="append", help=f"batch sizes min,opt,max, default {PROFILE}; give it again for another")
    add("--workspace-mib", type=int, default=1024)
    add("--optimization-level", type=int, default=3, choices=range(6))
    add("--tf32", action="store_true", help="let fp32 layers use TF32")
    add("--version-compatible", action="store_true", help="load in later versions of the same major one too")
    add("--hardware-compatibility", default="none", choices=HARDWARE_LEVELS, help="run on more GPUs than this one")
    add("--refit", action="store_true", help="weights can be exchanged afterwards")
    add("--sparse", action="store_true", help="use 2:4 sparsity where the weights have it")
    add("--timing-cache", type=Path, help="folder that keeps measured kernel times")
    add("--pin-tactics", action="store_true", help="take every kernel from the timing cache, fail where it lacks one")
    add("--time-limit-s", type=float, default=600.0)
    return parser


def _build(given: argparse.Namespace, profiles: list[tuple[int, int, int]]) -> Engine:
    flags = BuildFlags(
        more_profiles=tuple(profiles[1:]),
        version_compatible=given.version_compatible,
        hardware_compatibility=given.hardware_compatibility,
        refit=given.refit,
        sparse=given.sparse,
        timing_cache=given.timing_cache,
        pin_tactics=given.pin_tactics,
    )
    with _bar(given.engine.name) as report:
        return engine_from_onnx(
            given.onnx,
            given.engine,
            flavour=given.flavour,
            precision=given.precision,
            target=given.target,
            profile=profiles[0],
            workspace_mib=given.workspace_mib,
            tf32=given.tf32,
            time_limit_s=given.time_limit_s,
            plan_sha256=None,
            optimization_level=given.optimization_level,
            flags=flags,
            report=report,
        )


@contextmanager
def _bar(name: str) -> Iterator[Report | None]:
    """A bar on stderr where that is a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(name, total=1.0)
        yield lambda fraction, text: bars.update(task, completed=fraction, description=f"{name}: {text}")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(main())
