"""The callback under the real Lightning: removals on the way, schedulers that follow, a fit that goes on."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from runtime.errors import UserError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the package's own imports
    pl = pytest.importorskip("lightning.pytorch")
    from demport.lightning import SparsifyCallback

pytestmark = pytest.mark.filterwarnings("ignore")
X = torch.rand(64, 1, 6, 6, generator=torch.Generator().manual_seed(0))
Y = (X.mean((1, 2, 3)) > 0.5).long()


class Classifier(pl.LightningModule):  # type: ignore[misc, name-defined]
    callback: SparsifyCallback | None = None
    """Mixes the teacher's answers into the loss."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = [nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
        self.model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        outputs = self.model(batch[0])
        loss = nn.functional.cross_entropy(outputs, batch[1])
        return loss if self.callback is None else self.callback.distilled(loss, outputs, batch[0])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


def width(network: nn.Module) -> int:
    return len(network.get_parameter("0.weight"))


def fitted(folder: Path, epochs: int, ckpt_path: Path | None = None, **keys: Any) -> tuple[Any, Any, Any]:
    module = Classifier()
    callback = SparsifyCallback((X[:2],), steps=48, target={"macs": 0.5}, **keys)
    module.callback = callback if "teacher" in keys else None
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, enable_checkpointing=False, callbacks=[callback],
    )  # fmt: skip
    loader = DataLoader(TensorDataset(X, Y), batch_size=16)
    trainer.fit(module, loader, ckpt_path=None if ckpt_path is None else str(ckpt_path), weights_only=True)
    return module, trainer, callback


def test_channels_leave_while_it_trains_and_the_scheduler_follows(tmp_path: Path) -> None:
    module, trainer, callback = fitted(tmp_path, 12)
    network = module.model
    assert width(network) < 16
    assert {id(p) for p in network.parameters()} == {
        id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]
    }
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**12)
    compact = callback.compact.model.eval()
    assert torch.allclose(compact(X), network.eval()(X), atol=1e-5)
    assert callback.compact.certificate["law"]["max_rel_diff"] < 1e-9


def test_a_fit_goes_on_from_a_checkpoint_that_was_made_after_a_removal(tmp_path: Path) -> None:
    whole, _, _ = fitted(tmp_path, 12)
    half, trainer, _ = fitted(tmp_path, 9)
    assert width(half.model) < 16
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    again, _, _ = fitted(tmp_path, 12, tmp_path / "half.ckpt")
    assert width(again.model) == width(whole.model)
    for one, other in zip(again.model.state_dict().values(), whole.model.state_dict().values(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_an_average_and_a_teacher_come_along(tmp_path: Path) -> None:
    """The average of decay 0 is the network; a teacher of weight 1 that answers with one class teaches that class."""
    teacher = Classifier().model
    head = teacher.get_submodule("5")
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor([9.0, -9.0]))
    keys: dict[str, Any] = {"ema": 0.0, "teacher": teacher, "distill": {"weight": 1.0, "temperature": 1.0}}
    module, _, callback = fitted(tmp_path, 12, **keys)
    assert width(module.model) < 16 and width(callback.average.module) == width(module.model)
    assert torch.allclose(callback.average.eval()(X), module.model.eval()(X), atol=1e-6)
    assert (module.model(X).argmax(1) == 0).all() and Y.any()
    with pytest.raises(UserError, match="ema is 1; a decay"):
        fitted(tmp_path, 1, ema=1)


def test_a_module_without_that_network_is_refused(tmp_path: Path) -> None:
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False,
        default_root_dir=tmp_path, callbacks=[SparsifyCallback((X[:2],), network="net")],
    )  # fmt: skip
    with pytest.raises(UserError, match="no network under `net`") as refused:
        trainer.fit(Classifier(), DataLoader(TensorDataset(X, Y), batch_size=16))
    assert "network=NAME" in str(refused.value)
