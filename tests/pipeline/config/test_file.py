"""Reading configs: every message a user can meet, overrides, round trips, help and schema."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from pipeline.config import Config
from pipeline.config.file import (
    config_schema,
    describe_config,
    load_config,
)
from runtime.errors import UserError
from tests.conftest import REPOSITORY

# Nine levels of nine aliases each would be 387,420,489 values.
BOMB = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10))

# name: (the file, where the message points, what it says was found, what it says to do)
MESSAGES: dict[str, tuple[str, str, str, str]] = {
    "empty": ("", "c.yaml:", "empty", "start from configs/quickstart.yaml"),
    "comments only": ("# nothing\n", "c.yaml:", "empty", "at least one key"),
    "list": ("- 1\n", "c.yaml:", "a list at the top", "sections with keys"),
    "scalar": ("dense\n", "c.yaml:", "`dense` at the top", "sections with keys"),
    "syntax": ("dense: {lr: 0.1\n", "c.yaml:2:", "but got '<stream end>'", "expected one YAML document"),
    "tab": ("dense:\n\tlr: 1\n", "c.yaml:2:", "'\\t'", "mend that line"),
    "two documents": ("seed: 1\n---\nseed: 2\n", "c.yaml:2:", "another document", "one YAML document"),
    "control character": ("name: \x01\n", "c.yaml:", "special characters", "remove what is not text"),
    "unknown section": ("dens: {lr: 1}\n", "c.yaml:1:", "unknown key `dens`", "did you mean `dense`?"),
    "unknown key of a section that may be null": (
        "sparse:\n  target: {mac: 0.3}\n",
        "c.yaml:2:",
        "unknown key `sparse.target.mac`",
        "did you mean `sparse.target.macs`?",
    ),
    "unknown key": ("dense:\n  lr: 0.1\n  epoch: 3\n", "c.yaml:3:", "unknown key `dense.epoch`", "`dense.epochs`?"),
    "key of another section": ("opset: 18\n", "c.yaml:1:", "unknown key `opset`", "did you mean `onnx.opset`?"),
    "key of two sections": (
        "epochs: 3\n",
        "c.yaml:1:",
        "`epochs`",
        "did you mean `dense.epochs` or `sparse.epochs` or `precision.qat.epochs`?",
    ),
    "unknown key of one of two kinds": (
        "sparse: {distill: {warmth: 1}}\n",
        "c.yaml:1",
        "unknown key `sparse.distill.warmth`",
        "one of weight, temperature",
    ),
    "wrong value of one of two kinds": (
        "sparse: {distill: {weight: x}}\n",
        "c.yaml:1",
        '`sparse.distill.weight` is "x"',
        "without quotes",
    ),
    "neither of two kinds": (
        "sparse: {distill: 7}\n",
        "c.yaml:1",
        "`sparse.distill` is 7",
        "a section with keys or auto or null",
    ),
    "text in a list of numbers": ("data: {mean: [a, 1, 1]}\n", "c.yaml:1:", '`data.mean.0` is "a"', "a number"),
    "list too short": (
        "data:\n  background: [255, 255]\n",
        "c.yaml:2:",
        "`data.background` is [255, 255]",
        "expected a list of 3, each a whole number >= 0 and <= 255",
    ),
    "unknown key outside the plane that JSON escapes in one piece": (
        '"\U000f4d74": 3\n',
        "c.yaml",
        "unknown key `",
        "one of",
    ),
    "nothing near": ("zzzz: 3\n", "c.yaml:1:", "unknown key `zzzz`", "`demport run --help` lists the keys"),
    "nested unknown": ("check:\n gates:\n  min_sped: 1\n", "c.yaml:3:", "`check.gates.min_sped`", "min_speedup`?"),
    "text for int": ("dense:\n  epochs: ten\n", "c.yaml:2:", '`dense.epochs` is "ten"', "a whole number >= 0"),
    "fraction for int": ("dense: {epochs: 1.5}\n", "c.yaml:1:", "`dense.epochs` is 1.5", "a whole number"),
    "bool for int": ("seed: true\n", "c.yaml:1:", "`seed` is true", "a whole number >= 0"),
    "quoted number": ("dense: {lr: '0.1'}\n", "c.yaml:1:", '`dense.lr` is "0.1"', "without quotes"),
    "int for bool": ("simplify: {enabled: 1}\n", "c.yaml:1:", "`simplify.enabled` is 1", "write true or false"),
    "number for text": ("name: 12\n", "c.yaml:1:", "`name` is 12", "put it in quotes"),
    "null section": ("dense:\n", "c.yaml:1:", "`dense` is null", "give it keys or remove it"),
    "list section": ("dense: [1]\n", "c.yaml:1:", "`dense` is [1]", "a section with keys"),
    "scalar for list": ("check: {batch_sizes: 32}\n", "c.yaml:1:", "`check.batch_sizes` is 32", "write [32]"),
    "too small": ("sparse: {epochs: 0}\n", "c.yaml:1:", "`sparse.epochs` is 0", "a whole number >= 1"),
    "too large": ("threads: 9999\n", "c.yaml:1:", "`threads` is 9999", ">= 1 and <= 1024"),
    "negative": ("dense: {lr: -0.1}\n", "c.yaml:1:", "`dense.lr` is -0.1", "a number >= 0"),
    "not finite": ("dense: {lr: .inf}\n", "c.yaml:1:", "`dense.lr`: '.inf'", "a finite number"),
    "not a number": ("dense: {lr: .nan}\n", "c.yaml:1:", "`dense.lr`: '.nan'", "a finite number"),
    "thousands of digits": (f"seed: {'9' * 5000}\n", "c.yaml:1:", "`seed`: '9999", "a whole number"),
    "binary": ("name: !!binary aGk=\n", "c.yaml:1:", "tag `!!binary`", "remove the tag"),
    "set": ("dense: !!set {lr}\n", "c.yaml:1:", "tag `!!set`", "remove the tag"),
    "wrong truth": ("simplify: {enabled: !!bool maybe}\n", "c.yaml:1:", "'maybe' cannot be read", "true or false"),
    "overflow": ("dense: {lr: 1e999}\n", "c.yaml:1:", "`dense.lr`: '1e999'", "a finite number"),
    "no choice": ("dense: {optimizer: adam}\n", "c.yaml:1:", '`dense.optimizer` is "adam"', "one of sgd, adamw"),
    "no choice in a list": ("engine: {targets: [SM90]}\n", "c.yaml:1:", "`engine.targets.0`", "one of SM75, SM80"),
    "two mistakes": ("seed: -1\nthreads: 0\n", "c.yaml:1 (and 1 more):", "`seed` is -1", "a whole number >= 0"),
    "yes": ("simplify: {enabled: yes}\n", "c.yaml:1:", '`simplify.enabled` is "yes"', "write true"),
    "Off": ("simplify:\n  enabled: Off\n", "c.yaml:2:", '`simplify.enabled` is "Off"', "write false"),
    "duplicate": ("dense:\n  lr: 1\n  lr: 2\n", "c.yaml:3:", "`dense.lr`: stands twice", "remove one of the two"),
    "duplicate section": ("seed: 1\nseed: 1\n", "c.yaml:2:", "`seed`: stands twice", "each key once"),
    "number as key": ("1: 2\n", "c.yaml:1:", "`1` is no key", "the name of a key"),
    "list as key": ("? [1]\n: 2\n", "c.yaml:1:", "a list or mapping", "the name of a key"),
    "python object": (
        "name: !!python/object/apply:os.getcwd []\n",
        "c.yaml:1:",
        "!!python/object/apply",
        "without tags",
    ),
    "python name": ("name: !!python/name:os.getcwd\n", "c.yaml:1:", "!!python/name:os.getcwd", "remove the tag"),
    "own tag": ("dense: !mine {lr: 1}\n", "c.yaml:1:", "`dense`: tag `!mine`", "remove the tag"),
    "wrong core tag": ("dense: {lr: !!float fast}\n", "c.yaml:1:", "`dense.lr`: 'fast'", "a finite number"),
    "bomb": (BOMB, "c.yaml:", "expands to more than 10000 values", "without aliases"),
    "recursion": ("a: &a [*a]\n", "c.yaml:1:", "nested deeper than 20 levels", "without aliases"),
    "depth": (f"a: {'[' * 3000}{']' * 3000}\n", "c.yaml:1:", "nested deeper than 20 levels", "YAML"),
    "size": ("#" * 70_000, "c.yaml:", "70000 bytes", "shorten it"),
    "undefined alias": ("dense: *base\n", "c.yaml:1:", "undefined alias 'base'", "mend that line"),
    "merge of a number": ("dense: {<<: 3}\n", "c.yaml:1:", "`dense`: `<<` takes no such value", "a section"),
    "lone surrogate": ('name: "\\ud800"\n', "c.yaml:1:", "`name`: '\\ud800'", "UTF-8"),
    "profile order": ("engine: {profile: {min: 8, opt: 4}}\n", "c.yaml:1:", "min 8, opt 4", "min <= opt <= max"),
    "gate batch": ("check:\n  gate_batch: 64\n", "c.yaml:2:", "`check.gate_batch`: 64 is not measured", "add 64 to"),
    "no batches": ("check: {batch_sizes: []}\n", "c.yaml:1:", "batch_sizes: none", "add 32 to batch_sizes"),
    "batch twice": ("check: {batch_sizes: [32, 32]}\n", "c.yaml:1:", "32 is listed twice", "remove one"),
    "batch outside": ("engine: {profile: {max: 31, opt: 8}}\n", "c.yaml:", "32 is outside engine.profile", "widen"),
    "precision": ("precision: {graphs: []}\n", "c.yaml:", "fp16 engines need a fp16 graph", "precision.graphs"),
    "qat": ("precision: {graphs: [fp16], qat: {epochs: 2}}\n", "c.yaml:", "graphs has fp16", "add int8 to precision"),
    "qat without epochs": ("precision: {graphs: [int8], qat: {epochs: 0}}\n", "c.yaml:1:", "precision.qat.epochs", "0"),
    "target twice": ("engine: {targets: [SM86, SM86]}\n", "c.yaml:1:", "SM86 is listed twice", "each value once"),
    "no target": ("engine: {targets: []}\n", "c.yaml:1:", "`engine.targets`: targets is empty", "flavour: none"),
    "nothing dies": ("sparse: {lambda_peak: 0, sigma_peak: 0.0}\n", "c.yaml:1:", "no channel would die", "above 0"),
    "span": ("sparse: {span: 0}\n", "c.yaml:1:", "`sparse.span`: span is 0", "above 0 and at most 1"),
    "data": ("data: {source: digit}\n", "c.yaml:1:", "`data.source`: `digit` names no data", "npz:FILE"),
    "npz without file": ("data: {source: 'npz:'}\n", "c.yaml:1:", "`npz:` names no data", "one of these forms"),
    "model": ("model: {name: resnet18}\n", "c.yaml:1:", "`model.name`: `resnet18` names no model", "cifar:NAME"),
}

OVERRIDES: dict[str, tuple[str, str, str]] = {
    "no equals": ("dense.lr", "--set dense.lr", "section.key=value"),
    "no key": ("=3", "--set =3", "section.key=value"),
    "empty part": ("dense..lr=3", "--set dense..lr=3", "section.key=value"),
    "unknown": ("dense.lrr=3", "--set dense.lrr=3: unknown key `dense.lrr`", "did you mean `dense.lr`?"),
    "type": ("dense.epochs=ten", '--set dense.epochs=ten: `dense.epochs` is "ten"', "a whole number >= 0"),
    "below a leaf": ("seed.x=3", "--set seed.x=3: `seed` has no keys", "expected a section"),
    "switch": ("simplify.enabled=off", '--set simplify.enabled=off: `simplify.enabled` is "off"', "write false"),
    "tag": ("name=!!python/name:os.getcwd", "tag `!!python/name:os.getcwd`", "remove the tag"),
    "yaml": ("check.batch_sizes=[1", "--set check.batch_sizes=[1:1", "one YAML document"),
    "combination": ("check.gate_batch=7", "--set check.gate_batch=7: `check.gate_batch`: 7", "add 7"),
}


def message(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    return str(caught.value)


@pytest.mark.parametrize("case", MESSAGES)
def test_a_wrong_file_is_one_line_that_names_place_and_remedy(case: str, tmp_path: Path) -> None:
    text, place, found, remedy = MESSAGES[case]
    path = tmp_path / "c.yaml"
    path.write_text(text)
    start = time.monotonic()
    told = message(path)
    assert told.startswith(f"{tmp_path}/{place}") and found in told and remedy in told, told
    assert "\n" not in told and len(told) < 500 and told.count("; ") >= 2
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("case", OVERRIDES)
def test_a_wrong_override_is_one_line_that_names_it(case: str, tmp_path: Path) -> None:
    override, found, remedy = OVERRIDES[case]
    path = tmp_path / "c.yaml"
    path.write_text("seed: 1\n")
    told = message(path, override)
    assert found in told and remedy in told, told
    assert "\n" not in told and str(tmp_path) not in told


def test_what_is_no_readable_file(tmp_path: Path) -> None:
    assert (
        message(tmp_path / "nope.yaml") == f"{tmp_path}/nope.yaml: no such file; expected a YAML config; check the path"
    )
    assert message(tmp_path) == f"{tmp_path}: a folder; expected a YAML file; name the file in it"
    os.mkfifo(tmp_path / "pipe")
    for endless in (tmp_path / "pipe", Path("/dev/zero")):
        assert message(endless).startswith(f"{endless}: no plain file; expected a readable file of at most")
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("name: Gerät\n".encode("latin-1"))
    assert message(latin) == f"{latin}: byte 9 is not UTF-8; expected UTF-8 text; save it as UTF-8"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("seed: 1\n")
    path.chmod(0)
    assert "Permission denied" in message(path) and "check its permissions" in message(path)


def test_help_and_schema_hold_every_key_with_its_sentence() -> None:
    help_text, schema = describe_config(), config_schema()
    for section, field in Config.model_fields.items():
        assert f"{section}: {field.description}" in help_text
        inner = getattr(field.annotation, "model_fields", {})
        for key, leaf in inner.items():
            assert leaf.description, f"{section}.{key} has no sentence"
            assert getattr(leaf.annotation, "model_fields", None) or f"  {key}: {leaf.description}" in help_text
    assert "a whole number >= 1; default 40" in help_text
    assert schema["additionalProperties"] is False and schema["$defs"]["Sparse"]["properties"]["lr"]["minimum"] == 0


def test_the_schema_for_editors_is_current() -> None:
    told = json.loads((REPOSITORY / "configs" / "config.schema.json").read_text())
    assert told == config_schema(), "run `demport run --print-schema > configs/config.schema.json`"
    assert told["$schema"].startswith("https://json-schema.org/")


SHIPPED = sorted((REPOSITORY / "configs").rglob("*.y*ml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_config_is_valid(path: Path) -> None:
    config = load_config(path)
    assert config.name
    assert config.data.source
