"""Keys that have another spelling now."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.file import load_config
from runtime.errors import UserError


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("seed: 1\ndemp: {epochs: 3}\n", "`demp` is now `sparse`; expected sparse: {method: demp"),
        (
            "dense: {epochs: 3, tensorboard: true}\n",
            "`dense.tensorboard` is now `dense.log`; expected log: [tensorboard]",
        ),
    ],
)
def test_a_key_of_before_is_refused_with_its_new_spelling(text: str, line: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        load_config(tmp_path / "c.yaml", ())
    assert line in str(error.value) and f"c.yaml:{text.count(chr(10))}" in str(error.value)
