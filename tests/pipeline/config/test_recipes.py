"""The published recipes as configs: every figure of the paper's, in steps, as it was read there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.config.file import load_config

CONFIGS = Path(__file__).parents[3] / "configs"
CIFAR, IMAGENET = 50_000, 1_281_167
RESNET18 = {"steps": 97_656, "span": 85_000, "prune_every": 5000, "batch_size": 128, "schedule": "step",
            "augment": "crop_flip", "label_smoothing": 0.0, "weight_decay": 5e-4, "census": (3, 512)}  # fmt: skip
VGG16 = {"steps": 15_626, "span": 15_625, "prune_every": 1000, "batch_size": 256, "schedule": "one_cycle",
         "augment": "zero_crop_flip", "label_smoothing": 0.0, "weight_decay": 5e-4, "census": (3, 512)}  # fmt: skip
RESNET50 = {"steps": 500_456, "span": 150_000, "prune_every": 5000, "batch_size": 256, "schedule": "milestones",
            "augment": "resize_crop_flip", "label_smoothing": 0.1, "weight_decay": 1e-4,
            "census": (5, 256)}  # fmt: skip
RECIPES: dict[str, tuple[int, dict[str, Any], str, float]] = {
    "cifar10_resnet18_sgd": (CIFAR, RESNET18, "sgd", 0.1),
    "cifar10_resnet18_adamw": (CIFAR, RESNET18, "adamw", 0.005),
    "cifar10_vgg16_sgd": (CIFAR, VGG16, "sgd", 0.1),
    "cifar10_vgg16_adamw": (CIFAR, VGG16, "adamw", 0.005),
    "imagenet_resnet50": (IMAGENET, RESNET50, "sgd", 0.1),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_the_paper_s(name: str) -> None:
    images, paper, optimizer, lr = RECIPES[name]
    config = load_config(CONFIGS / f"{name}.yaml")
    demp = config.sparse
    steps = demp.epochs * (images // demp.batch_size)  # an epoch here ends with its last whole batch
    assert steps == pytest.approx(paper["steps"], rel=0.002)
    assert demp.span * steps == pytest.approx(paper["span"], rel=0.002)
    told = demp.model_dump()
    for key in ("prune_every", "batch_size", "schedule", "augment", "weight_decay"):
        assert told[key] == paper[key], key
    assert config.task.label_smoothing == paper["label_smoothing"]
    assert (demp.census_batches, demp.census_batch_size) == paper["census"]
    assert (demp.optimizer, demp.lr, demp.sigma_peak, demp.norm_momentum) == (optimizer, lr, 5e-5, 0.1)
    assert demp.momentum == 0.9 and demp.target is None and demp.cost == "plain"
    shared = config.dense.model_dump()
    assert {key: told[key] for key in shared} == shared, "the dense network trains alike"


def test_schedules_drop_where_the_paper_s_do() -> None:
    resnet18, resnet50 = (load_config(CONFIGS / f"{name}.yaml").sparse for name in (
        "cifar10_resnet18_sgd", "imagenet_resnet50"))  # fmt: skip
    assert (resnet18.step_epochs, resnet18.step_factor) == (77, 0.2)
    assert (resnet50.milestones, resnet50.step_factor, resnet50.warmup) == ((30, 70, 90), 0.1, 0.05)
