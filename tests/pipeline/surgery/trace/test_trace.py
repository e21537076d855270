"""What forward may do beside calling layers: make tensors, look at batch sizes, call torch's own transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.surgery import load_compact, save_compact, shrink
from tests.pipeline.surgery.laws import difference, reasons
from tests.pipeline.surgery.nets import conv, image, net, pooled, still


def dimmed(m: Any, x: Tensor) -> Tensor:
    """Every other channel is multiplied by 0 in forward itself."""
    mask = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0, 0.0]).view(1, 6, 1, 1)
    return m.fc(pooled(F.relu(m.conv(x)) * mask))  # type: ignore[no-any-return]


def test_a_tensor_made_in_forward_is_a_constant_that_is_cut_too(tmp_path: Path) -> None:
    model = net(dimmed, conv=conv(3, 6), fc=nn.Linear(6, 4))
    compact = shrink(model, image(3, 8))
    assert compact.certificate["channels"] == {"before": 6, "dead": 3, "after": 3}
    assert difference(model, compact.model, image(3, 8)) < 1e-12
    save_compact(compact, tmp_path)
    x = torch.randn(2, *image(3, 8)[0].shape[1:])
    assert torch.equal(load_compact(tmp_path, model)(x), compact.model.eval()(x))


def test_a_tensor_made_for_one_batch_size_freezes_the_network() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        made = torch.zeros([len(x), 2])
        return m.fc(torch.cat([pooled(m.conv(x)), made], 1))  # type: ignore[no-any-return]

    model = still_one(net(forward, conv=conv(3, 6), fc=nn.Linear(8, 4)))
    compact = shrink(model, image(3, 8))
    assert any("makes tensors for one batch size" in reason for reason in reasons(compact.certificate))
    assert difference(model, compact.model, image(3, 8), batch=5) == 0.0
    assert not hasattr(model, "_tensor_constant0")


def still_one(model: Any) -> Any:
    still(model.conv, (1,))
    return model


def test_torchs_own_transformer_layer_loses_hidden_units() -> None:
    """Units 0 and 3 of 12 are dead: 2 rows of 8, their biases, and 2 columns of 8 go."""
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    model = net(lambda m, x: m.head(m.layer(x).mean(1)), layer=layer, head=nn.Linear(8, 3))
    still(model.layer.linear1, (0, 3))
    example = (torch.zeros(1, 5, 8),)
    compact = shrink(model, example)
    assert compact.plan.layers == {"layer.linear1.weight": tuple(i for i in range(12) if i not in (0, 3))}
    before = sum(p.numel() for p in model.parameters())
    assert compact.certificate["parameters"] == {"before": before, "after": before - 2 * (8 + 1 + 8)}
    assert difference(model, compact.model, example) < 1e-12


def test_layers_inside_a_module_that_no_rule_follows_are_counted() -> None:
    """LSTM of 8 inputs and 5 units: 4 * 5 rows for the inputs and as many for the state."""
    model = net(lambda m, x: m.head(m.lstm(x)[0][:, -1]), lstm=nn.LSTM(8, 5, batch_first=True), head=nn.Linear(5, 3))
    rows = shrink(model, (torch.zeros(1, 6, 8),)).certificate["frozen"]
    assert {"where": "lstm", "reason": "no rule for LSTM", "channels": 40} in rows
    assert len(rows) == 2
