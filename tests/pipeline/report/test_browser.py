"""The page in a real browser: nothing overflows, nothing is asked of the network, nothing is complained about.

Each view is the page in a frame of one width, as on a screen or, the media queries exchanged, as on paper.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipeline.report.render import render
from pipeline.report.several.compare import compare
from tests.pipeline.report.check_document import check, gate, latency
from tests.pipeline.report.run_folder import STAGES, write_run

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-sync",
    "--no-first-run",
    "--disable-component-update",
    "--allow-file-access-from-files",
    "--enable-logging=stderr",
    "--hide-scrollbars",
]
PAPER = 673  # CSS pixels between the margins of 16 mm on A4
DARK, LIGHT = 0, 1  # Chromium's mojom::PreferredColorScheme
PROBE = """<!doctype html><body><script>
const views = %s, seen = [];
function onPaper(rules) {
  for (const rule of rules) {
    if (!rule.media) continue;
    const text = rule.media.mediaText;
    rule.media.mediaText = text.replace(/screen|print/g, one => one === "screen" ? "print" : "screen");
  }
}
for (const {width, paper} of views) {
  const frame = document.createElement("iframe");
  frame.style = `width:${width}px;height:900px;border:0`;
  frame.src = "%s";
  frame.onload = () => {
    const page = frame.contentDocument, top = page.querySelector(".conclusion") || page.querySelector("header");
    if (paper) for (const sheet of page.styleSheets) onPaper([...sheet.cssRules]);
    page.querySelectorAll("details").forEach(one => { one.open = true; });
    const fetched = frame.contentWindow.performance.getEntriesByType("resource");
    const plots = [...page.querySelectorAll("svg.plot")].map(one => one.getBoundingClientRect().width);
    const boxes = [...page.querySelectorAll("section *, header *")].filter(one => !one.closest("svg *"));
    const ends = boxes.map(one => one.getBoundingClientRect().right);
    const style = (name, of) => frame.contentWindow.getComputedStyle(page.querySelector(name) || page.body)[of];
    seen.push({
      width, paper, scroll: page.documentElement.scrollWidth, first: Math.round(top.getBoundingClientRect().bottom),
      spill: Math.round(Math.max(...ends) - page.querySelector("header").getBoundingClientRect().right),
      requests: fetched.filter(one => !one.name.startsWith("data:")).length,
      plots, narrowest: Math.min(...plots),
      broken: [...page.images].filter(one => !one.complete || one.naturalWidth === 0).length,
      ground: frame.contentWindow.getComputedStyle(page.body).backgroundColor,
      text: ["body", ".more", ".source", "a", ".number"].map(name => style(name, "color")),
      letters: style("svg.plot text", "fill"),
      status: [style(".status b", "color"), style(".status b", "backgroundColor")],
    });
    if (seen.length === views.length) document.title = JSON.stringify(seen);
  };
  document.body.append(frame);
}
</script></body>"""
SCREENS = [{"width": width, "paper": False} for width in (390, 768, 1280, 1920)]
VIEWS = [*SCREENS, {"width": PAPER, "paper": True}]

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here")


def look(
    run: Path, profile: Path, page: str = "report.html", scheme: int = LIGHT, views: list[dict[str, Any]] = VIEWS
) -> list[dict[str, Any]]:
    """What the probe tells of each view; the browser has logged nothing of the page."""
    (run / "probe.html").write_text(PROBE % (json.dumps(views), page), encoding="utf-8")
    command = [
        str(BROWSER),
        *FLAGS,
        f"--blink-settings=preferredColorScheme={scheme}",
        f"--user-data-dir={profile}",
        "--virtual-time-budget=20000",
        "--dump-dom",
        (run / "probe.html").as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title, done.stderr
    assert "CONSOLE" not in done.stderr, done.stderr
    seen: list[dict[str, Any]] = json.loads(title[1].replace("&quot;", '"'))
    assert len(seen) == len(views)
    order = [view["width"] for view in views]  # frames load in any order
    return sorted(seen, key=lambda one: order.index(one["width"]))


def fits(seen: list[dict[str, Any]], plots: int) -> None:
    """Every view holds its page, its plots and no request."""
    for one in seen:
        assert one["scroll"] == one["width"] and one["spill"] <= 0, one
        assert len(one["plots"]) == plots and one["narrowest"] >= 300 and one["broken"] == one["requests"] == 0, one


def contrast(one: str, other: str) -> float:
    """Of two CSS colours, WCAG 2.2; what is transparent shows white paper."""

    def luminance(colour: str) -> float:
        red, green, blue, *alpha = (float(part) for part in re.findall(r"[\d.]+", colour))
        parts = (1.0, 1.0, 1.0) if alpha == [0.0] else (red / 255, green / 255, blue / 255)
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_full_report_fits_every_width_and_paper(tmp_path: Path) -> None:
    long_name = "a_gate_with_a_name_that_is_longer_than_a_phone_is_wide_" * 3
    verdict = {"status": "fail", "gates": [gate(long_name, "fail", 1.0, 2.0, "reason " * 40)]}
    slow = {"onnxruntime": {"fp32": {"b128": latency(12345.6, 12340.1, 1.0)}}}
    run = write_run(
        tmp_path / "run", verdict=verdict, latency=slow, environment={"cpu": "x" * 300, **check()["environment"]}
    )
    render(run)
    seen = look(run, tmp_path / "profile")
    fits(seen, plots=7)
    wide = {one["width"]: max(one["plots"]) for one in seen}
    assert wide[390] <= 390 - 2 * 14 and wide[1920] > 600  # a wide screen is used


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
def test_it_is_legible_in_light_in_dark_and_on_paper(tmp_path: Path, scheme: int) -> None:
    run = write_run(tmp_path / "run")
    render(run)
    seen = look(run, tmp_path / "profile", scheme=scheme)
    fits(seen, plots=8)
    for one in seen:
        dark = scheme == DARK and not one["paper"]
        assert contrast(one["ground"], one["letters"]) >= 4.5 and contrast(*one["status"]) >= 4.5, one
        assert (contrast(one["ground"], "rgb(0, 0, 0)") < 2) == dark
        assert min(contrast(one["ground"], colour) for colour in one["text"]) >= 4.5, one
    first = {one["width"]: one["first"] for one in seen}
    assert first[390] <= 844 and first[1280] <= 800  # the conclusion is on the first screen


def test_a_report_that_demport_run_left(whole_run: Path, tmp_path: Path) -> None:
    shutil.copy(whole_run / "report.html", tmp_path)
    seen = look(tmp_path, tmp_path / "profile", scheme=DARK)
    fits(seen, plots=7)  # one batch size: no sweep
    assert seen[0]["first"] <= 844 and contrast(seen[0]["ground"], "rgb(0, 0, 0)") < 2


def test_contrast_of_black_on_white() -> None:
    assert contrast("rgb(0, 0, 0)", "rgb(255, 255, 255)") == pytest.approx(21.0)
    assert contrast("rgb(0, 0, 0)", "rgba(0, 0, 0, 0)") == pytest.approx(21.0)  # transparent: paper


def test_report_of_an_unfinished_run_fits_too(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", STAGES[:2])
    render(run)
    seen = look(run, tmp_path / "profile")
    fits(seen, plots=3)
    assert [one["width"] for one in seen] == [390, 768, 1280, 1920, PAPER]


def test_runs_beside_each_other_fit_every_width(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name) for name in ("a_run_with_a_name_longer_than_a_phone_is_wide" * 2, "two")]
    compare(runs, tmp_path / "compare.html")
    seen = look(tmp_path, tmp_path / "profile", "compare.html")
    fits(seen, plots=1)
    assert seen[0]["plots"][0] < 390
