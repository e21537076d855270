"""Plots: that they show their data, and stand in a page without disturbing it."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from pipeline.report.page import Picture
from pipeline.report.page.plots import COLOURS, Span, intervals

SPAN = Span("b1", "compact", 2.0, 1.9, 2.1)


def words(picture: Picture) -> str:
    return " ".join(text for text in ElementTree.fromstring(picture.svg).itertext() if text.strip())


def test_a_plot_takes_its_colours_from_the_page_and_brings_nothing_else() -> None:
    picture = intervals("Ratios", [SPAN], axis="ratio", alt='ratios of "b1"')
    root = ElementTree.fromstring(picture.svg)
    assert root.tag == "svg" and root.get("aria-label") == 'ratios of "b1"' and root.get("role") == "img"
    assert "var(--compact)" in picture.svg and "var(--muted)" in picture.svg
    assert not any(colour in picture.svg for colour in COLOURS.values())
    assert not re.search("<script|<style|<metadata|https?://|xlink", picture.svg)


def test_plots_of_one_page_share_no_identifier() -> None:
    first = intervals("Ratios", [SPAN], axis="ratio", alt="ratios").svg
    other = intervals("Accuracy", [SPAN], axis="ratio", alt="accuracies").svg
    names = [set(re.findall(r' id="([^"]+)"', svg)) for svg in (first, other)]
    assert names[0] and not names[0] & names[1]
    assert all(f"#{name}" in first for name in names[0])
    assert first == intervals("Ratios", [SPAN], axis="ratio", alt="ratios").svg  # the same bytes again


def test_intervals_show_rows_marks_and_values_without_an_interval() -> None:
    spans = [
        Span("b1", "dense", 1.0, None, None),
        Span("b1", "compact", 2.0, 1.9, 2.1),
        Span("b32", "compact", 3.0, 2.5, 3.5),
    ]
    text = words(intervals("t", spans, axis="ratio", alt="ratios", marks=[(1.5, "gate")]))
    assert all(word in text for word in ("b1", "b32", "ratio", "gate"))
    assert text.count("b1") == 1


def test_two_networks_on_a_row_do_not_cover_each_other() -> None:
    dense, compact = Span("onnx", "dense", 1.0, None, None), Span("onnx", "compact", 1.0, None, None)
    picture = intervals("t", [dense, compact], axis="ratio", alt="ratios").svg
    heights = [
        float(y)
        for role in ("dense", "compact")
        for y in re.findall(rf'<use [^>]*y="([\d.]+)" style="fill: var\(--{role}\)', picture)
    ]
    assert len(heights) == 2
    assert heights[1] > heights[0] + 2
