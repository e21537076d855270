"""A published network of CIFAR-10 pruned to a share of its MACs in a few epochs, beside torch-pruning's one-shot cut.

    python -m benchmarks.methods.finetune --out benchmarks/results/finetune.cpu.json

The published ResNet-20 or ResNet-56 on --images training images and --tests test images, for each share, number of
epochs and seed, with the same images, steps, learning rate and augmentation: `demp` as `demport prune` has it;
`magnitude`, torch-pruning's magnitude pruner in one shot before the steps; `group norm`, its regulariser for the first
half of the steps and its cut between the halves. Exit 1 where demp ends below either.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from benchmarks import real_data, results
from benchmarks.methods import peers
from benchmarks.results import Point
from pipeline import config
from pipeline.commands.prune import RECIPE, alignment
from pipeline.data import Dataset, arrays
from pipeline.data.raw import Raw
from pipeline.models import build
from pipeline.progress import Silent
from pipeline.training.loop import metric_of
from pipeline.training.train import Setting, train_sparse, watched
from runtime.errors import EXIT_USAGE, UserError
from runtime.macs import macs

FILES = {"resnet20": "cifar10_resnet20-12fca82f.npz", "resnet56": "cifar10_resnet56-4bfd9763.npz"}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the images that the published networks were trained with."""
PEERS = ("magnitude", "group norm")
METHODS = ("demp", *PEERS)
AUGMENT = "zero_crop_flip"


def cifar10(folder: Path, images: int, tests: int) -> Dataset:
    """The first training and test images, normalised as the published networks want them. Raises UserError."""
    load = real_data.loader(folder).cifar10
    x_train, y_train, names = load("train", images)
    x_test, y_test, _ = load("test", tests)
    raw = Raw("cifar10", x_train, y_train.astype(np.int64), x_test, y_test.astype(np.int64), tuple(names))
    return arrays.dataset(raw, config.Data(mean=MEAN, std=STD), "cifar10")


def published(name: str, folder: Path, out: Path) -> config.Model:
    """The network with its weights, which are written into `out` as safetensors."""
    with np.load(folder / "weights" / FILES[name], allow_pickle=False) as file:
        save_file({key: torch.from_numpy(file[key]) for key in file.files}, out / "published.safetensors")
    return config.Model(name=f"cifar:{name}", weights=str(out / "published.safetensors"))


def section_of(case: Mapping[str, Any]) -> config.Sparse:
    """The recipe of `demport prune` for this share and number of epochs."""
    recipe = {key.removeprefix("sparse."): value for key, value in RECIPE.items() if key.startswith("sparse.")}
    target = {"macs": case["share"], "reached_at": recipe.pop("target.reached_at")}
    section: config.Sparse = config.sparse_of(
        **recipe,
        target=target,
        epochs=case["epochs"],
        augment=AUGMENT,
        amp=case.get("amp", "none"),
        channels_last=case.get("amp", "none") != "none",
    )
    return section


def measured(case: Point, data: Dataset, folder: Path, method: str) -> Point:
    """Accuracy and MACs of the network after the same number of steps with the method."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        model = published(case["network"], folder, Path(out))
        dense = build(model, num_classes=len(data.names), input_shape=data.input_shape).eval()
        whole, dense_pct = macs(dense, data.input_shape), 100 * metric_of(dense, data.test)
        if method == "demp":
            pct, share = _demp(case, model, data, Path(out))
        else:
            network = _peer(case, dense, data, method)
            share = macs(network, data.input_shape) / whole
            pct = 100 * metric_of(network.eval(), data.test)
    return {
        "method": method, "accuracy_pct": round(pct, 2), "dense_pct": round(dense_pct, 2),
        "drop_pp": round(dense_pct - pct, 2), "macs_pct": round(100 * share, 2),
        "training_s": round(time.perf_counter() - start, 1),
    }  # fmt: skip


def _demp(case: Point, model: config.Model, data: Dataset, out: Path) -> tuple[float, float]:
    """Accuracy in % and the share of the MACs."""
    assert model.weights is not None
    network = build(model, num_classes=len(data.names), input_shape=data.input_shape)
    align = alignment(watched(network, model.name, data.input_shape).layer_channels.values())
    setting = Setting(model, data, case["seed"], torch.get_num_threads(), "cpu", out, Silent())
    setting = dataclasses.replace(setting, distill=config.Distill(), teacher=Path(model.weights))
    trained = train_sparse(section_of(case), setting, align=align)
    assert trained.reached is not None
    return 100 * trained.accuracy, trained.reached["macs"]


def _peer(case: Point, dense: nn.Module, data: Dataset, method: str) -> nn.Module:
    """The network after torch-pruning's cut and the same number of steps."""
    section, cpu = section_of(case), torch.device("cpu")
    if method in peers.REGULARISED:
        return peers.pruned(dense, method, case["share"], case["seed"], data, section, cpu)
    network = _cut_once(dense, case["share"], data)
    peers.fit(network, data, case["seed"], range(case["epochs"]), section, cpu, None)
    return network


