"""What configs say that can be read: numbers and words as written, overrides, round trips."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import Config
from pipeline.config.file import config_from_overrides, dump_config, load_config
from pipeline.training.methods import METHODS
from runtime.errors import UserError
from tests.conftest import REPOSITORY

QUICKSTART = REPOSITORY / "configs" / "quickstart.yaml"


def test_numbers_are_the_numbers_they_look_like(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("dense: {lr: 1e-3, weight_decay: .5, epochs: 010}\nsparse: {lr: 1E1, momentum: 0}\nname: '1e-3'\n")
    config = load_config(path)
    assert (config.dense.lr, config.dense.weight_decay, config.dense.epochs) == (0.001, 0.5, 10)
    assert (config.sparse.lr, config.sparse.momentum) == (10.0, 0.0)
    assert config.name == "1e-3"


@pytest.mark.parametrize("text", ["no", "On", "2026-01-02", "2026-01-02 03:04:05", "1:30"])
def test_words_and_dates_are_text(text: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"name: {text}\n")
    assert load_config(path).name == text
    assert load_config(path, [f"name={text}x"]).name == f"{text}x"


def test_merge_keys_fill_in_what_a_section_does_not_say(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("dense: &d {lr: 0.2, epochs: 3}\nsparse: {<<: *d, epochs: 5}\n")
    config = load_config(path)
    assert (config.sparse.lr, config.sparse.epochs) == (0.2, 5)
    assert (config.dense.lr, config.dense.epochs) == (0.2, 3)
    path.write_text("dense: &d {lrr: 0.2}\nsparse: {<<: *d}\n")
    with pytest.raises(UserError, match=r"unknown key `dense\.lrr`"):
        load_config(path)


def test_byte_order_mark_and_windows_lines_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(b"\xef\xbb\xbfseed: 7\r\nname: x\r\n")
    config = load_config(path)
    assert config.seed == 7
    assert config.name == "x"


def test_one_of_the_two_pressures_is_enough() -> None:
    assert config_from_overrides(["sparse.lambda_peak=0"]).sparse.sigma_peak > 0
    assert config_from_overrides(["sparse.sigma_peak=0"]).sparse.lambda_peak > 0


def test_without_engines_their_limits_do_not_count() -> None:
    config = config_from_overrides(["engine.flavour=none", "engine.targets=[]", "precision.graphs=[]"])
    assert config.engine.precisions == ("fp32", "fp16")
    assert config_from_overrides(["engine.flavour=none", "engine.profile.max=32"]).engine.profile.max == 32


def test_overrides_apply_in_order_and_make_sections(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("dense: {lr: 0.2}\n")
    config = load_config(
        path,
        ["dense.lr=0.3", "dense.lr=4e-1", "check.batch_sizes=[1, 32, 64]", "model.args.width=3", "data.image_size="],
    )
    assert (config.dense.lr, config.check.batch_sizes) == (0.4, (1, 32, 64))
    assert (config.model.args, config.data.image_size) == ({"width": 3}, None)
    assert load_config(path).dense.lr == 0.2


@pytest.mark.parametrize("method", [name for name in METHODS if name != "demp"])
def test_another_method_runs_by_one_override_of_the_quickstart(method: str) -> None:
    sparse = load_config(QUICKSTART, [f"sparse.method={method}"]).sparse
    assert sparse.method == method and sparse.epochs == 40 and "lambda_peak" not in sparse.model_dump()


def test_keys_of_another_method_that_are_given_beside_it_count() -> None:
    sparse = load_config(QUICKSTART, ["sparse.density=0.5", "sparse.method=rigl"]).sparse
    assert (sparse.method, sparse.density) == ("rigl", 0.5)
    same = load_config(QUICKSTART, ["sparse.method=demp"]).sparse
    assert (same.lambda_peak, same.prune_every) == (0.04, 100)
    with pytest.raises(UserError, match=r"unknown key `sparse\.lambda_peak`"):
        load_config(QUICKSTART, ["sparse.method=rigl", "sparse.lambda_peak=0.1"])


def test_arguments_go_with_the_network_that_they_were_written_for(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("model: {name: 'demo:resnet', args: {width: 4}}\n")
    same = load_config(tmp_path / "c.yaml", ["model.name=demo:resnet"]).model
    other = load_config(tmp_path / "c.yaml", ["model.args.norm_layer=null", "model.name=torchvision:resnet18"]).model
    assert same.args == {"width": 4}
    assert (other.name, other.args) == ("torchvision:resnet18", {"norm_layer": None})


def test_defaults_are_valid_and_frozen() -> None:
    config = config_from_overrides([])
    assert config == Config()
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(name=st.text(), args=st.dictionaries(st.text(), json_values, max_size=4), lr=st.floats(0, 1e6))
def test_what_is_dumped_reads_back_equal(
    name: str, args: dict[str, object], lr: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = Config.model_validate({"name": name, "model": {"args": args}, "dense": {"lr": lr}})
    path = tmp_path_factory.getbasetemp() / "dumped.yaml"
    path.write_text(dump_config(config), encoding="utf-8", newline="\n")
    again = load_config(path)
    assert again == config
    assert again.model.args == args and again.name == name


@pytest.mark.parametrize("name", ["yes", "on", "1e-3", "010", "null", "~", "", "true", "<<", "- a", "0x1F", "a: b"])
def test_text_that_looks_like_something_else_survives(name: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(dump_config(Config(name=name)))
    assert load_config(path).name == name
    assert load_config(path, ["seed=3"]).seed == 3
