"""Plans and reloads: bit for bit in a fresh process, composed over cuts, refused with a clear line where unfit."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.models.demo import resnet
from pipeline.surgery import Source, load_compact, save_compact, shrink
from runtime.errors import UserError
from tests.pipeline.surgery import nets, nets_shapes, nets_tokens
from tests.pipeline.surgery.laws import difference, untouched
from tests.pipeline.surgery.nets import Oracle, awaken, still

REPOSITORY = Path(__file__).parents[3]
ORACLES = (*nets.ALL, *nets_shapes.ALL, *nets_tokens.ALL)


@pytest.mark.parametrize("make", ORACLES, ids=lambda make: str(make.__name__))
def test_every_oracle_comes_back_bit_for_bit_over_fresh_weights(make: Callable[[], Oracle], tmp_path: Path) -> None:
    oracle = make()
    compact = shrink(oracle.model, oracle.example, verify=False)
    save_compact(compact, tmp_path)
    other = awaken(make().model, seed=5)
    with untouched(other):
        loaded = load_compact(tmp_path, other)
    assert torch.equal(loaded(*oracle.example), compact.model(*oracle.example))
    left, right = loaded.state_dict(), compact.model.state_dict()
    assert list(left) == list(right)
    assert all(torch.equal(left[k], right[k]) for k in right)


def test_a_plan_that_names_a_module_as_it_was_once_called_is_read(tmp_path: Path) -> None:
    network = resnet(num_classes=4, input_shape=(3, 8, 8), width=8).eval()
    x = torch.randn(2, 3, 8, 8)
    compact = shrink(network, (x,))
    save_compact(compact, tmp_path)
    plan = (tmp_path / "plan.json").read_text()
    assert '"pipeline.models.demo.ResNet"' in plan
    (tmp_path / "plan.json").write_text(plan.replace("pipeline.models.demo", "pipeline.networks.demo"))
    assert torch.equal(load_compact(tmp_path, network)(x), compact.model(x))
    (tmp_path / "plan.json").write_text(plan.replace("pipeline.models.demo", "pipeline.networks.others"))
    with pytest.raises(
        UserError, match=r"for a pipeline.networks.others.ResNet, the network is a pipeline.models.demo"
    ):
        load_compact(tmp_path, network)


FRESH = """
import sys
from pathlib import Path
def refuse(event, arguments):
    if event == "pickle.find_class":
        raise AssertionError(f"unpickles {arguments}")
