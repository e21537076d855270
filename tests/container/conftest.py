"""The image, built once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.container.builder import Built, built, demand_builder


@pytest.fixture(scope="session")
def image() -> Iterator[Built]:
    demand_builder()
    with built() as one:
        yield one
