"""The commands that train and cut: run, prune, shrink."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from pipeline.cli.options import Device, DeviceOption, SetOption
from pipeline.cli.output import finish, judged
from pipeline.progress import open_progress
from runtime import errors
from runtime.errors import UserError

if TYPE_CHECKING:
    from pipeline.config import Config
    from pipeline.line import Order


class RunCommand(TyperCommand):
    """`run`, whose help ends with the keys of a config, and whose --seeds takes the numbers that follow it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--seeds" in args:
            first = last = args.index("--seeds") + 1
            while last < len(args) and args[last].isdigit():
                last += 1
            args = [*args[:first], *([" ".join(args[first:last])] if last > first else []), *args[last:]]
        return super().parse_args(ctx, args)

    def get_help(self, ctx: Any) -> str:
        from pipeline.config.file import describe_config

        return f"{super().get_help(ctx)}\n\nKeys of a config, and of --set:\n\n{describe_config()}"


def _print_schema(asked: bool) -> None:
    if asked:
        from pipeline.config.file import config_schema

        print(json.dumps(config_schema(), indent=2))
        raise typer.Exit


def _print_method(method: str | None) -> None:
    if method is not None:
        from pipeline.config.file import describe_method

        print(describe_method(method))
        raise typer.Exit


def run(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML config, e.g. configs/quickstart.yaml.")],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Run folder; default: runs/<name of CONFIG>.")] = None,
    override: SetOption = None,
    device: DeviceOption = Device.auto,
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="Last stage to run, e.g. 40-onnx.")] = None,
    redo: Annotated[list[str] | None, typer.Option(metavar="STAGE", help="Run it although it is up to date.")] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="N N N", help="A run for each seed in DIR/seed-N, and their mean.")
    ] = None,
    schema: Annotated[
        bool,
        typer.Option(
            "--print-schema", callback=_print_schema, is_eager=True, help="Print the JSON schema of a config."
        ),
    ] = False,
    help_method: Annotated[
        str | None,
        typer.Option(metavar="NAME", callback=_print_method, is_eager=True, help="Print the keys of a method."),
    ] = None,
) -> int:
    """The whole line, from data to report."""
    from pipeline import line
    from pipeline.config.file import load_config

    settings = load_config(config, override or ())
    order = line.Order(
        out=out or Path("runs") / config.stem,
        device=device.value,
        until=line.LAST if until is None else line.stage_named(until, "--until"),
        redo=frozenset(line.stage_named(name, "--redo") for name in redo or ()),
        config_folder=config.parent,
    )
    if seeds is not None:
        return _run_seeds(settings, order, seeds)
    outcome = line.run(settings, order, open_progress())
    if outcome is None:
        return errors.EXIT_PASS
    return judged(outcome.document(), outcome.verdict, outcome.exit_code)


def _run_seeds(settings: Config, order: Order, text: str) -> int:
    from pipeline.commands import seeds as several
    from pipeline.line import EXIT_CODES

    document = several.run_seeds(settings, order, several.numbers_of(text), open_progress())
    if document is None:
        return errors.EXIT_PASS
    if "report" in document:
        print(f"report: {document['report']}", file=sys.stderr)
    return finish(document, EXIT_CODES[document["status"]])


def prune(
    model: Annotated[str, typer.Option(metavar="SPEC", help="As model.name of a config.")],
    weights: Annotated[
        str, typer.Option(metavar="FILE", help="Its trained weights, as model.weights: a file, or `default`.")
    ],
    data: Annotated[str, typer.Option(metavar="SPEC", help="As data.source of a config.")],
    target: Annotated[
        str, typer.Option(metavar="KEY=NUMBER", help="macs=0.5 or channels=0.5 of the network, or latency_ms=2.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Run folder; its config.yaml is what `demport run` takes.")],
    epochs: Annotated[int, typer.Option(min=1, metavar="N", help="Passes over the training images.")] = 5,
    override: SetOption = None,
    device: DeviceOption = Device.auto,
) -> int:
    """From a trained network to a smaller one, its engine and the report: the line, without a dense training."""
    from pipeline import line
    from pipeline.commands import prune as pruning
    from pipeline.workspace.fingerprint import make_importable

    make_importable(Path.cwd())
    progress = open_progress()
    keys = {"model.name": model, "model.weights": weights, "data.source": data, "sparse.epochs": epochs}
    settings = pruning.config_of(keys, target, tuple(override or ()), progress)
    outcome = line.run(settings, line.Order(out=out, device=device.value), progress)
    if outcome is None:
        return errors.EXIT_PASS
    return judged(outcome.document(), outcome.verdict, outcome.exit_code)


def shrink(
    out: Annotated[Path, typer.Option(metavar="DIR", help="New folder for plan, weights and certificate.")],
    model: Annotated[str | None, typer.Option(metavar="SPEC", help="As model.name of a config.")] = None,
    weights: Annotated[Path | None, typer.Option(metavar="FILE", help="safetensors of that network.")] = None,
    onnx: Annotated[
        Path | None, typer.Option(metavar="FILE", help="An ONNX file, instead of --model and --weights.")
    ] = None,
    input_shape: Annotated[str | None, typer.Option(metavar="C,H,W", help="Size of an image, e.g. 3,224,224.")] = None,
    data: Annotated[
        str | None, typer.Option(metavar="SPEC", help="As data.source: cut what is dead on it, not only by proof.")
    ] = None,
    classes: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Default: the data's, else what the network's maker gives.")
    ] = None,
    inputs: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --onnx: an .npz of inputs that the result is checked on.")
    ] = None,
    override: SetOption = None,
) -> int:
    """Cut the dead channels out of a network of your own, or out of an ONNX file."""
    from pipeline.commands import shrink as shrinking
    from pipeline.config.file import config_from_overrides
    from pipeline.workspace.fingerprint import make_importable

    image = shrinking.image_shape(input_shape)
    if onnx is not None:
        from pipeline.commands import shrink_onnx

        if model or weights or data or classes:
            raise UserError("--onnx with a network's options", "--onnx alone, with --out", "leave the others out")
        section = config_from_overrides(override or []).surgery
        order = shrink_onnx.request(onnx, out, image, inputs, section)
        return finish(shrink_onnx.shrink_onnx(order, open_progress()), errors.EXIT_PASS)
    if model is None or weights is None or inputs is not None:
        raise UserError("no --model and --weights, or --inputs without --onnx", "a network to cut",
                        "add --model SPEC --weights FILE, or --onnx FILE")  # fmt: skip
    fixed = {"model.name": model, "model.weights": str(weights)} | ({"data.source": data} if data else {})
    settings = config_from_overrides([f"{key}={json.dumps(value)}" for key, value in fixed.items()] + (override or []))
    make_importable(Path.cwd())
    request = shrinking.Request(settings, image, classes, data is not None, out)
    return finish(shrinking.shrink_network(request, open_progress()), errors.EXIT_PASS)
