"""Whether a training with a method could begin: asked before the dense training, which may take hours."""

from __future__ import annotations

from pipeline import config
from pipeline.config.sparse import function_of
from pipeline.data.augment import mixing, varied
from pipeline.models import build_for
from pipeline.training.compute import Compute
from pipeline.training.compute.device import torch_device
from pipeline.training.compute.distributed import demand_equal_shares, expected_ranks
from pipeline.training.log.loggers import demand_loggers
from pipeline.training.loop import soft_classes
from pipeline.training.snapshots.selection import demand_selection
from pipeline.training.train import Align, Setting, training_of, watched


def demand_possible(section: config.Sparse, setting: Setting, align: Align = 1) -> None:
    """Raises UserError where the network, the method, the processes, or what is installed here will not do."""
    data, compute = setting.data, Compute(torch_device(setting.device))
    bare = setting.model.model_copy(update={"weights": None})
    network = compute.placed(build_for(bare, data))
    watched(network, setting.model.name, data.input_shape)
    hooks = function_of(section.method)(section, training_of(section, network, data, compute, setting, align))
    demand_selection(section, data, hooks)
    varied(data, section.sampling, section.auto_augment)
    mixing(section.mixup, section.cutmix, soft_classes(data, setting.task))
    demand_equal_shares(section.batch_size, len(data.train), expected_ranks())
    demand_loggers(section.log)
