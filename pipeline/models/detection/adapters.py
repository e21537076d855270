"""torchvision's one-stage detectors without what surrounds their networks: no resizing, no targets, no decoding.

Names of weights are torchvision's, so its checkpoints fit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import detection, get_model
from torchvision.models.detection.image_list import ImageList

from runtime.errors import UserError

ONE_STAGE = (
    "fcos_resnet50_fpn",
    "retinanet_resnet50_fpn",
    "retinanet_resnet50_fpn_v2",
    "ssd300_vgg16",
    "ssdlite320_mobilenet_v3_large",
)


class TorchvisionDetector(nn.Module):
    """Backbone (with its neck) and head of a torchvision detector, for images of `input_shape` (C, H, W); answers as
    the package says. torchvision's SSD has the background as the first of its classes."""

    anchors: Tensor
    extent: Tensor

    def __init__(self, model: Any, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.backbone, self.head = model.backbone, model.head
        self.has_background = isinstance(model, detection.ssd.SSD)
        _, height, width = input_shape
        self.register_buffer("anchors", _anchors(model, input_shape), persistent=False)
        self.register_buffer("extent", torch.tensor([width, height] * 2, dtype=torch.float32), persistent=False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        outputs = self.head(list(self.backbone(x).values()))
        logits = outputs["cls_logits"]
        answer = {"cls_logits": logits[..., 1:] if self.has_background else logits}
        answer["bbox_regression"] = outputs["bbox_regression"]
        if self.has_background:
            answer["background_logits"] = logits[..., :1]
        if "bbox_ctrness" in outputs:
            answer["bbox_ctrness"] = outputs["bbox_ctrness"]
        return {**answer, "anchors": self.anchors, "extent": self.extent}


@torch.no_grad()
def _anchors(model: Any, shape: tuple[int, int, int]) -> Tensor:
    """float32 (A, 4) in pixels."""
    training = model.training
    model.eval()
    images = torch.zeros(2, *shape)
    try:
        features = list(model.backbone(images).values())
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{type(model).__name__} cannot run on images {shape} (C, H, W) ({reason})",
            "coloured images of about the size that it was made for, such as 320 pixels",
            "set data.image_size, or choose another network",
        ) from error
    finally:
        model.train(training)
    anchors: Tensor = model.anchor_generator(ImageList(images, [shape[1:]] * 2), features)[0]
    return anchors


def torchvision_detector(
    *, name: str, num_classes: int | None, input_shape: tuple[int, int, int], **args: Any
) -> TorchvisionDetector:
    """The detector `name` of torchvision with fresh weights. Raises UserError: it is no one-stage detector."""
    if name not in ONE_STAGE:
        raise UserError(
            f"torchvision:{name} is a detector of two stages, or finds more than boxes",
            f"a network that is traced as a whole: {', '.join(ONE_STAGE)}",
            f"try torchvision:{ONE_STAGE[1]}",
        )
    background = 1 if name.startswith("ssd") else 0
    offers = {} if num_classes is None else {"num_classes": num_classes + background}
    model = get_model(name, **{"weights": None, "weights_backbone": None, **offers, **args})
    return TorchvisionDetector(model, input_shape)
