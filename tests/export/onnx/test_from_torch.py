"""The exported file computes what torch computes, at any batch, and says only what it should."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.onnx import graph
from export.onnx.from_torch import OPSETS, OnnxGraph, onnx_from_torch
from runtime.errors import UserError
from tests.export.conftest import Residual, residual


def export(model: nn.Module, path: Path, *, opset: int = 18, max_abs_diff: float = 1e-4) -> OnnxGraph:
    example = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return onnx_from_torch(model, example, path, opset=opset, max_abs_diff=max_abs_diff, metadata={})


def test_values_at_batches_that_the_export_did_not_try(exported: tuple[Residual, OnnxGraph]) -> None:
    model, made = exported
    session = onnxruntime.InferenceSession(str(made.path), providers=["CPUExecutionProvider"])
    for size in (2, 7, 33):
        x = torch.randn(size, 3, 8, 8)
        (logits,) = session.run(["logits"], {"input": x.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(logits, model(x).numpy(), atol=1e-5)
    assert made.max_abs_diff < 1e-5
    assert made.batch_sizes == (1, 3, 8)


def test_form(exported: tuple[Residual, OnnxGraph]) -> None:
    _, made = exported
    model = onnx.load(str(made.path), load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert graph.inputs_of(model) == (graph.TensorSpec("input", "float32", (None, 3, 8, 8)),)
    assert graph.outputs_of(model) == (graph.TensorSpec("logits", "float32", (None, 5)),)
    kinds = Counter(node.op_type for node in model.graph.node)
    assert kinds["Conv"] == 3
    assert kinds["BatchNormalization"] == 0
    assert (made.opset, made.nodes) == (18, len(model.graph.node))
    assert made.bytes == made.path.stat().st_size
    assert [item.name for item in made.path.parent.iterdir()] == ["dense.onnx"]


def test_metadata_is_ours_alone(exported: tuple[Residual, OnnxGraph]) -> None:
    _, made = exported
    model = onnx.load(str(made.path))
    assert {item.key: item.value for item in model.metadata_props} == {
        "demport.plan": "f00d",
        "demport.labels": "a,b",
    }
    content = made.path.read_bytes()
    assert b"conftest" not in content  # the exporter notes the source line of every node
    assert b"stack_trace" not in content


def test_leaves_the_module_as_it_was(tmp_path: Path) -> None:
    model = residual().train()
    model.norm2.eval()  # frozen by its owner
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    export(model, tmp_path / "net.onnx")
    assert [module.training for module in model.modules()] == modes
    assert modes.count(False) == 1
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_leaves_the_module_as_it_was_after_a_failure(tmp_path: Path) -> None:
    model = Branch().train()
    with pytest.raises(UserError):
        export(model, tmp_path / "net.onnx")
    assert model.training
    assert model.head.training


def test_opset_is_the_one_asked_for(tmp_path: Path) -> None:
    made = export(residual(), tmp_path / "net.onnx", opset=20)
    assert made.opset == 20
    assert [item.version for item in onnx.load(str(made.path)).opset_import] == [20]


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 5)


class Branch(Head):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(x.mean((2, 3)))
        return y if x.sum() > 0 else -y


class FixedBatch(Head):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.reshape(2, 3, -1).mean(2))  # type: ignore[no-any-return]


class Text(Head):
    def forward(self, x: Tensor) -> str:
        return "cat"


class OneAnswer(Head):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.mean((0, 2, 3)))  # type: ignore[no-any-return]


class NotANumber(Head):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.mean((2, 3))) * float("nan")  # type: ignore[no-any-return]


class Noisy(Head):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.head(x.mean((2, 3))), 0.5, training=True)


class Unknown(Head):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvalsh(x.mean(1))  # type: ignore[no-any-return]


class Raises(Head):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("odd width\nand a second line")


@pytest.mark.parametrize(
    ("network", "opset", "found"),
    [
        (Branch, 18, "torch cannot export the network: GuardOnDataDependentSymNode: Could not guard"),
        (Unknown, 18, "torch cannot export the network: .*eigh"),
        (FixedBatch, 18, "the network fails on a batch of 1: RuntimeError|returns a tensor .2, 5. for a batch of 1"),
        (Text, 18, "the network returns a str for a batch of 1"),
        (OneAnswer, 18, r"the network returns a tensor \[5\] for a batch of 1"),
        (NotANumber, 18, "the network's own logits are not finite"),
        (Noisy, 18, r"differ from torch's by .* at batch \d; at most 0.0001"),
        (Raises, 18, "the network fails on a batch of 1: ValueError: odd width;"),
        (residual, 17, "the exporter wrote operator set 18; 17 as asked"),
    ],
)
def test_failures_are_one_line_and_write_nothing(
    network: Callable[[], nn.Module], opset: int, found: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    with pytest.raises(UserError, match=found) as caught:
        export(network(), folder / "net.onnx", opset=opset)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert not folder.exists()


def test_auto_takes_the_first_operator_set_that_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(model: onnx.ModelProto, full_check: bool = False) -> None:
        if graph.opset_of(model) < 20:
            raise onnx.checker.ValidationError("no such operator\nin this set")

    example = torch.randn(2, 3, 8, 8)
    made = onnx_from_torch(residual(), example, tmp_path / "p.onnx", opset="auto", max_abs_diff=1e-4, metadata={})
    assert (made.opset, made.refused) == (OPSETS[0], {}) == (18, {})
    monkeypatch.setattr(onnx.checker, "check_model", check)
    made = onnx_from_torch(residual(), example, tmp_path / "net.onnx", opset="auto", max_abs_diff=1e-4, metadata={})
    assert made.refused == {"18": "the exported graph is not valid ONNX: no such operator"}
    assert graph.opset_of(onnx.load(str(made.path))) == made.opset == 20


class Pair(NamedTuple):
    boxes: Tensor
    scores: Tensor


class Two(Head):
    def __init__(self, form: Callable[[Tensor, Tensor], object]) -> None:
        super().__init__()
        self.form = form

    def forward(self, image: Tensor, age: Tensor) -> object:
        return self.form(self.head(image.mean((2, 3)) * age), age + 1)


@pytest.mark.parametrize(
    ("form", "names"),
    [
        (Pair, ("boxes", "scores")),
        (lambda a, b: {"class": a, "later": b}, ("class", "later")),
        (lambda a, b: (a, b), ("output_0", "output_1")),
        (lambda a, b: [a + b], ("logits",)),
    ],
    ids=["namedtuple", "dict", "tuple", "list of one"],
)
def test_several_inputs_and_outputs_keep_the_networks_own_names(
    tmp_path: Path, form: Callable[[Tensor, Tensor], object], names: tuple[str, ...]
) -> None:
    torch.manual_seed(0)
    model = Two(form).eval()
    example = (torch.randn(4, 3, 8, 8), torch.rand(4, 1))
    made = onnx_from_torch(model, example, tmp_path / "net.onnx", opset="auto", max_abs_diff=1e-5, metadata={})
    assert (made.inputs, made.outputs) == (("image", "age"), names)
    session = onnxruntime.InferenceSession(str(made.path), providers=["CPUExecutionProvider"])
    assert [item.name for item in session.get_outputs()] == list(names)
    image, age = torch.randn(5, 3, 8, 8), torch.rand(5, 1)
    outputs = session.run(None, {"image": image.numpy(), "age": age.numpy()})
    first = (image.mean((2, 3)) * age) @ model.head.weight.T + model.head.bias
    expected = first + age + 1 if names == ("logits",) else first
    np.testing.assert_allclose(outputs[0], expected.detach().numpy(), atol=1e-5)


def test_a_success_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made = export(residual(), tmp_path / "net.onnx")
    assert capfd.readouterr() == ("", "")
    assert made.nodes > 0


class Talks(Head):
    def forward(self, x: Tensor) -> Tensor:
        print("an old scale is used", file=sys.stderr)
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def test_what_the_network_says_on_stderr_is_not_lost(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    export(Talks(), tmp_path / "net.onnx")
    said = capfd.readouterr().err
    assert said.count("an old scale is used") > 3  # the three runs of the check, and at least one of the export
    assert "torch.onnx" not in said


def test_two_gib_is_refused_before_the_export(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "MAX_BYTES", 4 * 3232)  # the network has 3,233 parameters, buffers not counted
    with pytest.raises(UserError, match="the limit of one ONNX file"):
        export(residual(), folder / "net.onnx")
    assert not folder.exists()
