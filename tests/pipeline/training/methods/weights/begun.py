"""A method with masks, begun on its network as a training would."""

from __future__ import annotations

from typing import Any

from pipeline.training.hooks import Hooks
from tests.pipeline.training.small import state


def begun(hooks: Hooks, network: Any) -> Any:
    own = state(network)
    if hooks.masks is not None:
        hooks.masks.bind(own)
        hooks.masks.apply()
    hooks.begin(own)
    return own
