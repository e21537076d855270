"""A YOLO of Ultralytics, built from its yaml, loses channels in a plain loop. A minute on two CPU cores, no download.

Ultralytics is licensed under AGPL-3.0; demport neither contains nor needs it. This example imports it.
"""

import torch
from torch import Tensor, nn
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.loss import v8DetectionLoss

import demport

SIDE, BATCH, STEPS = 64, 4, 6


class Raw(nn.Module):
    """Backbone, neck and heads; boxes are not decoded yet, so that it answers alike in training and in eval mode."""

    def __init__(self, yolo: DetectionModel) -> None:
        super().__init__()
        self.model = yolo.model

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        outputs: list[Tensor] = []
        *layers, head = self.model
        for layer in layers:
            if layer.f != -1:
                x = outputs[layer.f] if isinstance(layer.f, int) else [x if j == -1 else outputs[j] for j in layer.f]
            x = layer(x)
            outputs.append(x)
        answer = head.forward_head([outputs[j] for j in head.f], **head.one2many)
        return answer["boxes"], answer["scores"]


torch.manual_seed(0)
yolo = DetectionModel("yolov8n.yaml", nc=2, verbose=False)
yolo.args = get_cfg()
criterion = v8DetectionLoss(yolo)
feats = [torch.zeros(BATCH, 1, SIDE // stride, SIDE // stride) for stride in (8, 16, 32)]  # only their sizes are read
dense = Raw(yolo).train()
optimizer = torch.optim.AdamW(dense.parameters(), lr=1e-3)
options = {"rounds": 1, "first_round": 0.3}
example = torch.zeros(2, 3, SIDE, SIDE)
sparse = demport.sparsify(
    dense, optimizer, (example,), method="taylor", steps=STEPS, target={"macs": 0.7}, options=options
)
for _ in range(STEPS):
    x, corners = torch.rand(BATCH, 3, SIDE, SIDE), torch.rand(BATCH, 2)  # one bright square an image
    for image, (left, top) in zip(x, (corners * SIDE / 2).int().tolist(), strict=True):
        image[:, top : top + SIDE // 2, left : left + SIDE // 2] += 1
    targets = {"batch_idx": torch.arange(BATCH), "cls": torch.zeros(BATCH, 1)}
    targets["bboxes"] = torch.cat([corners / 2 + 0.25, torch.full((BATCH, 2), 0.5)], 1)
    boxes, scores = sparse.network(x)
    loss = criterion({"boxes": boxes, "scores": scores, "feats": feats}, targets)[0].sum() + sparse.penalty()
    sparse.optimizer.zero_grad()
    loss.backward()
    sparse.optimizer.step()
    sparse.step(x)
compact = sparse.finish()
demport.save(compact, "compact")
