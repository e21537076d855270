"""`python -m export ONNX ENGINE ...` builds one engine: the command that a manifest names to rebuild its own."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from export.engine_from_onnx import engine_from_onnx
from export.flavours import EngineUnavailable
from runtime.errors import EXIT_INCONCLUSIVE, EXIT_PASS, EXIT_USAGE, UserError


def main(arguments: list[str] | None = None) -> int:
    """Builds the engine; 0, or 2 with one line on stderr, or 3 where no TensorRT can build here."""
    parser = argparse.ArgumentParser(prog="python -m export", description="Build a TensorRT engine from an ONNX file.")
    parser.add_argument("onnx", type=Path)
    parser.add_argument("engine", type=Path)
    parser.add_argument("--flavour", default="auto", choices=("auto", "tensorrt", "tensorrt_rtx"))
    parser.add_argument("--precision", default="fp32", choices=("fp32", "fp16"), help="the precision the graph is in")
    parser.add_argument("--target", default="CURRENT", help="compute capability such as SM86, or CURRENT")
    parser.add_argument("--profile", default="1,32,256", help="batch sizes min,opt,max")
    parser.add_argument("--workspace-mib", type=int, default=1024)
    parser.add_argument("--optimization-level", type=int, default=3, choices=range(6))
    parser.add_argument("--tf32", action="store_true")
    parser.add_argument("--time-limit-s", type=float, default=600.0)
    given = parser.parse_args(arguments)
    try:
        low, opt, high = map(int, given.profile.split(","))
    except ValueError:
        parser.error(f"--profile {given.profile}: expected three whole numbers such as 1,32,256")
    try:
        engine = engine_from_onnx(
            given.onnx,
            given.engine,
            flavour=given.flavour,
            precision=given.precision,
            target=given.target,
            profile=(low, opt, high),
            workspace_mib=given.workspace_mib,
            tf32=given.tf32,
            time_limit_s=given.time_limit_s,
            plan_sha256=None,
            optimization_level=given.optimization_level,
        )
    except EngineUnavailable as error:
        print(f"no engine: {error}", file=sys.stderr)
        return EXIT_INCONCLUSIVE
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    print(f"{engine.path}: {engine.bytes} bytes for {engine.target} in {engine.seconds:g} s", file=sys.stderr)
    return EXIT_PASS


if __name__ == "__main__":
    sys.exit(main())
