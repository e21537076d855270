"""certificate.json: what was removed, on what evidence, what was folded, what stayed and why, and the law's figures."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict
from typing import Any

import numpy as np
from torch import fx, nn

from pipeline.surgery.analysis import Analysis
from pipeline.surgery.copies import modules_by_path, tensors_of
from pipeline.surgery.cut import Cut
from pipeline.surgery.labels import Ids
from pipeline.surgery.law import Law
from pipeline.surgery.ledger import Flags
from pipeline.surgery.select import Choice


def certificate(
    analysis: Analysis, choice: Choice, cut: Cut, compact: fx.GraphModule, law: Law | None
) -> dict[str, Any]:
    """Plain JSON: schema, channels, evidence, parameters, groups, folded, frozen, layers, law."""
    frozen = _frozen(analysis, choice)
    measured = np.zeros(len(choice.keep), bool)
    measured[choice.classes[analysis.ledger.measured(np.arange(analysis.ledger.size))]] = True
    groups = [g for g in (_group(choice, measured, g.name, g.layers, g.classes) for g in choice.groups) if g["dead"]]
    return {
        "schema": 1,
        "channels": channel_counts(analysis, choice),
        "evidence": _evidence(analysis, choice, measured),
        "parameters": {
            "before": elements(analysis.traced.module),
            "after": elements(compact),
        },
        "groups": groups,
        "folded": _folded(analysis, cut),
        "frozen": frozen,
        "layers": layer_table(analysis, choice),
        "law": None if law is None else asdict(law),
    }


def elements(network: nn.Module) -> int:
    """Of all parameters, each counted once."""
    tensors = tensors_of(modules_by_path(network).values())
    return sum(t.numel() for t in tensors if isinstance(t, nn.Parameter))


def layer_table(analysis: Analysis, choice: Choice) -> list[dict[str, Any]]:
    """Per layer that makes channels: weight name, output channels before, dead and after."""
    rows = []
    for layer in analysis.layers:
        mine = choice.classes[layer.ids]
        rows.append({
            "layer": layer.weight.removesuffix(".weight"), "before": len(mine),
            "dead": int(choice.dead[mine].sum()), "after": int(choice.keep[mine].sum()),
        })  # fmt: skip
    return rows


def channel_counts(analysis: Analysis, choice: Choice) -> dict[str, int]:
    """Output channels over all layers but those that make the network's outputs."""
    inner = _inner(analysis, choice)
    return {"before": len(inner), "dead": int(choice.dead[inner].sum()), "after": int(choice.keep[inner].sum())}


def _evidence(analysis: Analysis, choice: Choice, measured: Flags) -> dict[str, int]:
    """Of the same channels those that were removed, by what the removal rests on."""
    inner = _inner(analysis, choice)
    gone = inner[~choice.keep[inner]]
    return {"by_proof": int((~measured[gone]).sum()), "by_measurement": int(measured[gone].sum())}


def _inner(analysis: Analysis, choice: Choice) -> Ids:
    """The class of each output channel, layer after layer, without the layers that make the network's outputs."""
    outputs = np.zeros(len(choice.keep), bool)
    for freeze in analysis.ledger.freezes:
        if freeze.reason == "output of the network":
            outputs[choice.classes[freeze.ids]] = True
    layers = [choice.classes[layer.ids] for layer in analysis.layers]
    return np.concatenate([np.zeros(0, np.int64), *(layer for layer in layers if not outputs[layer].all())])


def _group(choice: Choice, measured: Flags, name: str, layers: tuple[str, ...], classes: Any) -> dict[str, Any]:
    """`measured` says of each class whether a census of one of its channels is the evidence."""
    dead = choice.dead[classes]
    gone = classes[~choice.keep[classes]]
    return {
        "group": name,
        "layers": list(layers),
        "channels": len(classes),
        "dead": int(dead.sum()),
        "removed": len(gone),
        "removed_indices": np.flatnonzero(~choice.keep[classes]).tolist(),
        "kept_dead": int((dead & choice.keep[classes]).sum()),
        "by_proof": int((~measured[gone]).sum()),
        "by_measurement": int(measured[gone].sum()),
    }


def _folded(analysis: Analysis, cut: Cut) -> list[dict[str, Any]]:
    rows = []
    for weight, (_, bias, delta) in cut.folds.items():
        rows.append(
            {
                "layer": weight.removesuffix(".weight"),
                "bias": "gained" if bias is None else "changed",
                "largest": float(np.abs(delta).max()),
            }
        )
    return rows


def _frozen(analysis: Analysis, choice: Choice) -> list[dict[str, Any]]:
    """Where and why channels cannot go, and how many output channels of layers each reason holds: of those that reach
    the place, and of those inside a module that no rule follows."""
    layer_classes = np.zeros(len(choice.keep), np.int64)
    for layer in analysis.layers:
        np.add.at(layer_classes, choice.classes[layer.ids], 1)
    reasons: dict[tuple[str, str], set[int]] = defaultdict(set)
    for freeze in [*analysis.ledger.freezes, *choice.late]:
        reasons[freeze.where, freeze.reason].update(choice.classes[freeze.ids].tolist())
    module = analysis.traced.module
    if analysis.traced.frozen is not None:
        return [{"where": "the network", "reason": analysis.traced.frozen, "channels": rows_of_weights(module)}]
    counts = {key: int(layer_classes[list(found)].sum()) for key, found in reasons.items()}
    for where, reason in analysis.unknown.items():
        counts[where, reason] = counts.get((where, reason), 0) + rows_of_weights(module.get_submodule(where))
    return [{"where": where, "reason": reason, "channels": n} for (where, reason), n in counts.items() if n]


def rows_of_weights(module: nn.Module) -> int:
    """Output channels of the layers inside, as far as shapes tell."""
    return sum(p.shape[0] for p in module.parameters() if p.dim() > 1)
