"""Images and labels by name: one `Dataset` from any of the sources in `sources.py`.

Importing this package loads neither torch nor numpy, so `fingerprint` stays cheap.
"""

from __future__ import annotations

from pipeline.data.dataset import WHOLE as WHOLE
from pipeline.data.dataset import Augment as Augment
from pipeline.data.dataset import Dataset as Dataset
from pipeline.data.dataset import Part as Part
from pipeline.data.dataset import Settings
from pipeline.data.dataset import Split as Split
from pipeline.data.sources import source_of
from runtime.errors import UserError


def load(section: Settings) -> Dataset:
    """Reads and checks the set that `section.source` names. Raises UserError naming the item at fault."""
    source = source_of(section)
    data = source.load(source.fingerprint())
    if section.validation == "val":
        if data.validation is None:
            problem = f"data.validation is val, and data.source {section.source} has no part of that name"
            raise UserError(problem, "imagefolder:DIR with train/, val/ and test/", "give a share, e.g. 0.1")
    elif section.validation:
        from pipeline.data.validation import held_out

        data = held_out(data, section.validation)
    return data


def fingerprint(section: Settings) -> str:
    """Changes when the images or labels that the source reads change.

    A torchvision set that is not there yet is downloaded first, so that the answer stays the same afterwards.
    """
    return source_of(section).fingerprint()
