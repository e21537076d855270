"""The functions whose defaults make a short script: thin calls of the rooms behind them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from runtime.errors import UserError

if TYPE_CHECKING:
    from export.onnx.from_torch import OnnxGraph
    from export.onnx.simplify import Simplified
    from pipeline.line import Outcome
    from pipeline.results import Published
    from pipeline.surgery import Compact
    from runtime.backends import Array, Session
    from runtime.measure.latency import Comparison


def save(compact: Compact, folder: Path | str) -> None:
    """plan.json and weights.safetensors. Raises UserError."""
    from pipeline.surgery import save_compact

    save_compact(compact, folder)


def load(
    folder: Path | str,
    model: nn.Module | Callable[[], nn.Module] | None = None,
    *,
    rules: Mapping[Any, Any] | None = None,
) -> nn.Module:
    """The compact network of a folder or of `hf:user/repo[@revision]`, in eval mode; `model` is the network that was
    cut, or what builds it, where the folder does not name it, `rules` those of the cut. Raises UserError."""
    from pipeline.surgery import load_compact

    if str(folder).startswith("hf:"):
        from demport.hub import fetched

        folder = fetched(str(folder), trusted=model is not None)
    return load_compact(folder, model, rules).eval()


def onnx_from_torch(
    module: nn.Module,
    example_inputs: Tensor | tuple[Tensor, ...],
    path: Path | str,
    *,
    max_abs_diff: float = 1e-3,
    metadata: Mapping[str, str] | None = None,
) -> OnnxGraph:
    """Writes the network with a dynamic batch, checked against ONNX Runtime. Raises UserError."""
    from export.onnx.from_torch import onnx_from_torch as write

    return write(
        module, example_inputs, Path(path), opset="auto", max_abs_diff=max_abs_diff, metadata=dict(metadata or {})
    )


def simplify(
    path: Path | str, out: Path | str, samples: Array | Mapping[str, Array] | None = None, max_abs_diff: float = 1e-3
) -> Simplified:
    """Writes the simplified graph, checked on `samples` (by default noise). Raises UserError."""
    from export.onnx.simplify import simplify as write
    from runtime.backends import open_session
    from runtime.backends.feeds import random_feeds

    if samples is None:
        with open_session(path, device="cpu") as session:
            samples = random_feeds(session, 2)
    rows = samples if not isinstance(samples, Mapping) else dict(samples)
    return write(Path(path), Path(out), max_abs_diff=max_abs_diff, samples=rows)


def compare(
    sessions: Sequence[Session], feeds: Sequence[Mapping[str, Array]] | Mapping[str, Array], **options: Any
) -> Comparison:
    """Times sessions in turn; one mapping of feeds serves all. `options`: min_blocks, time_limit_s, precision, seed."""
    from runtime.measure.latency import compare as timed

    each = [feeds] * len(sessions) if isinstance(feeds, Mapping) else list(feeds)
    if not sessions or len(each) != len(sessions):
        raise UserError(f"{len(sessions)} sessions and {len(each)} feeds", "as many of each", "give one feed a session")
    return timed(sessions, each, **options)


def run(config: Path | str, out: Path | str, *, overrides: Sequence[str] = (), device: Any = "auto") -> Outcome | None:
    """The whole line, as `demport run CONFIG --out OUT --set section.key=value`. Raises UserError."""
    from pipeline.config.file import load_config
    from pipeline.line import Order
    from pipeline.line import run as bring_up_to_date
    from pipeline.progress import open_progress

    path = Path(config)
    order = Order(out=Path(out), device=device, config_folder=path.resolve().parent)
    return bring_up_to_date(load_config(path, overrides), order, open_progress())


def publish(
    run: Path | str, folder: Path | str, *, format: Literal["triton", "bundle"] = "triton", replace: bool = False
) -> Published:
    """What a server loads from a finished run, as `demport publish RUN DIR`. Raises UserError."""
    from pipeline.commands.finished_run import publish as write
    from pipeline.progress import open_progress
    from pipeline.stages.publish import Target

    return write(Path(run), Target(Path(folder), format, replace), (), open_progress())
