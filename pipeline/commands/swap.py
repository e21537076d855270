"""`demport ask --during-publish`: clients ask a server without a pause while its folder takes another release."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from export.serving.recorded import RecordedTensor, read_recorded
from export.serving.release_index import Index, read_index
from pipeline.commands.ask import Order, answer_bytes, difference, models_with_answers
from runtime.client import Server
from runtime.errors import UserError

CLIENTS = 16
PUBLISH_S = 600.0  # longest wait for another release in the folder
ANSWER_S = 120.0  # and then for its answers
PHASES = ("before", "during", "after")
Recorded = Mapping[str, tuple[dict[str, Any], list[RecordedTensor]]]


@dataclass
class Traffic:
    """What the clients saw. `ms`: how long each answered request took, by the phase in which it was sent."""

    phase: str = "before"
    releases: list[Recorded] = field(default_factory=list)
    ms: dict[str, list[float]] = field(default_factory=lambda: {phase: [] for phase in PHASES})
    lost: list[str] = field(default_factory=list)
    wrong: int = 0
    renewed: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def judge(self, model: str, answers: Mapping[str, Any], tolerance: float) -> None:
        """An answer is right if any release so far recorded it; a new one counts where the releases before differ."""
        matches = [
            all(difference(output, answers.get(output.name)) <= tolerance for output in release[model][1])
            for release in self.releases
        ]
        with self.lock:
            self.wrong += not any(matches)
            if len(matches) > 1 and matches[-1]:
                self.renewed.add(model)


def ask_during_publish(order: Order, seconds: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Ask for `seconds`, until another release lies in the folder and answers, and for `seconds` more.

    `status`: fail where a request was lost or its answer belongs to no release, or the new release never answers.
    UserError: no release came within ten minutes, or it records other requests, so that no answer can be compared.
    """
    index, recorded = _release(order)
    server = Server(order.url)
    server.wait_until_ready(list(recorded), order.wait_s)
    traffic, stopped = Traffic(releases=[recorded]), threading.Event()
    threads = [
        threading.Thread(target=_client, args=(number, server, traffic, stopped, order.tolerance), daemon=True)
        for number in range(CLIENTS)
    ]
    for thread in threads:
        thread.start()
    try:
        time.sleep(seconds)
        say(f"{CLIENTS} clients ask {order.url}; now publish to {order.directory}: demport publish RUN DIR --replace")
        renewed = _follow(order, index, traffic)
        time.sleep(seconds)
    finally:
        stopped.set()
        for thread in threads:
            thread.join(server.timeout_s)
    good = renewed and not traffic.lost and not traffic.wrong
    counts = {"lost": len(traffic.lost), "wrong": traffic.wrong, "first_loss": next(iter(traffic.lost), None)}
    latency = {phase: _figures(traffic.ms[phase]) for phase in PHASES}
    asked = {"url": order.url, "clients": CLIENTS, "models": sorted(recorded)}
    return {"status": "pass" if good else "fail", **asked, "renewed": renewed, **counts, **latency}


def _release(order: Order) -> tuple[Index, Recorded]:
    index = read_index(order.directory)
    names = [model.name for model in models_with_answers(order, index)]
    return index, {name: read_recorded(order.directory, index, name) for name in names}


def _client(number: int, server: Server, traffic: Traffic, stopped: threading.Event, tolerance: float) -> None:
    turn = number
    while not stopped.is_set():
        release = traffic.releases[-1]
        model = sorted(release)[turn % len(release)]
        phase, start = traffic.phase, time.perf_counter()
        try:
            answers = server.infer(model, release[model][0], limit=answer_bytes(release[model][1]))
        except UserError as error:
            with traffic.lock:
                traffic.lost.append(str(error))
        else:
            traffic.ms[phase].append(1e3 * (time.perf_counter() - start))
            traffic.judge(model, answers, tolerance)
        turn += 1


def _follow(order: Order, index: Index, traffic: Traffic) -> bool:
    """Whether the next release answered for every model; the phase turns as the folder and the answers do."""
    first = traffic.releases[0]
    deadline = time.monotonic() + PUBLISH_S
    while (release := _next(order, index)) is None:
        if time.monotonic() > deadline:
            raise UserError(f"no other release in {order.directory}", f"one within {PUBLISH_S:g} s", "publish to it")
        time.sleep(0.05)
    if any(name not in release or release[name][0] != request for name, (request, _) in first.items()):
        raise UserError(
            f"the release that came to {order.directory} records other requests",
            "the same ones, so that either release's answer can be told from a wrong one",
            "publish a run on the same data",
        )
    traffic.releases.append(release)
    traffic.phase = "during"
    # Where both releases answer alike, nothing tells which one did: there the first answer counts as renewed.
    deadline = time.monotonic() + ANSWER_S
    while (renewed := traffic.renewed >= first.keys()) is False and time.monotonic() < deadline:
        time.sleep(0.05)
    traffic.phase = "after"
    return renewed


def _next(order: Order, index: Index) -> Recorded | None:
    """The release that lies there, once it is another; None also while the folders change places."""
    try:
        now, recorded = _release(order)
    except UserError:
        return None
    return recorded if now.files != index.files else None


def _figures(ms: Sequence[float]) -> dict[str, Any]:
    """Milliseconds of a request over HTTP, from the connection to the whole answer."""
    p50, p99 = (round(float(np.percentile(ms, q)), 3) for q in (50, 99)) if ms else (None, None)
    return {"answers": len(ms), "p50_ms": p50, "p99_ms": p99}
