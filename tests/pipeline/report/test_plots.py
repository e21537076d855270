"""Plots: that they show the data they are given, in both schemes and widths."""

from __future__ import annotations

import base64
import re
from xml.etree import ElementTree

import pytest

from pipeline.report.plots import NARROW_IN, PALETTE, WIDE_IN, Picture, Span, intervals

SPAN = Span("b1", "compact", 2.0, 1.9, 2.1)


def svg(address: str) -> str:
    head, body = address.split(",", 1)
    assert head == "data:image/svg+xml;base64"
    return base64.b64decode(body).decode()


def words(picture: Picture) -> str:
    root = ElementTree.fromstring(svg(picture.light_wide))
    return " ".join(text for text in root.itertext() if text.strip())


def test_each_address_has_its_width_and_colours() -> None:
    picture = intervals([SPAN], axis="ratio", alt="ratios")
    widths = {
        name: float(re.findall(r'width="([\d.]+)pt"', svg(getattr(picture, name)))[0])
        for name in vars(picture)
        if name != "alt"
    }
    assert widths == pytest.approx(
        {
            "light_wide": 72 * WIDE_IN,
            "light_narrow": 72 * NARROW_IN,
            "dark_wide": 72 * WIDE_IN,
            "dark_narrow": 72 * NARROW_IN,
        }
    )
    assert PALETTE["dark"]["muted"] in svg(picture.dark_wide) and PALETTE["light"]["muted"] not in svg(
        picture.dark_wide
    )
    assert "http://www.w3.org/2000/svg" in svg(picture.light_wide) and "<script" not in svg(picture.light_wide)


def test_intervals_show_rows_marks_and_values_without_an_interval() -> None:
    spans = [
        Span("b1", "dense", 1.0, None, None),
        Span("b1", "compact", 2.0, 1.9, 2.1),
        Span("b32", "compact", 3.0, 2.5, 3.5),
    ]
    text = words(intervals(spans, axis="ratio", alt="ratios", marks=[(1.5, "gate")]))
    assert all(word in text for word in ("b1", "b32", "ratio", "gate"))
    assert text.count("b1") == 1


def test_two_networks_on_a_row_do_not_cover_each_other() -> None:
    dense, compact = Span("onnx", "dense", 1.0, None, None), Span("onnx", "compact", 1.0, None, None)
    picture = svg(intervals([dense, compact], axis="ratio", alt="ratios").light_wide)
    heights = [
        float(y)
        for role in ("dense", "compact")
        for y in re.findall(rf'<use [^>]*y="([\d.]+)" style="fill: {PALETTE["light"][role]}', picture)
    ]
    assert len(heights) == 2
    assert heights[1] > heights[0] + 2