def _cut_once(dense: nn.Module, share: float, data: Dataset) -> nn.Module:
    """The network without the channels of least magnitude, in small rounds until the share is reached."""
    import torch_pruning as tp

    whole = macs(dense, data.input_shape)
    pruner = tp.pruner.MagnitudePruner(
        dense, torch.zeros(1, *data.input_shape), tp.importance.GroupMagnitudeImportance(p=2), global_pruning=True,
        pruning_ratio=1.0, max_pruning_ratio=0.9, iterative_steps=peers.ROUNDS,
        ignored_layers=peers.ignored_layers(dense),
    )  # fmt: skip
    for _ in range(peers.ROUNDS):
        if macs(dense, data.input_shape) <= peers.NEAR * share * whole:
            return dense
        pruner.step()
    raise UserError(f"magnitude does not reach {share:g} of the MACs", "a share in reach", "ask for a larger one")


def broken(points: Sequence[Point]) -> list[str]:
    """Where demp ends below a peer, as a mean over seeds."""
    texts = []
    for network, share, epochs in sorted({(p["network"], p["share"], p["epochs"]) for p in points}):
        mine = [p for p in points if (p["network"], p["share"], p["epochs"]) == (network, share, epochs)]
        means = {m: [p["accuracy_pct"] for p in mine if p["method"] == m] for m in METHODS}
        for peer in PEERS:
            if means["demp"] and means[peer] and statistics.mean(means["demp"]) < statistics.mean(means[peer]):
                texts.append(f"{network} at {share:g} of the MACs in {epochs} epochs: demp is below {peer}")
    return texts


def main(arguments: Sequence[str] | None = None) -> int:
    parser = results.parser("methods.finetune", __doc__, "finetune.cpu.json", required=False)
    parser.add_argument("--network", nargs="+", default=["resnet20"], choices=tuple(FILES))
    parser.add_argument("--share", nargs="+", type=float, default=[0.5], help="of the MACs")
    parser.add_argument("--epochs", nargs="+", type=int, default=[5])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--amp", choices=("none", "bf16"), default="none", help="what all train in")
    parser.add_argument("--images", type=int, default=4000, help="for training")
    parser.add_argument("--tests", type=int, default=2000, help="test images")
    parser.add_argument("--data", type=Path, default=real_data.DEFAULT, help="folder with load.py and weights/")
    parser.add_argument("--limit-s", type=float, default=float("inf"), help="no case begins after so many seconds")
    options = parser.parse_args(arguments)
    line = results.command(parser, options, leave_out=("data", "limit_s"))
    try:
        data = cifar10(options.data, options.images, options.tests)
        cases: list[Point] = [
            {"network": network, "share": share, "epochs": epochs, "seed": seed, "images": options.images,
             "tests": options.tests, "amp": options.amp, "method": method}
            for network in options.network for share in options.share for epochs in options.epochs
            for seed in options.seeds for method in METHODS
        ]  # fmt: skip
        measure = partial(_measure, data=data, folder=options.data)
        results.fill(options.out, line, cases, measure, options.limit_s)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    return results.judge(broken(results.points_in(options.out)))


def _measure(case: Point, data: Dataset, folder: Path) -> list[Point]:
    return [measured(case, data, folder, case["method"])]


if __name__ == "__main__":
    sys.exit(main())
