"""What a torch network may answer with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from runtime.backends.torch import TorchSession, image_inputs
from runtime.errors import UserError


class Two(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: Tensor) -> Any:
        forms = {"dict": {"double": 2 * x, "more": x + 2}, "tuple": (2 * x, x + 2), "text": "double"}
        return forms[self.form]


@pytest.mark.parametrize("form", ["dict", "tuple"])
def test_several_outputs_have_their_names(form: str) -> None:
    with TorchSession(Two(form), image_inputs((1, 2, 2)), ("double", "more"), device="cpu") as session:
        session.bind({session.inputs[0].name: np.full((3, 1, 2, 2), 5, np.float32)})
        session.launch()
        session.wait()
        values = session.fetch()
    assert {name: float(value[2, 0, 1, 1]) for name, value in values.items()} == {"double": 10, "more": 7}
    assert torch.get_num_threads() >= 1


def test_what_is_no_tensor_is_one_line() -> None:
    with pytest.raises(UserError, match="the network returns str") as error:
        TorchSession(Two("text"), image_inputs((1, 2, 2)), device="cpu")
    assert "several in a tuple or by name" in str(error.value)
