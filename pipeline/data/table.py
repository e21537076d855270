"""A table of images and labels: csv:FILE, whose images are decoded as batches need them."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.data.dataset import Dataset, Settings
from pipeline.data.digests import of_tree
from pipeline.data.sources import expanded
from pipeline.data.tree import Listing
from runtime.errors import UserError

IMAGE, SPLIT, LABEL = "image", "split", "label"
HEADER = f"a header with {IMAGE}, {SPLIT}, and {LABEL} (a class) or a column of 0 and 1 for each label"
PARTS = ("train", "val", "test")


class Csv:
    """A UTF-8 file with a header. Columns: `image`, a path as seen from the file; `split`, one of train, val, test; and
    `label`, the name of a class, or a column of 0 and 1 for each of the labels that an image may have."""

    def __init__(self, text: str, section: Settings) -> None:
        self.path, self.section = expanded(text, "data.source"), section

    def fingerprint(self) -> str:
        """Of the table and of its images' content."""
        paths = [path for one in self._listings().values() for path in one.paths]
        cache = None
        with contextlib.suppress(UserError):  # without a home folder every file is read again
            cache = expanded(self.section.root, "data.root") / "digests.sqlite"
        return of_tree(self.path.parent, [self.path, *paths], "csv", cache)

    def load(self, fingerprint: str) -> Dataset:
        from pipeline.data.folder import dataset

        parts = self._listings()
        validation = parts.get("val") if "test" in parts and self.section.validation == "val" else None
        test = parts["test"] if "test" in parts else parts["val"]
        data = dataset(parts["train"], test, self.section, fingerprint, validation)
        notes = data.notes
        if "test" in parts and "val" in parts and validation is None:
            notes += (f"{self.path}: rows of split val are not read; data.validation: val chooses on them",)
        labels = isinstance(parts["train"].labels[0], tuple)
        return dataclasses.replace(data, notes=notes, targets="labels" if labels else "class")

    def _listings(self) -> dict[str, Listing]:
        """By split. UserError: the table or an image is missing, or a cell is none that can be read."""
        columns, rows = self._rows()
        names = self._names(columns, rows)
        parts: dict[str, Listing] = {}
        for part in PARTS:
            own = [(number, row) for number, row in rows if row[SPLIT] == part]
            if own:
                paths = tuple(self._image(number, row) for number, row in own)
                labels: Any = tuple(self._label(number, row, names) for number, row in own)
                parts[part] = Listing(self.path, names, paths, labels, ())
        if "train" not in parts or len(parts) < 2:
            problem = f"{self.path} has rows of {', '.join(parts) or 'no split'}"
            raise UserError(problem, "rows of train, and of test or val", f"mend the column {SPLIT}")
        if LABEL in columns and (missing := set(range(len(names))) - set(parts["train"].labels)):
            problem = f"class {names[min(missing)]} of {self.path} has no row of train"
            raise UserError(problem, "at least one image in every class", f"mend the column {SPLIT}")
        return parts

    def _rows(self) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
        """The header, and each row with its line."""
        if not self.path.is_file():
            raise UserError(f"data.source names {self.path}, which is no file", "a CSV file", "mend data.source")
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                reader = csv.DictReader(file, strict=True)
                columns = list(reader.fieldnames or [])
                rows: list[tuple[int, dict[str, Any]]] = [(reader.line_num, row) for row in reader]
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{self.path} cannot be read ({error})", "a CSV file in UTF-8", "save it so") from error
        labels = [name for name in columns if name not in (IMAGE, SPLIT)]
        if IMAGE not in columns or SPLIT not in columns or not labels or len(set(columns)) < len(columns):
            raise UserError(f"{self.path} has the columns {', '.join(columns) or 'none'}", HEADER, "mend the header")
        if LABEL in labels and len(labels) > 1:
            problem = f"{self.path} has the column {LABEL} beside {', '.join(n for n in labels if n != LABEL)}"
            raise UserError(problem, HEADER, "leave out one of the two")
        for number, row in rows:
            if None in row or None in row.values():
                problem = f"{self.path}:{number} has other cells than the header's {len(columns)}"
                raise UserError(problem, "a cell for each column", "mend the line")
            if row[SPLIT] not in PARTS:
                raise UserError(
                    f"{self.path}:{number}: {SPLIT} is {row[SPLIT]!r}", f"one of {', '.join(PARTS)}", "mend it"
                )
        return columns, rows

    def _names(self, columns: list[str], rows: list[tuple[int, dict[str, str]]]) -> tuple[str, ...]:
        if LABEL not in columns:
            names = tuple(name for name in columns if name not in (IMAGE, SPLIT))
        else:
            names = tuple(sorted({row[LABEL] for _, row in rows}))
        if len(names) < 2:
            problem = f"{self.path} has one {'class' if LABEL in columns else 'label'}, {names[0] if names else 'none'}"
            raise UserError(problem, "at least two", "add another, e.g. a class `other`")
        return names

    def _image(self, number: int, row: Mapping[str, str]) -> Path:
        path = self.path.parent / row[IMAGE]
        if not row[IMAGE] or not path.is_file():
            problem = f"{self.path}:{number}: there is no image {path}"
            raise UserError(problem, "a path as seen from the CSV file", "mend the line")
        return path

    def _label(self, number: int, row: Mapping[str, str], names: tuple[str, ...]) -> int | tuple[float, ...]:
        if LABEL in row:
            return names.index(row[LABEL])
        for name in names:
            if row[name] not in ("0", "1"):
                raise UserError(f"{self.path}:{number}: {name} is {row[name]!r}", "0 or 1", "mend the line")
        return tuple(float(row[name]) for name in names)
