"""The driver's calls around a capture: always ended, checked, and freed once."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from runtime.backends import cuda_graph
from runtime.backends.cuda_graph import CapturedGraph
from runtime.errors import UserError


class Driver:
    """Stands in for libcuda: notes its calls; those named in `fails` answer 900."""

    def __init__(self, *fails: str) -> None:
        self.fails, self.called = fails, list[str]()

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.called.append(name)
            if name == "cuGraphInstantiateWithFlags":
                arguments[0]._obj.value = 4711
            return 900 if name in self.fails else 0

        return call


def use(patch: pytest.MonkeyPatch, *fails: str) -> Driver:
    driver = Driver(*fails)
    patch.setattr(cuda_graph, "_driver", lambda: driver)
    return driver


BEGIN, END, MAKE = "cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuGraphInstantiateWithFlags"
DROP, LAUNCH, FREE = "cuGraphDestroy", "cuGraphLaunch", "cuGraphExecDestroy"


def test_the_order_of_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = use(monkeypatch)
    graph = CapturedGraph(7, lambda: driver.called.append("work"), "engine x")
    graph.launch()
    graph.launch()
    graph.free()
    graph.free()
    assert driver.called == [BEGIN, "work", END, MAKE, DROP, LAUNCH, LAUNCH, FREE]


@pytest.mark.parametrize(
    ("fails", "called", "words"),
    [
        (BEGIN, [BEGIN], "cannot be captured"),
        (END, [BEGIN, "work", END], "cannot be captured"),
        (MAKE, [BEGIN, "work", END, MAKE, DROP], "cannot become a graph"),
    ],
)
def test_a_refusal_is_told(monkeypatch: pytest.MonkeyPatch, fails: str, called: list[str], words: str) -> None:
    driver = use(monkeypatch, fails)
    with pytest.raises(UserError, match=rf"engine x {words} \(CUDA error 900\)"):
        CapturedGraph(7, lambda: driver.called.append("work"), "engine x")
    assert driver.called == called


def test_a_capture_ends_where_the_work_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = use(monkeypatch)

    def work() -> None:
        raise UserError("it did not start", "an engine that runs", "build it again")

    with pytest.raises(UserError, match="did not start"):
        CapturedGraph(7, work, "engine x")
    assert driver.called == [BEGIN, END]


def test_a_launch_that_fails_and_no_driver_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, LAUNCH)
    with pytest.raises(UserError, match="cannot be launched as a graph"):
        CapturedGraph(7, lambda: None, "engine x").launch()
    monkeypatch.undo()

    def absent(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    cuda_graph._driver.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", absent)
    with pytest.raises(UserError, match="the CUDA driver does not load"):
        CapturedGraph(7, lambda: None, "engine x")
