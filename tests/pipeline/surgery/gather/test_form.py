"""The gather form computes the same with fan_in / inputs of the multiply-accumulates, and is loaded again."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from export.onnx.from_torch import onnx_from_torch
from pipeline.surgery import Compact, load_compact, save_compact, shrink
from pipeline.surgery.align import Timing
from pipeline.surgery.gather import candidates, gather_form, gathered, kernels_read
from pipeline.surgery.gather.timing import Pair, gathered_by
from pipeline.surgery.shrink_training import shrink_training
from runtime.errors import UserError
from runtime.macs import macs_of
from tests.pipeline.surgery.laws import difference

EXAMPLE = (torch.zeros(2, 3, 8, 8),)
READ = 2


class Few(nn.Module):
    """Two convolutions of 8 inputs whose outputs read two kernels each, and channel 1 of the first layer is dead."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, stride=2, padding=1, padding_mode="circular")
        self.c = nn.Conv2d(8, 6, 3, dilation=2, padding=2, bias=False)
        self.head = nn.Linear(6, 4)
        with torch.no_grad():
            self.a.weight[1] = self.a.bias[1] = 0  # type: ignore[index]
            for layer in (self.b, self.c):
                rank = torch.rand(layer.weight.shape[:2]).argsort(1)
                layer.weight.mul_((rank < READ)[:, :, None, None])
            self.b.weight[3, 2:] = 0  # reads fewer

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(torch.relu(self.a(x))).sigmoid()
        return self.head(self.c(y).mean((2, 3)))  # type: ignore[no-any-return]


@pytest.fixture
def compact() -> Compact:
    return gathered(shrink(Few().eval(), EXAMPLE), EXAMPLE)


def test_the_same_function_for_as_many_operations_as_kernels_are_read(compact: Compact) -> None:
    net = Few().eval()
    before = macs_of(shrink(net, EXAMPLE).model, EXAMPLE)
    assert {row["layer"]: row["fan_in"] for row in compact.certificate["gather"]["layers"]} == {"b": READ, "c": READ}
    assert compact.certificate["gather"]["max_rel_diff"] < 1e-14 and difference(net, compact.model, EXAMPLE) < 1e-12
    saved = (7 - READ) * 8 * 9 * 16 + (8 - READ) * 6 * 9 * 16
    assert macs_of(compact.model, EXAMPLE) == before - saved
    count = sum(p.numel() for p in compact.model.parameters())
    assert compact.certificate["parameters"]["after"] == count == 7 * 28 + READ * 8 * 9 + 8 + READ * 6 * 9 + 28


def test_a_plan_says_it_and_the_network_is_loaded_bit_for_bit(compact: Compact, tmp_path: Path) -> None:
    save_compact(compact, tmp_path)
    assert json.loads((tmp_path / "plan.json").read_text())["gather"] == {"b": READ, "c": READ}
    x = torch.randn(3, 3, 8, 8)
    loaded = load_compact(tmp_path, Few())
    assert torch.equal(loaded(x), compact.model.eval()(x))
    weights = load_file(tmp_path / "weights.safetensors")
    weights["b.index_1"][0] = 7  # of 7 channels
    save_file(weights, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match="b reads channels that are not there"):
        load_compact(tmp_path, Few())
    plan = json.loads((tmp_path / "plan.json").read_text())
    (tmp_path / "plan.json").write_text(json.dumps({**plan, "gather": {"head": 2}}))
    with pytest.raises(UserError, match="the plan gathers 2 inputs for head"):
        load_compact(tmp_path, Few())


def test_it_is_standard_onnx(compact: Compact, tmp_path: Path) -> None:
    x, path = torch.randn(2, 3, 8, 8), tmp_path / "g.onnx"
    onnx_from_torch(compact.model, x, path, opset=18, max_abs_diff=1e-5, metadata={})
    nodes = onnx.load(path).graph.node
    groups = [a.i for n in nodes if n.op_type == "Conv" for a in n.attribute if a.name == "group"]
    assert {n.domain for n in nodes} <= {"", "ai.onnx"} and sorted(groups) == [1, 6, 6, 8, 8]
    assert sum(n.op_type == "Gather" for n in nodes) >= 2 * READ


def test_what_is_no_candidate_stays_and_a_gathered_network_is_not_cut_again(compact: Compact) -> None:
    net = Few().eval()
    assert candidates(net) == {"b": READ, "c": READ}  # of 3 inputs all are read
    with torch.no_grad():
        net.c.weight[0] = 1
    assert candidates(net) == {"b": READ}
    assert kernels_read(net.b.weight).sum(1).max() == READ == gather_form(net.b).fan_in
    with pytest.raises(UserError, match="has the gather form, which is not cut again"):
        shrink(compact.model, EXAMPLE)
    with pytest.raises(UserError, match="has the gather form"):
        shrink_training(compact.model, EXAMPLE, torch.optim.SGD(compact.model.parameters(), 0.1))


def test_auto_takes_the_layers_that_win_alone_and_none_where_the_network_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times = {"b": (2.0, 1.0), "c": (1.0, 0.99), "whole": (5.0, 4.0)}

    def timed(dense: nn.Module, other: nn.Module, *_: object) -> Pair:
        key = "whole" if not isinstance(dense, nn.Conv2d) else "b" if dense.stride == (2, 2) else "c"
        return Pair(*times[key], "onnxruntime", "cpu")

    monkeypatch.setattr("pipeline.surgery.gather.timing.timed", timed)
    samples = torch.randn(2, 3, 8, 8)
    result = gathered_by("auto", shrink(Few().eval(), EXAMPLE), samples, Timing(batch=4), 1e-9)
    assert result.plan.gather == {"b": READ} and difference(Few().eval(), result.model, EXAMPLE) < 1e-12
    rows = result.certificate["gather"]
    assert [row["wins"] for row in rows["timed"]] == [True, False]
    assert rows["network"] == {"compact_ms": 5.0, "gathered_ms": 4.0} and rows["batch"] == 4
    times["whole"] = (5.0, 5.0)
    result = gathered_by("auto", shrink(Few().eval(), EXAMPLE), samples, Timing(batch=4), 1e-9)
    assert result.plan.gather == {} and result.certificate["gather"]["layers"] == []


def test_nothing_is_timed_where_no_layer_reads_few_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.surgery.gather.timing.timed", lambda *_: pytest.fail("timed"))
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)).eval()
    before = shrink(net, EXAMPLE)
    after = gathered_by("auto", before, torch.randn(1, 3, 8, 8), Timing(), 1e-9)
    assert after is before and "gather" not in after.certificate
    assert gathered_by("off", before, torch.randn(1, 3, 8, 8), Timing(), 1e-9) is before


@pytest.mark.slow
def test_auto_times_on_onnx_runtime() -> None:
    timing = Timing(batch=1, threads=1, device="cpu", rounds=2, min_blocks=4, time_limit_s=2.0)
    result = gathered_by("auto", shrink(Few().eval(), EXAMPLE), torch.randn(2, 3, 8, 8), timing, 1e-9)
    rows = result.certificate["gather"]
    assert rows["backend"] == "onnxruntime" and all(row["dense_ms"] > 0 < row["gathered_ms"] for row in rows["timed"])
    assert set(result.plan.gather) <= {row["layer"] for row in rows["timed"] if row["wins"]}
