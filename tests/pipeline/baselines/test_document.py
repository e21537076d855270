"""The sentence that the measurements come to, by its rule, and the section of the report that shows it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.baselines.document import FOLDER, NAME, Baseline, Baselines, Measured, read, sentence, write
from pipeline.report.page import Plots, Table, Text
from pipeline.report.several.baselines import section
from runtime.errors import UserError


def row(name: str, speedup: float, accuracy: float, interval: tuple[float, float] | None, epochs: int = 40) -> Baseline:
    difference = None if interval is None else sum(interval) / 2
    ci95 = speedup - 0.1, speedup + 0.1
    return Baseline(
        name, f"what {name} is", epochs, Measured(2 / speedup, speedup, ci95, accuracy, difference, interval), None
    )


DENSE = row("dense", 1.0, 0.98, (-0.5, 1.0))
COMPACT = row("compact", 2.0, 0.975, None)
SLOW = row("int8", 1.5, 0.979, (-0.2, 0.8), 0)
POOR = row("random channels", 2.1, 0.95, (-4.0, -1.0))


def document(*rows: Baseline) -> Baselines:
    environment = {"cpu": "one", "cores": 2}
    return Baselines("digest", "accuracy", 397, 32, 1, 40, environment, {}, (DENSE, COMPACT, *rows))


def test_nothing_simpler_is_said_where_all_are_slower_or_worse() -> None:
    text = sentence(document(SLOW, POOR))
    assert text == (
        "Of what is simpler (int8, random channels), nothing is as fast as compact and as accurate "
        "(397 test images, one seed)."
    )


def test_one_that_is_as_fast_and_not_shown_worse_is_named_with_its_interval() -> None:
    narrow = row("narrow", 1.95, 0.974, (-1.2, 1.0))
    text = sentence(document(SLOW, POOR, narrow))
    assert text.startswith(
        "Something simpler is as fast as compact and not shown to be less accurate: "
        "narrow (1.95x, -0.10 points, -1.20 to +1.00);"
    )
    assert "int8" not in text and "random" not in text
    assert "Of what is simpler" in sentence(document(row("narrow", 1.93, 0.974, (-1.2, 1.0))))  # 1.93 < 0.97 * 2


def test_compact_in_int8_is_not_simpler_and_missing_or_short_ones_are_told() -> None:
    short, absent = row("narrow", 2.0, 0.9, (-9.0, -5.0), 4), Baseline("lower-resolution", "", 0, None, "it fails")
    text = sentence(document(short, absent, row("compact, int8", 4.0, 0.98, (-1.0, 1.0), 0)))
    assert text.startswith("Of what is simpler (narrow), nothing")
    assert text.endswith(
        "Not measured: lower-resolution. They trained for 4 epochs, compact for 40, which favours compact."
    )


def test_the_section_has_a_plot_the_sentence_and_every_row(tmp_path: Path) -> None:
    assert section(tmp_path, "digest") is None
    (tmp_path / FOLDER).mkdir()
    whole = document(SLOW, Baseline("lower-resolution", "", 0, None, "it fails"))
    write(tmp_path / FOLDER / NAME, whole)
    assert read(tmp_path / FOLDER / NAME) == whole
    page = section(tmp_path, "digest")
    assert page is not None and page.brief
    (plots,) = (block for block in page.blocks if isinstance(block, Plots))
    (table,) = (block for block in page.blocks if isinstance(block, Table))
    assert plots.pictures[0] is not None and len(table.rows) == 4
    assert any(isinstance(block, Text) and block.text == sentence(whole) for block in page.blocks)
    stale = section(tmp_path, "another")
    assert stale is not None and "run `demport baselines` again" in stale.blocks[0].text  # type: ignore[union-attr]
    (tmp_path / FOLDER / NAME).write_text("{}")
    with pytest.raises(UserError, match=NAME):
        section(tmp_path, "digest")
