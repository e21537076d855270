"""Sparse training under Lightning (the `lightning` extra): one callback."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pipeline.surgery import Compact
from pipeline.training.own_loop import Sparsifier, sparsify
from runtime.errors import UserError

Inputs = tuple[Tensor, ...]


def first_of_pair(batch: Any) -> Inputs:
    """(x, y) -> (x,)"""
    return (batch[0],)


class SparsifyCallback(pl.Callback):  # type: ignore[misc]
    """Trains the network that the module holds under `network` with a method of `demport.sparsify`.

    Automatic optimisation with one optimizer. After a removal the module's attribute and the trainer's optimizer are
    the smaller ones, and schedulers follow. A checkpoint made after a removal holds the network in this callback's
    state, from which `fit(ckpt_path=...)` goes on; `compact` is there when the fit has ended.
    """

    def __init__(
        self,
        example_inputs: Inputs,
        *,
        network: str = "model",
        method: str = "demp",
        steps: int | None = None,
        target: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        inputs: Callable[[Any], Inputs] = first_of_pair,
        ema: float | None = None,
        teacher: nn.Module | None = None,
        distill: Mapping[str, Any] | None = None,
    ) -> None:
        """`example_inputs`: what the network takes. `steps` of the optimizer; None: those that the trainer expects.
        `inputs`: a batch of the loader -> what the network takes of it. `ema`: decay of an average of the weights, in
        [0, 1), which is cut along. `teacher`, `distill`: as for `sparsify`; a training step calls `distilled`."""
        super().__init__()
        self._example, self._attribute, self._inputs = example_inputs, network, inputs
        self._method, self._steps, self._target, self._options = method, steps, target, options
        self._ema, self._teacher, self._distill = ema, teacher, distill
        self._resumed: dict[str, Any] | None = None
        self.sparsifier: Sparsifier
        self.compact: Compact | None = None
        """The network without its dead channels, proven."""

    @property
    def average(self) -> AveragedModel | None:
        """Of the network's weights and buffers, where `ema` asks for it."""
        return next((one for one in self.sparsifier.averages if isinstance(one, AveragedModel)), None)

    def distilled(self, loss: Tensor, outputs: Any, *inputs: Tensor) -> Tensor:
        """The loss with the teacher's share in it, for `training_step`."""
        return self.sparsifier.distilled(loss, outputs, *inputs)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        pl_module.strict_loading = False  # a network that lost channels is in this callback's state

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        network = getattr(pl_module, self._attribute, None)
        if not isinstance(network, nn.Module):
            raise UserError(
                f"{type(pl_module).__name__} has no network under `{self._attribute}`",
                "the attribute that holds the network to train",
                "name it: SparsifyCallback(..., network=NAME)",
            )
        if len(trainer.optimizers) != 1 or not pl_module.automatic_optimization:
            raise UserError(
                f"{len(trainer.optimizers)} optimizers"
                + ("" if pl_module.automatic_optimization else ", stepped by the module itself"),
                "automatic optimisation with one optimizer",
                "use demport.sparsify in the module's own steps",
            )
        steps = int(trainer.estimated_stepping_batches) if self._steps is None else self._steps
        example = tuple(x.to(pl_module.device) for x in self._example)
        self.sparsifier = sparsify(
            network, trainer.optimizers[0], example,
            method=self._method, steps=steps, target=self._target, options=self._options,
            averages=self._averages_of(network), teacher=self._teacher, distill=self._distill,
        )  # fmt: skip
        self._global_step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._resumed is not None:  # after the trainer has put its own state back
            self.sparsifier.load_state_dict(self._resumed)
            self._resumed = None
            self._follow(trainer, pl_module)
        self._global_step = trainer.global_step

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        term = self.sparsifier.penalty() / trainer.accumulate_grad_batches
        if term.requires_grad:
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            torch.autograd.backward(term if scaler is None else scaler.scale(term))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._global_step:
            return  # gradients are still being accumulated
        self._global_step = trainer.global_step
        if self.average is not None:
            self.average.update_parameters(self.sparsifier.network)
        if self.sparsifier.step(*self._inputs(batch)):
            self._follow(trainer, pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.compact = self.sparsifier.finish()

    def state_dict(self) -> dict[str, Any]:
        return self.sparsifier.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resumed = state_dict

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self.sparsifier.state_dict()["plan"] is not None:
            network = f"{self._attribute}."
            checkpoint["state_dict"] = {
                name: value for name, value in checkpoint["state_dict"].items() if not name.startswith(network)
            }

    def _averages_of(self, network: nn.Module) -> tuple[nn.Module, ...]:
        if self._ema is None:
            return ()
        if not 0 <= self._ema < 1:
            raise UserError(f"ema is {self._ema}", "a decay in [0, 1)", "0.999 is usual")
        average = get_ema_multi_avg_fn(self._ema)  # type: ignore[no-untyped-call]
        return (AveragedModel(network, multi_avg_fn=average, use_buffers=True),)

    def _follow(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Module, trainer and schedulers hold what the sparsifier holds."""
        setattr(pl_module, self._attribute, self.sparsifier.network)
        trainer.strategy.optimizers = [self.sparsifier.optimizer]
        for config in trainer.lr_scheduler_configs:
            config.scheduler.optimizer = self.sparsifier.optimizer
