"""What CI systems read, parsed back."""

from __future__ import annotations

from xml.etree import ElementTree

from runtime.gate import Gate, verdict
from runtime.gate.output import junit, summary

VERDICT = verdict(
    [
        Gate("max_accuracy_drop", "pass", 0.2, 1.0, "fine"),
        Gate("min_speedup", "fail", 1.1, 1.5, "only <1.1> & \x00 times | as\nfast"),
        Gate("engines", "inconclusive", 0, 4, "no TensorRT"),
    ]
)


def test_junit_has_a_case_for_each_gate() -> None:
    suite = ElementTree.fromstring(junit(VERDICT, "digits").encode())
    assert suite.attrib == {
        "name": "demport gate", "tests": "3", "failures": "1", "errors": "1", "skipped": "0",
    }  # fmt: skip
    cases = {case.attrib["name"]: case for case in suite}
    assert cases["max_accuracy_drop"].attrib["classname"] == "demport.digits"
    assert [child.tag for child in cases["max_accuracy_drop"]] == ["system-out"]
    failure, error = cases["min_speedup"].find("failure"), cases["engines"].find("error")
    assert failure is not None
    assert failure.attrib["message"].startswith("only <1.1> & ? times | as")
    assert error is not None
    assert error.attrib == {"type": "inconclusive", "message": "no TensorRT"}


def test_the_summary_is_one_table_with_failures_first() -> None:
    lines = summary(VERDICT, "my_run").splitlines()
    assert lines[0] == "### demport gate: my\\_run: **failed**"
    rows = lines[4:]
    assert [row.split(" | ")[1] for row in rows] == ["**failed**", "inconclusive", "passed"]
    assert rows[0] == "| min\\_speedup | **failed** | only &lt;1.1> &amp; \x00 times \\| as fast |"
    assert len(lines) == 4 + 3
