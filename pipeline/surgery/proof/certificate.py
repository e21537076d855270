"""certificate.json: what was removed, on what evidence, what was folded, what stayed and why, and the law's figures."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import asdict
from typing import Any

import numpy as np
from torch import fx, nn

from pipeline.surgery.channels.analysis import OUTPUT, WHOLE, Analysis
from pipeline.surgery.channels.labels import Ids
from pipeline.surgery.channels.ledger import Flags
from pipeline.surgery.cut.carry import Cut
from pipeline.surgery.cut.choose import Choice
from pipeline.surgery.proof.constants import constants_that_stay
from pipeline.surgery.proof.equivalence import Law
from pipeline.surgery.trace.copies import modules_by_path, tensors_of

MAP_STAYS = "read as a map: before all positions are pooled, or added to channels that the input decides"


def certificate(
    analysis: Analysis, choice: Choice, cut: Cut, compact: fx.GraphModule, law: Law | None, model: nn.Module
) -> dict[str, Any]:
    """Plain JSON: schema, channels, evidence, parameters, groups, constants, folded, frozen, layers, law, notes."""
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
        "merged": _merged(cut),
        "constants": constants_that_stay(analysis, choice),
        "branches": [
            {"side": side, "replaced_by": "its constants" if some else "nothing"}
            for side, some in analysis.traced.branches.items()
        ],
        "maps": _maps(analysis, choice),
        "frozen": frozen,
        "layers": layer_table(analysis, choice),
        "law": None if law is None else asdict(law),
        "notes": [*notes(model), *_probed(analysis)],
    }


def notes(model: nn.Module) -> list[str]:
    """What a reader must know of the compact network beside what was cut."""
    kinds = {type(m) for m in modules_by_path(model).values() if not type(m).__module__.startswith("torch.")}
    asking = sorted(
        kind.__name__ for kind in kinds if "training" in getattr(kind.forward, "__code__", notes.__code__).co_names
    )
    if not asking:
        return []
    return [
        f"the code of {', '.join(asking)} asks whether it is in training mode: the compact network does what that does "
        "in eval mode, whatever its own mode"
    ]


def _probed(analysis: Analysis) -> list[str]:
    if not analysis.probed:
        return []
    return [f"taken to act on each channel alone, for it did so on random data: {', '.join(analysis.probed)}"]


def elements(network: nn.Module) -> int:
    """Of all parameters, each counted once."""
    tensors = tensors_of(modules_by_path(network).values())
    return sum(t.numel() for t in tensors if isinstance(t, nn.Parameter))


def _maps(analysis: Analysis, choice: Choice) -> list[dict[str, Any]]:
    """Layers whose channels depend on no input and yet are no constants, and what became of them."""
    rows, maps = [], analysis.traced.maps
    for layer in analysis.layers:
        name = layer.node.name
        if maps is None or name not in maps.fixed or len(maps.fixed[name]) != len(layer.ids):
            continue
        mine = choice.classes[layer.ids[maps.fixed[name] & np.isnan(maps.values[name])]]
        stay = int(choice.keep[mine].sum())
        if len(mine):
            rows.append({
                "layer": layer.weight.removesuffix(".weight"), "channels": len(mine), "removed": len(mine) - stay,
                "kept_because": MAP_STAYS if stay else None,
            })  # fmt: skip
    return rows


def layer_table(analysis: Analysis, choice: Choice) -> list[dict[str, Any]]:
    """Per layer that makes channels: weight name, output channels before, dead and after."""
    rows = []
    for layer in analysis.layers:
        mine = choice.classes[layer.ids]
        rows.append({
            "layer": layer.weight.removesuffix(".weight"), "before": len(mine),
            "dead": int(choice.dead[mine].sum()), "after": int(choice.keep[mine].sum()),
        })  # fmt: skip
    gone = analysis.traced.gone.items()
    return rows + [{"layer": name.removesuffix(".weight"), "before": n, "dead": n, "after": 0} for name, n in gone]


def channel_counts(analysis: Analysis, choice: Choice) -> dict[str, int]:
    """Output channels over all layers but those that make the network's outputs."""
    inner, gone = _inner(analysis, choice), sum(analysis.traced.gone.values())
    dead, after = int(choice.dead[inner].sum()), int(choice.keep[inner].sum())
    return {"before": len(inner) + gone, "dead": dead + gone, "after": after}


def _evidence(analysis: Analysis, choice: Choice, measured: Flags) -> dict[str, int]:
    """Of the same channels those that were removed, by what the removal rests on."""
    inner = _inner(analysis, choice)
    gone = inner[~choice.keep[inner]]
    proven = int((~measured[gone]).sum()) + sum(analysis.traced.gone.values())
    return {"by_proof": proven, "by_measurement": int(measured[gone].sum())}


def _inner(analysis: Analysis, choice: Choice) -> Ids:
    """The class of each output channel, layer after layer, without the layers that make the network's outputs."""
    outputs = np.zeros(len(choice.keep), bool)
    for freeze in analysis.ledger.freezes:
        if freeze.reason == OUTPUT:
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
        "kept_dead_because": dict(Counter(choice.because[c] for c in classes[dead & choice.keep[classes]].tolist())),
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


def _merged(cut: Cut) -> list[dict[str, Any]]:
    """Layers with zero padding whose constant inputs became one."""
    return [
        {
            "layer": weight.removesuffix(".weight"), "constants": merged.constants,
            "into": "a channel of ones" if merged.into is None else "a constant channel that stays",
        }
        for weight, merged in cut.merged.items()
    ]  # fmt: skip


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
        return [{"where": WHOLE, "reason": analysis.traced.frozen, "channels": rows_of_weights(module)}]
    counts = {key: int(layer_classes[list(members)].sum()) for key, members in reasons.items()}
    for where, reason in analysis.unknown.items():
        counts[where, reason] = counts.get((where, reason), 0) + rows_of_weights(module.get_submodule(where))
    return [{"where": where, "reason": reason, "channels": n} for (where, reason), n in counts.items() if n]


def rows_of_weights(module: nn.Module) -> int:
    """Output channels of the layers inside, as far as shapes tell."""
    return sum(p.shape[0] for p in module.parameters() if p.dim() > 1)
