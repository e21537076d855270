"""Seeds, and torch's global state before and after."""

from __future__ import annotations

import pytest
import torch
import torch.utils.deterministic

from pipeline.training.compute.device import derived_seed, repeatable, torch_device
from runtime.errors import UserError

CPU = torch.device("cpu")


def test_derived_seeds_differ_by_seed_purpose_and_number() -> None:
    seeds = {derived_seed(s, p, n) for s in (0, 1) for p in ("init", "step", "noise", "census") for n in range(50)}
    assert len(seeds) == 400
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derived_seed(3, "noise", 7) == derived_seed(3, "noise", 7)


def test_the_global_state_comes_back_also_after_an_error() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), repeatable(1, CPU):
        assert torch.get_num_threads() == 1
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
        torch.rand(9)
        1 / 0  # noqa: B018
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    assert torch.equal(torch.rand(3), expected)


def test_a_setting_of_the_callers_stays() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with repeatable(1, CPU):
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert torch_device("cpu") == torch_device("auto") == CPU
    with pytest.raises(UserError, match="no CUDA device"):
        torch_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert torch_device("auto").type == torch_device("cuda").type == "cuda"
