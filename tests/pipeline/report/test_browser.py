"""The page in a real browser: nothing overflows, nothing is asked of the network, nothing is complained about."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.report.compare import compare
from pipeline.report.render import render
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
# Puts the page into a frame of each width and tells how wide its content is.
PROBE = """<!doctype html><body><script>
const widths = %s, found = [];
for (const width of widths) {
  const frame = document.createElement("iframe");
  frame.style = `width:${width}px;height:900px;border:0`;
  frame.src = "%s";
  frame.onload = () => {
    const page = frame.contentDocument;
    page.querySelectorAll("details").forEach(one => { one.open = true; });
    const fetched = frame.contentWindow.performance.getEntriesByType("resource");
    const requests = fetched.filter(one => !one.name.startsWith("data:")).length;
    const images = [...page.images].filter(one => one.offsetParent);
    const broken = images.filter(one => !one.complete || one.naturalWidth === 0).length;
    const edge = page.querySelector("header").getBoundingClientRect().right;
    const ends = [...page.querySelectorAll("section *")].map(one => one.getBoundingClientRect().right);
    const spill = Math.round(Math.max(...ends) - edge), scroll = page.documentElement.scrollWidth;
    found.push({width, spill, scroll, requests, images: images.length, broken});
    if (found.length === widths.length) document.title = JSON.stringify(found);
  };
  document.body.append(frame);
}
</script></body>"""

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here")


def look(
    run: Path, profile: Path, widths: tuple[int, ...], page: str = "report.html"
) -> tuple[list[dict[str, int]], str]:
    """What the probe tells for each width, and what the browser logged."""
    (run / "probe.html").write_text(PROBE % (list(widths), page), encoding="utf-8")
    command = [
        str(BROWSER),
        *FLAGS,
        f"--user-data-dir={profile}",
        "--virtual-time-budget=20000",
        "--dump-dom",
        (run / "probe.html").as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title, done.stderr
    return json.loads(title[1].replace("&quot;", '"')), done.stderr


def test_full_report_fits_every_width(tmp_path: Path) -> None:
    long_name = "a_gate_with_a_name_that_is_longer_than_a_phone_is_wide_" * 3
    verdict = {"status": "fail", "gates": [gate(long_name, "fail", 1.0, 2.0, "reason " * 40)]}
    slow = {"onnxruntime": {"fp32": {"b128": latency(12345.6, 12340.1, 1.0)}}}
    run = write_run(
        tmp_path / "run", verdict=verdict, latency=slow, environment={"cpu": "x" * 300, **check()["environment"]}
    )
    render(run)
    seen, log = look(run, tmp_path / "profile", (390, 768, 1280, 1920))
    assert {one["width"]: one["scroll"] for one in seen} == {390: 390, 768: 768, 1280: 1280, 1920: 1920}
    assert all(one["requests"] == 0 and one["images"] == 7 and one["broken"] == 0 for one in seen)
    assert all(one["spill"] <= 0 for one in seen), seen
    assert "CONSOLE" not in log


def test_report_of_an_unfinished_run_fits_too(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", STAGES[:2])
    render(run)
    seen, log = look(run, tmp_path / "profile", (390, 1280))
    assert {one["width"]: one["scroll"] for one in seen} == {390: 390, 1280: 1280}
    assert all(one["images"] == 1 for one in seen) and "CONSOLE" not in log


def test_runs_beside_each_other_fit_every_width(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name) for name in ("a_run_with_a_name_longer_than_a_phone_is_wide" * 2, "two")]
    compare(runs, tmp_path / "compare.html")
    seen, log = look(tmp_path, tmp_path / "profile", (390, 1280, 1920), "compare.html")
    assert {one["width"]: one["scroll"] for one in seen} == {390: 390, 1280: 1280, 1920: 1920}
    assert all(one["images"] == 1 and one["broken"] == one["requests"] == 0 for one in seen)
    assert all(one["spill"] <= 0 for one in seen) and "CONSOLE" not in log
