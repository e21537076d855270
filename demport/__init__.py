"""Train networks so that channels die, cut them out exactly, export, and prove what it is worth: the public names.

Each name is fetched when it is first used, so that `import demport` loads nothing heavy.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from demport.face import compare as compare
    from demport.face import load as load
    from demport.face import onnx_from_torch as onnx_from_torch
    from demport.face import publish as publish
    from demport.face import run as run
    from demport.face import save as save
    from demport.face import simplify as simplify
    from demport.hub import push as push
    from export.engines import engine_from_onnx as engine_from_onnx
    from pipeline.surgery import shrink as shrink
    from pipeline.surgery.shrink_training import shrink_training as shrink_training
    from pipeline.training.own_loop import Sparsifier as Sparsifier
    from pipeline.training.own_loop import sparsify as sparsify
    from runtime.backends import Session as Session
    from runtime.backends import open_session as open_session
    from runtime.errors import UserError as UserError

NAMES = {
    "Session": "runtime.backends",
    "Sparsifier": "pipeline.training.own_loop",
    "UserError": "runtime.errors",
    "compare": "demport.face",
    "engine_from_onnx": "export.engines",
    "load": "demport.face",
    "onnx_from_torch": "demport.face",
    "open_session": "runtime.backends",
    "publish": "demport.face",
    "push": "demport.hub",
    "run": "demport.face",
    "save": "demport.face",
    "shrink": "pipeline.surgery",
    "shrink_training": "pipeline.surgery.shrink_training",
    "simplify": "demport.face",
    "sparsify": "pipeline.training.own_loop",
}
__all__ = [*NAMES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("demport")
    if name not in NAMES:
        raise AttributeError(f"demport has no {name}; it has {', '.join(NAMES)}")
    value = getattr(importlib.import_module(NAMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*NAMES, "__version__"]


def _demand_own(*packages: str) -> None:
    """ImportError where another package of the same name stands before ours on the path."""
    home = Path(__file__).resolve().parent.parent
    for name in packages:
        spec = importlib.util.find_spec(name)
        places = [] if spec is None else [*(spec.submodule_search_locations or ()), *filter(None, [spec.origin])]
        if not any(Path(place).resolve().is_relative_to(home) for place in places):
            raise ImportError(
                f"demport: `{name}` is {places[0] if places else 'not there'}; expected the one in {home}; "
                f"rename it, or start from another folder"
            )


_demand_own("pipeline", "export", "runtime")
