"""Rounding to whole numbers, and its gradients, worked out by hand."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from pipeline.training.quantisation.rounding import RoundedLayer, Rounding


def test_values_are_those_of_quantizelinear() -> None:
    """Half to even, and the ends of the type; 0.65 / 0.25 is nearest to 3."""
    x = torch.tensor([0.0, 0.125, 0.375, 0.65, -0.65, 50.0, -50.0])
    rounded = Rounding(torch.tensor(0.25), 0, -128, 127)(x)
    np.testing.assert_allclose(rounded.detach(), [0, 0, 0.5, 0.75, -0.75, 31.75, -32.0], atol=1e-6)
    unsigned = Rounding(torch.tensor(0.25), 10, 0, 255)(x)  # levels -10 to 245 around 0
    np.testing.assert_allclose(unsigned.detach(), [0, 0, 0.5, 0.75, -0.75, 50.0, -2.5], atol=1e-5)


def test_gradients_of_value_and_scale() -> None:
    """Inside: 1, and round(x / s) - x / s; beyond the ends: 0, and the end. The logarithm's is s times as large; LSQ's
    factor is 1 / sqrt(3 values times 127)."""
    x = torch.tensor([0.26, 20.0, -20.0], requires_grad=True)
    rounding = Rounding(torch.tensor(0.1), 0, -128, 127)
    rounding(x).backward(torch.tensor([1.0, 2.0, 4.0]))
    assert x.grad is not None and rounding.log_scale.grad is not None
    np.testing.assert_array_equal(x.grad, [1, 0, 0])
    of_scale = 1 * (3 - 2.6) + 2 * 127 - 4 * 128
    np.testing.assert_allclose(rounding.log_scale.grad, 0.1 * of_scale / np.sqrt(3 * 127), rtol=1e-5)


def test_one_scale_for_each_channel_of_a_weight() -> None:
    layer = nn.Conv2d(3, 2, 1, bias=False)
    rounding = Rounding(torch.tensor([0.5, 0.01]), 0, -127, 127, axis=0)
    rounded = RoundedLayer(layer, rounding)
    x = torch.randn(4, 3, 5, 5)
    levels = (layer.weight / torch.tensor([0.5, 0.01]).reshape(2, 1, 1, 1)).round().clamp(-127, 127)
    expected = nn.functional.conv2d(x, levels * torch.tensor([0.5, 0.01]).reshape(2, 1, 1, 1))
    torch.testing.assert_close(rounded(x), expected)
    rounded(x).sum().backward()
    assert rounding.log_scale.grad is not None and rounding.log_scale.grad.shape == (2,)
    assert layer.weight.grad is not None and bool((layer.weight.grad[0] != 0).all())


def test_float32_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        rounded = Rounding(torch.tensor(0.01), 0, -128, 127)(torch.tensor([1.01], dtype=torch.bfloat16))
    assert rounded.dtype == torch.float32
    np.testing.assert_allclose(rounded.detach(), 1.01, atol=1e-6)  # bfloat16's nearest is 1.0078, which rounds to 101
