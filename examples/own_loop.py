"""DemP in a training loop of one's own: train, cut, export, compare. Seconds on two CPU cores, no download."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

import demport

images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16, torch.tensor(labels)
torch.manual_seed(0)
layers: list[nn.Module] = []
for channels, width in ((1, 32), (32, 32)):
    layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
dense = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
optimizer = torch.optim.AdamW(dense.parameters(), lr=1e-2)
demport.onnx_from_torch(dense, x[:8], "dense.onnx")

sparse = demport.sparsify(dense.train(), optimizer, (x[:2],), steps=120, target={"macs": 0.3})
for _ in range(120):
    batch = torch.randint(1500, (128,))
    loss = cross_entropy(sparse.network(x[batch]), y[batch]) + sparse.penalty()
    sparse.optimizer.zero_grad()
    loss.backward()
    sparse.optimizer.step()
    sparse.step(x[batch])
compact = sparse.finish()

demport.save(compact, "compact")
demport.onnx_from_torch(compact.model, x[:8], "compact.onnx")
accuracy = (compact.model.eval()(x[1500:]).argmax(1) == y[1500:]).float().mean()
with demport.open_session("dense.onnx") as first, demport.open_session("compact.onnx") as second:
    speed = demport.compare([first, second], {"input": np.asarray(x[:32])}, time_limit_s=2).speedups[0]
print(f"accuracy {accuracy:.3f}, {speed.ratio:.2f} times as fast (95 %: {speed.ci95[0]:.2f} to {speed.ci95[1]:.2f})")
