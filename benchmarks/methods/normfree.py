"""A small ViT on Tiny-ImageNet at 32x32: steered by gates to a share of its MACs, beside a narrow one at equal steps.

    python -m benchmarks.methods.normfree --out benchmarks/results/normfree.cpu.json

timm's vision transformer with patches of 4, a stream of 96 and three heads, on the first --classes classes. `dense`;
`demp`, from the same start, to --share of the MACs at half of the steps; `narrow`, of the width whose MACs are next to
that share; all with the same images, steps and learning rate. The training split is some thousand images: the figures
compare the rows with each other and say nothing of what such a network can learn.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks import real_data, results
from benchmarks.results import Point
from pipeline import config
from pipeline.data import Dataset, arrays
from pipeline.data.raw import Raw
from pipeline.models import build
from pipeline.progress import Silent
from pipeline.surgery import shrink
from pipeline.training.train import Setting, train_dense, train_sparse, trained_network
from runtime.errors import EXIT_USAGE, UserError
from runtime.macs import macs, params

SIDE, HEADS, WIDTH = 32, 3, 96
ROWS = ("dense", "demp", "narrow")


def tiny_imagenet(folder: Path, classes: int) -> Dataset:
    """The images of the first classes. Raises UserError."""
    load = real_data.loader(folder).tiny_imagenet100
    (x, y, names), (x_test, y_test, _) = load("train_0"), load("val")
    mine, tests = np.asarray(y) < classes, np.asarray(y_test) < classes
    x, x_test = (real_data.smaller(np.asarray(images), SIDE) for images in (x[mine], x_test[tests]))
    labels = np.asarray(y)[mine].astype(np.int64), np.asarray(y_test)[tests].astype(np.int64)
    raw = Raw("tiny_imagenet", x, labels[0], x_test, labels[1], tuple(map(str, names[:classes])))
    return arrays.dataset(raw, None, f"tiny_imagenet {classes}")


def vit(width: int, depth: int) -> config.Model:
    args = {"img_size": SIDE, "patch_size": 4, "embed_dim": width, "depth": depth, "num_heads": HEADS}
    return config.Model(name="timm:vit_tiny_patch16_224", args=args)


def narrow_width(share: float, depth: int, data: Dataset) -> int:
    """Of the stream, a multiple of the heads, whose MACs come nearest to the share."""
    sizes = {w: _macs(vit(w, depth), data) for w in range(HEADS, WIDTH + 1, HEADS)}
    return min(sizes, key=lambda w: abs(sizes[w] / sizes[WIDTH] - share))


def _macs(model: config.Model, data: Dataset) -> int:
    return macs(build(model, num_classes=len(data.names), input_shape=data.input_shape), data.input_shape)


def measured(case: Point, data: Dataset) -> list[Point]:
    """Accuracy on the test images, and the size of the network that computes it."""
    start, keys = time.perf_counter(), dict[str, Any](optimizer="adamw", lr=1e-3, weight_decay=0.05, batch_size=64)
    keys |= {"epochs": case["epochs"], "augment": "zero_crop_flip"}
    width = narrow_width(case["share"], case["depth"], data) if case["row"] == "narrow" else WIDTH
    model = vit(width, case["depth"])
    network: nn.Module
    with tempfile.TemporaryDirectory() as out:
        setting = Setting(model, data, case["seed"], torch.get_num_threads(), "cpu", Path(out), Silent())
        if case["row"] == "demp":
            trained = train_sparse(config.sparse_of(**keys, target={"macs": case["share"]}, start="init"), setting)
            dense = trained_network(model, data, trained)
            network = shrink(dense, (torch.zeros(2, *data.input_shape),)).model
        else:
            trained = train_dense(config.Training(**keys), setting)
            network = trained_network(model, data, trained)
        seconds = time.perf_counter() - start
    whole = _macs(vit(WIDTH, case["depth"]), data)
    return [{
        "width": width, "accuracy_pct": round(100 * trained.accuracy, 2),
        "macs_pct": round(100 * macs(network, data.input_shape) / whole, 2), "parameters": params(network),
        "training_s": round(seconds, 1),
    }]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    parser = results.parser("methods.normfree", __doc__, "normfree.cpu.json", required=False)
    parser.add_argument("--share", nargs="+", type=float, default=[0.5], help="of the MACs")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--depth", type=int, default=4, help="blocks")
    parser.add_argument("--data", type=Path, default=real_data.DEFAULT, help="folder with load.py and the data sets")
    parser.add_argument("--limit-s", type=float, default=float("inf"), help="no case begins after so many seconds")
    options = parser.parse_args(arguments)
    line = results.command(parser, options, leave_out=("data", "limit_s"))
    try:
        data = tiny_imagenet(options.data, options.classes)
        cases: list[Point] = [
            {"row": row, "share": share, "seed": seed, "epochs": options.epochs, "depth": options.depth,
             "images": len(data.train), "tests": len(data.test)}
            for share in options.share for seed in options.seeds for row in ROWS
        ]  # fmt: skip
        results.fill(options.out, line, cases, partial(measured, data=data), options.limit_s)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    return results.judge([])


if __name__ == "__main__":
    sys.exit(main())
