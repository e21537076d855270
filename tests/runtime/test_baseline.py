"""Figures of a run against those accepted before."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from runtime.baseline import Baseline, Rule, read_baseline, updated
from runtime.errors import UserError
from runtime.figures import figures_of
from runtime.gate import Verdict
from runtime.judging import judge

Report = dict[str, Any]


def report() -> Report:
    model = {
        "params": 1000,
        "macs": 50_000,
        "bytes": 100_000,
        "accuracy": {"torch": 0.99, "onnx": 0.99, "engine": None},
    }
    timing = {"p50_ms": 1.0, "best_ms": 0.9}
    entry = {"dense": {}, "compact": timing, "speedup": {"ratio": 2.0, "ci95": [1.9, 2.1]}}
    nothing = {"dense": None, "compact": None, "speedup": None}
    gate = {"name": "min_speedup", "status": "pass", "value": 2.0, "limit": 1.5, "reason": "fast"}
    return {
        "name": "digits",
        "environment": {"fingerprint": "aaaa", "cpu": "CPU A", "cores": 2},
        "models": {"dense": {}, "compact": model},
        "latency": {"onnxruntime": {"fp32": {"b32": entry}}, "tensorrt": {"fp16": {"b32": nothing}}},
        "verdict": {"status": "pass", "gates": [gate]},
    }


def statuses(verdict: Verdict) -> dict[str, str]:
    return {gate.name.removeprefix("baseline."): gate.status for gate in verdict.gates}


def entry_of(document: Report) -> dict[str, Any]:
    entry: dict[str, Any] = document["latency"]["onnxruntime"]["fp32"]["b32"]
    return entry


def test_figures_have_names_and_nothing_unmeasured() -> None:
    assert figures_of(report()) == {
        "params": 1000, "macs": 50_000, "bytes": 100_000, "accuracy.torch": 0.99, "accuracy.onnx": 0.99,
        "p50_ms.onnxruntime.fp32.b32": 1.0, "best_ms.onnxruntime.fp32.b32": 0.9, "speedup.onnxruntime.fp32.b32": 2.0,
    }  # fmt: skip
    assert all(isinstance(value, float) for value in figures_of(report()).values())


def test_a_run_passes_its_own_baseline() -> None:
    verdict = judge(report(), updated(report(), None))
    assert verdict.status == "pass"
    assert set(statuses(verdict)) == {
        "min_speedup", "params", "macs", "bytes", "accuracy.torch", "accuracy.onnx", "p50_ms.onnxruntime.fp32.b32",
        "speedup.onnxruntime.fp32.b32",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "allowed", "too_much", "better"),
    [
        (("models", "compact", "params"), 1010, 1011, 10),
        (("models", "compact", "macs"), 50_500, 50_501, 10),
        (("models", "compact", "bytes"), 104_096, 104_097, 10),  # the absolute 4,096 is more than 2 %
        (("models", "compact", "accuracy", "torch"), 0.985, 0.9849, 1.0),
    ],
)
def test_worse_than_the_rule_allows_fails(
    path: tuple[str, ...], allowed: float, too_much: float, better: float
) -> None:
    baseline = updated(report(), None)
    for value, status in ((allowed, "pass"), (too_much, "fail"), (better, "pass")):
        document = report()
        part = document
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] = value
        verdict = judge(document, baseline)
        assert verdict.status == status, value
        assert [gate.status for gate in verdict.gates].count("fail") == (status == "fail")


@pytest.mark.parametrize(
    ("ratio", "ci95", "status"),
    [
        (1.9, [1.8, 2.0], "pass"),
        (1.89, [1.8, 1.95], "inconclusive"),
        (1.5, [1.4, 1.6], "fail"),
        (3.0, [2.9, 3.1], "pass"),
    ],
)
def test_a_speedup_fails_only_with_its_whole_interval(ratio: float, ci95: list[float], status: str) -> None:
    document = report()
    entry_of(document)["speedup"] = {"ratio": ratio, "ci95": ci95}
    verdict = judge(document, updated(report(), None))
    assert statuses(verdict)["speedup.onnxruntime.fp32.b32"] == status
    assert verdict.status == status


@pytest.mark.parametrize(
    ("p50", "best", "status"), [(1.1, 0.9, "pass"), (1.2, 0.95, "inconclusive"), (1.2, 1.1, "fail"), (0.5, 0.4, "pass")]
)
def test_a_slower_median_with_as_fast_a_best_is_a_busy_machine(p50: float, best: float, status: str) -> None:
    document = report()
    entry_of(document)["compact"] = {"p50_ms": p50, "best_ms": best}
    verdict = judge(document, updated(report(), None))
    assert statuses(verdict)["p50_ms.onnxruntime.fp32.b32"] == status
    gate = next(gate for gate in verdict.gates if gate.name.startswith("baseline.p50_ms"))
    assert ("may be busy" in gate.reason) == (status == "inconclusive")
    assert gate.limit == pytest.approx(1.1)


def test_another_device_is_not_comparable_and_never_a_silent_pass() -> None:
    document = report()
    document["environment"] = {"fingerprint": "bbbb", "cpu": "CPU B", "cores": 8}
    entry_of(document)["compact"] = {"p50_ms": 9.0, "best_ms": 9.0}
    verdict = judge(document, updated(report(), None))
    assert verdict.status == "inconclusive"
    assert statuses(verdict)["device"] == "inconclusive"
    gate = next(gate for gate in verdict.gates if gate.name == "baseline.device")
    assert "bbbb (CPU B, 8 cores)" in gate.reason
    assert "aaaa (CPU A)" in gate.reason
    assert not [name for name in statuses(verdict) if name.startswith(("p50_ms", "speedup"))]
    document["models"]["compact"]["accuracy"]["torch"] = 0.5
    assert judge(document, updated(report(), None)).status == "fail"


def test_update_adds_a_device_and_keeps_rules_and_the_others() -> None:
    first = updated(report(), None)
    strict = first.model_copy(update={"rules": first.rules.model_copy(update={"p50_ms": None, "bytes": Rule()})})
    document = report()
    document["environment"] = {"fingerprint": "bbbb", "cpu": "CPU B", "cores": 8}
    document["models"]["compact"]["bytes"] = 100_001
    both = updated(document, strict)
    assert set(both.devices) == {"aaaa", "bbbb"}
    assert both.devices["aaaa"] == first.devices["aaaa"]
    assert judge(document, both).status == "pass"
    assert "p50_ms.onnxruntime.fp32.b32" not in statuses(judge(document, both))
    assert statuses(judge(report() | {"models": document["models"]}, both))["bytes"] == "fail"


def test_the_runs_own_gates_count() -> None:
    document = report()
    document["verdict"]["gates"][0] |= {"status": "inconclusive", "reason": "busy"}
    assert judge(document, updated(report(), None)).status == "inconclusive"
    document["verdict"]["gates"][0] |= {"status": "fail"}
    assert judge(document, updated(report(), None)).status == "fail"


def test_a_figure_that_is_no_longer_measured_is_inconclusive() -> None:
    document = report()
    document["models"]["compact"]["accuracy"]["onnx"] = None
    del document["latency"]["onnxruntime"]
    verdict = judge(document, updated(report(), None))
    missing = [name for name, status in statuses(verdict).items() if status == "inconclusive"]
    assert missing == ["accuracy.onnx", "p50_ms.onnxruntime.fp32.b32", "speedup.onnxruntime.fp32.b32"]
    assert verdict.status == "inconclusive"


def test_the_file_reads_back_and_is_stable(tmp_path: Path) -> None:
    baseline = updated(report(), None)
    path = tmp_path / "baseline.json"
    path.write_text(baseline.text())
    again = read_baseline(path)
    assert again == baseline
    assert again.text() == baseline.text()
    assert json.loads(baseline.text())["rules"]["accuracy"] == {"relative": 0.0, "absolute": 0.005}


VALID = json.loads(updated(report(), None).text())


def changed(**changes: Any) -> str:
    return json.dumps(copy.deepcopy(VALID) | changes)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "Expecting value"),
        ("{", "Expecting property name"),
        ("[" * 100_000, "recursion"),
        ("[]", "the file: Input should be a valid dictionary"),
        ("{}", "name: Field required"),
        (json.dumps(report()), "devices: Field required"),  # a report is no baseline
        (changed(schema=2), "schema: Input should be 1"),
        (changed(kind="other"), "kind"),
        (changed(rules={"latency": {}}), "rules.latency: Extra inputs are not permitted"),
        (changed(rules={"bytes": {"relative": -1}}), "rules.bytes.relative"),
        (changed(devices={"a": {"environment": {}, "figures": {"params": "many"}}}), "devices.a.figures.params"),
        (changed(name="x").replace("1000.0", "NaN"), "NaN is no figure"),
        ("\udcff", "can't decode"),
    ],
)
def test_a_file_that_is_no_baseline(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "baseline.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError) as caught:
        read_baseline(path)
    assert str(path) in caught.value.found
    assert words.lower() in caught.value.found.lower()
    assert "--update" in caught.value.remedy


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        read_baseline(tmp_path / "absent.json")
    with pytest.raises(UserError, match="Is a directory"):
        read_baseline(tmp_path)
    large = tmp_path / "large.json"
    large.write_bytes(b" " * (5 << 20))
    with pytest.raises(UserError, match="over 4194304 bytes"):
        read_baseline(large)


def broken(*path: str, value: Any = None) -> Report:
    """A report without the key at `path`, or with another value there."""
    document: Any = report()
    part = document
    for key in path[:-1]:
        part = part[key]
    if value is None:
        del part[path[-1]]
    else:
        part[path[-1]] = value
    return document  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (report() | {"name": "cifar"}, "the baseline is of 'digits', the run of 'cifar'"),
        (broken("latency"), "KeyError: 'latency'"),
        (broken("environment", "fingerprint"), "KeyError: 'fingerprint'"),
        (broken("models", "compact", "macs"), "KeyError: 'macs'"),
        (broken("models", "compact", "macs", value="many"), "could not convert string to float: 'many'"),
        (broken("latency", "onnxruntime", value=7), "AttributeError"),
        (broken("verdict", "gates", value=[{"name": "x"}]), "TypeError"),
        (broken("environment", "fingerprint", value=7), "AssertionError"),
    ],
)
def test_a_baseline_of_another_run_and_reports_that_are_none(document: Report, words: str) -> None:
    baseline = updated(report(), None)
    with pytest.raises(UserError) as caught:
        judge(document, baseline)
    assert words in caught.value.found
    with pytest.raises(UserError):
        updated(document, baseline)


def test_a_failed_run_does_not_become_the_baseline() -> None:
    document = report()
    document["verdict"] = {"status": "fail", "gates": [document["verdict"]["gates"][0] | {"status": "fail"}]}
    with pytest.raises(UserError, match="the run failed min_speedup"):
        updated(document, None)
    assert isinstance(updated(report(), None), Baseline)
