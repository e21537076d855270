"""Where files that a config names are looked for: beside the config first, then in the working folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

FILES = (
    ("data", "source"), ("data", "root"), ("model", "weights"), ("given", "dense"), ("given", "compact"),
    ("check", "reference"),
)  # fmt: skip
FORMS = ("npz:", "imagefolder:", "csv:", "segfolder:", "coco:", "yolo:")
"""Of data.source, those that name a file or folder."""


def located(tree: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`tree` as read from a config in `folder`: a relative path that leads to something there is written relative to
    the working folder, from which everything after this reads it; others stay as they are."""
    sections = {section for section, _ in FILES if isinstance(tree.get(section), dict)}
    copies = {section: dict(tree[section]) for section in sections}
    for section, key in FILES:
        text = copies.get(section, {}).get(key)
        if not isinstance(text, str) or (key == "weights" and text == "default"):
            continue
        form = next((form for form in FORMS if text.startswith(form)), "")
        name = text[len(form) :]
        if (key == "source" and not form) or not name or Path(name).is_absolute():
            continue
        try:
            there = (folder / name).exists()
        except (OSError, ValueError):  # a name no file can have; who reads it says so
            continue
        if there:
            copies[section][key] = form + os.path.relpath(folder / name)
    return {**tree, **copies}