sys.addaudithook(refuse)
import torch
def no_load(*_, **__): raise AssertionError("torch.load")
torch.load = torch.serialization.load = no_load
from pipeline.surgery import load_compact
torch.set_num_threads(1)
network = load_compact(Path(sys.argv[1]))
x = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
Path(sys.argv[2]).write_bytes(network(x).detach().numpy().tobytes())
"""


def test_a_fresh_process_loads_it_bit_for_bit_without_pickle(tmp_path: Path) -> None:
    from pipeline import config
    from pipeline.models import build

    model = build(config.Model(name="cifar:resnet20"), num_classes=10, input_shape=(3, 32, 32)).eval()
    awaken(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            still(module, range(0, module.num_features, 3), -0.1)
    x = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
    compact = shrink(model, (x,), verify=False)
    source = Source(name="cifar:resnet20", args={}, num_classes=10, input_shape=(3, 32, 32))
    save_compact(compact, tmp_path / "compact", source)
    assert sorted(p.name for p in (tmp_path / "compact").iterdir()) == [
        "certificate.json",
        "plan.json",
        "weights.safetensors",
    ]
    command = [sys.executable, "-c", FRESH, str(tmp_path / "compact"), str(tmp_path / "out")]
    subprocess.run(command, check=True, cwd=REPOSITORY, timeout=120)
    assert (tmp_path / "out").read_bytes() == compact.model(x).detach().numpy().tobytes()
    assert compact.certificate["channels"]["after"] < compact.certificate["channels"]["before"]


@pytest.mark.parametrize("residual", ["tied", "untied"])
def test_cutting_again_composes_into_one_plan_against_the_first_network(residual: Any, tmp_path: Path) -> None:
    oracle = nets.residual()
    first = shrink(oracle.model, oracle.example, residual=residual)
    still(first.model.bn1, (0,), -1)
    twice = shrink(first.model, oracle.example)
    assert twice.plan.network == first.plan.network == "tests.pipeline.surgery.nets.Net"
    assert twice.plan.layers["conv1.weight"] == (1, 3)  # 2, 4, 5 went first, then the first of 0, 1, 3
    assert twice.plan.widths["conv1.weight"] == 6
    assert twice.plan.layers["stem.weight"] == first.plan.layers["stem.weight"]
    save_compact(twice, tmp_path)
    loaded = load_compact(tmp_path, nets.residual().model)
    assert torch.equal(loaded(*oracle.example), twice.model(*oracle.example))
    assert difference(first.model, twice.model, oracle.example) < 1e-6
    third = shrink(loaded, oracle.example)
    assert third.plan.layers == twice.plan.layers


def test_a_constant_folded_twice_composes(tmp_path: Path) -> None:
    oracle = nets.constant_without_padding()
    first = shrink(oracle.model, oracle.example)
    assert first.plan.biases == ("conv3.bias",)
    still(first.model.bn, (1,), 0.9)
    twice = shrink(first.model, oracle.example)
    assert (twice.plan.biases, len(twice.plan.layers["conv2.weight"])) == (("conv3.bias",), 5)
    save_compact(twice, tmp_path)
    loaded = load_compact(tmp_path, nets.constant_without_padding().model)
    assert torch.equal(loaded(*oracle.example), twice.model(*oracle.example))
    assert difference(first.model, twice.model, oracle.example) < 1e-6


def test_training_a_loaded_network_never_brings_the_dense_one_back(tmp_path: Path) -> None:
    oracle = nets.residual()
    save_compact(shrink(oracle.model, oracle.example), tmp_path)
    loaded = load_compact(tmp_path, nets.residual().model)
    shapes = {name: tuple(p.shape) for name, p in loaded.named_parameters()}
    loaded.train()
    assert all(m.training for m in loaded.modules())
    optimizer = torch.optim.SGD(loaded.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(12):
        loss: Any = F.cross_entropy(loaded(*oracle.example), torch.tensor([0, 1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert {name: tuple(p.shape) for name, p in loaded.named_parameters()} == shapes
    save_compact(shrink(loaded, oracle.example), tmp_path / "again")
    again = load_compact(tmp_path / "again", nets.residual().model)
    assert {name: tuple(p.shape) for name, p in again.named_parameters()} == shapes
    assert torch.equal(again(*oracle.example), loaded.eval()(*oracle.example))


def test_a_network_that_cannot_be_traced_is_saved_whole(tmp_path: Path) -> None:
    class Odd(nets.Net):
        def forward(self, x: Any) -> Any:
            if type(x) is not torch.Tensor:
                raise TypeError("tensors only")
            return super().forward(x)

    def make() -> Any:
        torch.manual_seed(0)
        return Odd(lambda m, x: m.fc(x), fc=nn.Linear(4, 3)).eval()

    x = torch.randn(2, 4)
    compact = shrink(make(), (x,))
    assert compact.plan.layers == {}
    save_compact(compact, tmp_path)
    assert torch.equal(load_compact(tmp_path, make())(x), make()(x))


class Scaled(nn.Module):
    """Its own scale is made by the constructor and never saved."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 2)
        self.register_buffer("scale", torch.arange(1.0, 7.0).reshape(6, 1, 1), persistent=False)

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(F.relu(self.conv(x) * self.scale).mean((2, 3)))


def test_a_buffer_that_the_network_does_not_save_is_not_saved(tmp_path: Path) -> None:
    model = Scaled().eval()
    still(model.conv, [1, 4])
    compact = shrink(model, (torch.zeros(1, 3, 8, 8),))
    assert sorted(compact.model.state_dict()) == sorted(model.state_dict())
    assert compact.model.get_buffer("scale").flatten().tolist() == [1.0, 3.0, 4.0, 6.0]
    save_compact(compact, tmp_path)
    assert torch.equal(load_compact(tmp_path, Scaled()).get_buffer("scale"), compact.model.get_buffer("scale"))
