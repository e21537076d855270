"""What the real server says of configs: wrong ones it refuses with its reason, those for engines pass its checks."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from export.serving.files import Model, Sources
from export.serving.pbtxt import Serving
from export.serving.triton import Content, publish
from tests.export.graphs import conv_net, images
from tests.export.small_engines import stand_in
from tests.server.tritonserver import Running, tritonserver

pytestmark = pytest.mark.server
LABELS = ("a", "b", "c", "d", "e")

WRONG: dict[str, tuple[Callable[[str], str], str]] = {
    "unknown field": (lambda t: t.replace("max_batch_size", "max_batch"), 'has no field named "max_batch"'),
    "dim of zero": (lambda t: t.replace("dims: [3, 8, 8]", "dims: [3, 0, 8]"), "dimension must be integer >= 1"),
    "other dims": (lambda t: t.replace("dims: [3, 8, 8]", "dims: [3, 8, 9]", 1), r"the config says \[-1, 3, 8, 9\]"),
    "other type": (lambda t: t.replace("TYPE_FP32", "TYPE_FP16", 1), "the config says TYPE_FP16"),
    "other name": (lambda t: t.replace('"input"', '"image"'), "unexpected inference input 'image'"),
    "preferred over max": (
        lambda t: t.replace("dynamic_batching {", "dynamic_batching { preferred_batch_size: 17"),
        "dynamic batching preferred size must be <= max batch size",
    ),
    "warm-up of another size": (
        lambda t: t.replace("dims: [3, 8, 8] input_data_file", "dims: [3, 8, 80] input_data_file"),
        "warmup|input_data_file|not enough|byte size",
    ),
    "no such warm-up file": (lambda t: t.replace('"input0"', '"input9"'), "input9"),
    "a version that is not there": (
        lambda t: t.replace("all { }", "specific { versions: [7] }"),
        "no version is available|at least one version",
    ),
    "no such platform": (lambda t: t.replace("onnxruntime_onnx", "onnx"), "platform|backend"),
}  # fmt: skip


def settled(server: Running, names: Iterable[str] = ()) -> dict[str, tuple[str, str]]:
    """State and reason of each model; a config that cannot even be read has its reason in the log.

    tritonserver answers only once it has tried to load all models, so this is final.
    """
    log = server.log.read_text(errors="replace").splitlines()
    states = server.states()
    told = {}
    for name in names or states:
        state, reason = states.get(name, ("", ""))
        lines = [line for line in log if f"'{name}'" in line or "Error parsing text-format" in line]
        told[name] = (state, reason or "\n".join(lines))
    return told


@pytest.fixture(scope="module")
def wrong_states(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[str, str]]]:
    """One server with a right model and one for each wrong config; the states."""
    root = tmp_path_factory.mktemp("wrong")
    (root / "run").mkdir()
    net = conv_net(root / "run" / "net.onnx")
    names = {case: case.replace(" ", "_") for case in WRONG}
    models = [Model(name, {1: net}) for name in ("right", *names.values())]
    content = Content(LABELS, images(2))
    publish(models, root / "models", Sources(root / "run", {}, 16), content=content)
    for case, (spoil, _) in WRONG.items():
        path = root / "models" / names[case] / "config.pbtxt"
        text = path.read_text()
        path.write_text(spoil(text))
        assert path.read_text() != text, case
    with tritonserver(root / "models") as server:
        yield settled(server, ("right", *names.values()))


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_config_is_refused_with_the_servers_reason(wrong_states: dict[str, tuple[str, str]], case: str) -> None:
    state, reason = wrong_states[case.replace(" ", "_")]
    assert state != "READY", reason
    assert re.search(WRONG[case][1], reason), reason


def test_the_right_one_beside_them_is_served(wrong_states: dict[str, tuple[str, str]]) -> None:
    assert wrong_states["right"][0] == "READY"
    assert sum(state == "READY" for state, _ in wrong_states.values()) == 1


def profile(low: int, opt: int, high: int) -> dict[str, dict[str, list[int]]]:
    return {"input": {key: [size, 3, 8, 8] for key, size in (("min", low), ("opt", opt), ("max", high))}}


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of engines with every setting there is; no TensorRT would load these files."""
    root = tmp_path_factory.mktemp("engines")
    net = conv_net(root / "net.onnx")
    for name in ("dense", "compact"):
        stand_in(root / f"{name}.engine", name.encode())
        stand_in(root / f"{name}.two.engine", name.encode(), profiles=[profile(1, 1, 1), profile(1, 8, 16)])
    models = [
        Model("one", {1: root / "dense.engine", 2: root / "compact.engine"}, net),
        Model("two", {1: root / "dense.two.engine", 2: root / "compact.two.engine"}, net),
    ]
    content, serving = Content(LABELS, images(2)), Serving(instances=2, cuda_graphs=True, preferred=(4, 8))
    publish(models, root / "models", Sources(root, {}, 16), content=content, serving=serving)
    return root / "models"


def on_cpu(repository: Path, target: Path) -> Path:
    """A copy with a second config for a machine without a GPU: only the kind of the instances differs."""
    shutil.copytree(repository, target)
    for path in target.glob("*/config.pbtxt"):
        text = path.read_text()
        assert "KIND_GPU" in text
        (path.parent / "configs").mkdir()
        (path.parent / "configs" / "cpu.pbtxt").write_text(text.replace("KIND_GPU", "KIND_CPU"))
    return target


def test_configs_of_engines_pass_the_servers_validation(engines: Path, tmp_path: Path) -> None:
    with tritonserver(on_cpu(engines, tmp_path / "cpu"), "--model-config-name=cpu") as server:
        states = settled(server)
    assert set(states) == {"one", "two"}
    for name, (_, reason) in states.items():
        assert "config accepted: batch 16, " in reason, (name, reason)


def test_the_sentinel_is_not_reached_with_a_wrong_config(engines: Path, tmp_path: Path) -> None:
    copy = on_cpu(engines, tmp_path / "cpu")
    path = copy / "one" / "configs" / "cpu.pbtxt"
    path.write_text(path.read_text().replace("preferred_batch_size: [4, 8]", "preferred_batch_size: [4, 64]"))
    with tritonserver(copy, "--model-config-name=cpu") as server:
        states = settled(server)
    assert "config accepted" not in states["one"][1] and "preferred" in states["one"][1]
    assert "config accepted" in states["two"][1]


def test_an_engine_on_a_machine_without_a_gpu_is_refused(engines: Path) -> None:
    with tritonserver(engines) as server:
        states = settled(server)
    assert all(state != "READY" for state, _ in states.values())
    assert all("GPU" in reason for _, reason in states.values()), states
