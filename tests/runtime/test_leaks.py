"""Memory stays flat over many inferences, and over many sessions opened and closed."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from runtime.backends import Session
from runtime.errors import UserError
from tests.runtime import cuda_standins, standins
from tests.runtime.nets import expected, images
from tests.runtime.test_conformance import ON_CPU, OPENERS, STOOD_IN_FOR

INFERENCES, CYCLES = 10_000, 200
SLACK_MIB = 8.0  # of an allocator's; a leak of 1 KiB an inference, or of 64 KiB a session, is more

pytestmark = pytest.mark.slow
EVERY = [
    pytest.param(name, marks=() if name in ON_CPU else pytest.mark.gpu)
    for name in OPENERS
    if "compiled" not in name  # its memory is that of eager mode, once compiled
]


def used_mib() -> float:
    """Of this process, and of the GPU where there is one."""
    import torch

    gc.collect()
    mib = psutil.Process().memory_info().rss / 2**20
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        mib += (total - free) / 2**20
    return mib


def growth_mib(work: Callable[[], None], count: int) -> float:
    """What `count` repetitions add after a tenth of them has warmed the caches."""
    for _ in range(count // 10):
        work()
    before = used_mib()
    for _ in range(count):
        work()
    return used_mib() - before


def opened(name: str, folder: Path, patch: pytest.MonkeyPatch) -> Session:
    if name in STOOD_IN_FOR:
        standins.stand_in(patch)
    try:
        return OPENERS[name](folder)
    except UserError as error:
        if name in ON_CPU:
            raise
        pytest.skip(f"{name}: {error}")


@pytest.mark.parametrize("name", EVERY)
def test_ten_thousand_inferences(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = opened(name, tmp_path, monkeypatch)
    batch = images(4)

    def infer() -> None:
        session.bind({"input": batch})
        session.launch()
        session.wait()
        session.fetch()

    assert growth_mib(infer, INFERENCES) < SLACK_MIB
    np.testing.assert_allclose(session.fetch()["logits"], expected(batch), rtol=0, atol=1e-5)
    session.close()


@pytest.mark.parametrize("name", EVERY)
def test_two_hundred_sessions(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(name, tmp_path, monkeypatch).close()

    def cycle() -> None:
        session = OPENERS[name](tmp_path)
        session.bind({"input": images(8)})
        session.launch()
        session.fetch()
        session.close()

    assert growth_mib(cycle, CYCLES) < SLACK_MIB
    if name in STOOD_IN_FOR:
        standins.all_given_back()
        assert cuda_standins.Allocation.live == 0
