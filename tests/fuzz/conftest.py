"""The one audit hook of the process: Python cannot take it away again, so it sleeps between the tests."""

from __future__ import annotations

import sys

import pytest

from tests.fuzz.watch import watch


@pytest.fixture(scope="session")
def audit() -> None:
    sys.addaudithook(watch)
