"""A ViT of Hugging Face under its Trainer, losing hidden units and heads. Seconds on two CPU cores, no download."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments, ViTConfig, ViTForImageClassification

import demport

images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16, torch.tensor(labels)
STEPS = 40


class Digits(Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return 1500

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"pixel_values": x[i], "labels": y[i]}


class Holder(nn.Module):
    """What the Trainer holds: its network may become another."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        self.images, logits = pixel_values, self.network(pixel_values).logits
        return {"loss": nn.functional.cross_entropy(logits, labels) + sparse.penalty(), "logits": logits}


class Sparsify(TrainerCallback):
    def on_optimizer_step(self, *args: object, **kwargs: object) -> None:
        if sparse.step(holder.images):
            holder.network = sparse.network
            trainer.optimizer.optimizer = sparse.optimizer
            trainer.lr_scheduler.optimizer = sparse.optimizer


torch.manual_seed(0)
sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
vit = ViTForImageClassification(ViTConfig(**sizes, image_size=8, patch_size=2, num_channels=1, num_labels=10))
optimizer = torch.optim.AdamW(vit.parameters(), lr=3e-3)
sparse = demport.sparsify(vit, optimizer, (x[:2],), steps=STEPS, target={"macs": 0.6})
holder = Holder(vit)
arguments = TrainingArguments(
    "trainer", max_steps=STEPS, per_device_train_batch_size=64, use_cpu=True, report_to=[], save_strategy="no"
)
trainer = Trainer(holder, arguments, train_dataset=Digits(), optimizers=(optimizer, None), callbacks=[Sparsify()])
trainer.train()
compact = sparse.finish()
demport.save(compact, "compact")
