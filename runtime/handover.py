"""How long a core takes to get what another has just written: what two threads of a network do all the time.

On a virtual machine this changes by a factor of two and more from one minute to the next, with the cores that the
virtual ones run on and with what else runs there, and nothing that the system tells shows it. A network whose layers
hand their values from core to core then takes half as long again or more on two threads, and no longer on one.
"""

from __future__ import annotations

import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from runtime.device import usable

BYTES = 256 * 1024  # an activation of a small network; lies in the cache of the core that wrote it
_TIMES = 20


def handover_us() -> float | None:
    """Microseconds that the first usable core takes to copy BYTES that the second has just written, median of 20; None
    with a single core, or where threads cannot be held to cores. Takes some milliseconds."""
    cores = usable()
    if len(cores) < 2 or not hasattr(os, "sched_setaffinity"):
        return None
    source, target = np.zeros(BYTES, np.uint8), np.zeros(BYTES, np.uint8)
    before = os.sched_getaffinity(0)
    taken = []
    with ThreadPoolExecutor(1, initializer=os.sched_setaffinity, initargs=(0, {cores[1]})) as writer:
        try:
            os.sched_setaffinity(0, {cores[0]})
            for count in range(_TIMES):
                writer.submit(source.fill, count).result()
                start = time.perf_counter_ns()
                np.copyto(target, source)
                taken.append(time.perf_counter_ns() - start)
        finally:
            os.sched_setaffinity(0, before)
    return statistics.median(taken) / 1e3
