"""`python -m export ONNX ENGINE ...` builds one engine; `python -m export rebuild MANIFEST` builds it again."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, get_args

from export.engines import AUTO, BUILDERS, Engine, EngineUnavailable, Report, engine_from_onnx, manifest
from export.engines.options import EngineOptions, engine_options
from export.engines.proof import Precision
from runtime.errors import EXIT_INCONCLUSIVE, EXIT_INTERRUPTED, EXIT_PASS, EXIT_USAGE, UserError, one_line
from runtime.files import sha256

PROFILE = "1,32,256"


def main(arguments: list[str] | None = None) -> int:
    """Builds the engine; 0, or 2 with one line on stderr, or 3 where no library can build here, 130 interrupted."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        engine = _rebuild(words[1:]) if words[:1] == ["rebuild"] else _build(words)
    except EngineUnavailable as error:
        print(f"no engine: {one_line(str(error))}", file=sys.stderr)
        return EXIT_INCONCLUSIVE
    except UserError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    for note in engine.notes:
        print(f"note: {one_line(note)}", file=sys.stderr)
    proof = engine.proof
    print(
        f"{engine.path}: {engine.bytes} bytes for {engine.target} in {engine.seconds:g} s; {proof['share']:.0%} of the "
        f"multiply-accumulates in {engine.precision} ({proof['source']}), {proof['reformats']} reformats, "
        f"{proof['casts']} casts",
        file=sys.stderr,
    )
    return EXIT_PASS


def _build(words: list[str]) -> Engine:
    parser = argparse.ArgumentParser(prog="python -m export", description="Build an engine from an ONNX file.")
    add = parser.add_argument
    add("onnx", type=Path)
    add("engine", type=Path)
    add("--flavour", default="auto", choices=("auto", *BUILDERS), help=f"auto: {' or '.join(AUTO)}")
    add("--precision", default="fp32", choices=get_args(Precision), help="the precision the graph is in")
    add("--target", default="CURRENT", help="compute capability such as SM86, several as SM86+SM89, or CURRENT")
    add("--profile", action="append", help=f"batch sizes min,opt,max, default {PROFILE}; give it again for another")
    fields = {name: field for name, field in EngineOptions.model_fields.items() if "profile" not in name}
    for name, field in fields.items():
        flag: dict[str, Any] = {"action": "store_true"} if field.default is False else {"default": field.default}
        add(f"--{name.replace('_', '-')}", help=field.description, **flag)
    parsed = parser.parse_args(words)
    sizes = [dict(zip(("min", "opt", "max"), text.split(","), strict=False)) for text in parsed.profile or [PROFILE]]
    options = engine_options(
        {"profile": sizes[0], "more_profiles": sizes[1:], **{name: getattr(parsed, name) for name in fields}}
    )
    with _bar(parsed.engine.name) as report:
        return engine_from_onnx(
            parsed.onnx,
            parsed.engine,
            flavour=parsed.flavour,
            precision=parsed.precision,
            target=parsed.target,
            options=options,
            report=report,
        )


def _rebuild(words: list[str]) -> Engine:
    parser = argparse.ArgumentParser(prog="python -m export rebuild", description="Build a manifest's engine again.")
    parser.add_argument("manifest", type=Path, help="ENGINE.json")
    parser.add_argument("--flavour", choices=tuple(BUILDERS), help="instead of the manifest's")
    parser.add_argument("--target", help="instead of the manifest's")
    parsed = parser.parse_args(words)
    engine = parsed.manifest.with_name(parsed.manifest.name.removesuffix(".json"))
    content = manifest.read(engine)
    source = engine.parent / content.onnx.file
    if sha256(source) != content.onnx.sha256:
        raise UserError(f"{source} is not the graph of {engine.name}", "the one it was built from", "export it again")
    with _bar(engine.name) as report:
        return engine_from_onnx(
            source,
            engine,
            flavour=parsed.flavour or content.flavour,
            precision=content.precision,
            target=parsed.target or content.target,
            options=content.options,
            plan_sha256=content.plan_sha256,
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
