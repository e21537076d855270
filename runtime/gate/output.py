"""A verdict for machines and reviewers: JUnit XML, and Markdown for a pull request or a CI job's summary."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from runtime.gate import Gate, Verdict

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, section 2.2
_WORDS = {"pass": "passed", "fail": "**failed**", "inconclusive": "inconclusive"}


def junit(verdict: Verdict, name: str) -> str:
    """One test case a gate. An inconclusive gate is an error, so that no CI system counts it as passed."""
    statuses = [gate.status for gate in verdict.gates]
    suite = ElementTree.Element(
        "testsuite",
        name="demport gate",
        tests=str(len(statuses)),
        failures=str(statuses.count("fail")),
        errors=str(statuses.count("inconclusive")),
        skipped="0",
    )
    for gate in verdict.gates:
        case = ElementTree.SubElement(
            suite, "testcase", classname=f"demport.{_xml(name)}", name=_xml(gate.name), time="0"
        )
        if gate.status == "fail":
            ElementTree.SubElement(case, "failure", type="fail", message=_xml(gate.reason))
        elif gate.status == "inconclusive":
            ElementTree.SubElement(case, "error", type="inconclusive", message=_xml(gate.reason))
        else:
            ElementTree.SubElement(case, "system-out").text = _xml(gate.reason)
    ElementTree.indent(suite)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"


def summary(verdict: Verdict, name: str) -> str:
    """A table of the gates, the failed ones first."""
    order = ("fail", "inconclusive", "pass")
    gates = sorted(verdict.gates, key=lambda gate: order.index(gate.status))
    lines = [f"### demport gate: {_cell(name)}: {_WORDS[verdict.status]}", "", "| gate | | why |", "|---|---|---|"]
    lines += [f"| {_cell(gate.name)} | {_WORDS[gate.status]} | {_cell(_why(gate))} |" for gate in gates]
    return "\n".join(lines) + "\n"


def _why(gate: Gate) -> str:
    return gate.reason or "-"


def _xml(text: str) -> str:
    return _NOT_XML.sub("?", text)


def _cell(text: str) -> str:
    """Text inside a cell: no line break, and nothing that Markdown or HTML would act on."""
    flat = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_|\[\]])", r"\\\1", flat)
