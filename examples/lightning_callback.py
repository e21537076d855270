"""A Lightning module whose network loses channels while it trains. Seconds on two CPU cores, no download."""

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import demport
from demport.lightning import SparsifyCallback

images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16, torch.tensor(labels)


class Classifier(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (1, 32):
            layers += [nn.Conv2d(channels, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
        self.model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


torch.manual_seed(0)
module, callback = Classifier(), SparsifyCallback((x[:2],), network="model", target={"macs": 0.4})
trainer = pl.Trainer(
    max_epochs=6, accelerator="cpu", callbacks=[callback], logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False,
)  # fmt: skip
trainer.fit(module, DataLoader(TensorDataset(x[:1500], y[:1500]), batch_size=128, shuffle=True, drop_last=True))

compact = callback.compact
assert compact is not None
demport.save(compact, "compact")
demport.onnx_from_torch(compact.model, x[:8], "compact.onnx")
accuracy = (compact.model.eval()(x[1500:]).argmax(1) == y[1500:]).float().mean()
print(f"accuracy {accuracy:.3f} with {sum(p.numel() for p in compact.model.parameters())} parameters")
