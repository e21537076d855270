"""A file is opened and run once in a process of its own: a crash, a hang or too little memory there is one line here.

`python -m runtime.backends.trial ORDER`, ORDER being the JSON of `Order`, prints an error's three clauses as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from runtime.backends import DeviceName, Session, open_session
from runtime.backends.feeds import check_feeds, random_feeds
from runtime.errors import EXIT_USAGE, UserError

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 300.0
"""Engines of large networks take a minute to load."""


@dataclass(frozen=True)
class Order:
    """`shape` is that of the only input, batch first, in float32; without it the file says what it takes of `batch`."""

    path: str
    backend: str | None = None
    device: DeviceName = "auto"
    threads: int | None = None
    batch: int = 1
    shape: tuple[int, ...] | None = None


def demand_runs(order: Order, limit_s: float = LIMIT_S) -> None:
    """UserError where the file does not open or run within so many seconds."""
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-P", "-m", "runtime.backends.trial", json.dumps(asdict(order))]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": paths},
        start_new_session=True,
    ) as process:
        try:
            output, errors = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired as error:
            raise UserError(
                f"{order.path} does not run within {limit_s:g} s", "a network that runs", "check it"
            ) from error
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode == EXIT_USAGE and output:
        raise UserError(*json.loads(output))
    if process.returncode:
        raise _crash(order.path, process.returncode, errors.decode(errors="replace"))


def _crash(path: str, code: int, text: str) -> UserError:
    lines = [line for line in text.splitlines() if line.strip()]
    ended = f"by signal {-code}" if code < 0 else f"with exit code {code}"
    reason = f": {lines[-1][:300]}" if lines else ""
    return UserError(
        f"{path} ends the process that runs it {ended}{reason}", "a network that runs here", "check it, or free memory"
    )


def main(order: Order) -> int:
    try:
        with closing(open_session(order.path, order.backend, order.device, order.threads)) as session:
            _run(session, order)
    except UserError as error:
        print(json.dumps([error.found, error.expected, error.remedy]))
        return EXIT_USAGE
    return 0


def _run(session: Session, order: Order) -> None:
    if not session.inputs:
        raise UserError(f"{order.path} takes no inputs", "a network of images", "export it with an input")
    if order.shape is None:
        fixed = next((spec.shape[0] for spec in session.inputs if spec.shape), None)
        feeds = random_feeds(session, fixed or order.batch)
    else:
        import numpy as np

        feeds = {session.inputs[0].name: np.zeros(order.shape, np.float32)}
        check_feeds(session.name, session.inputs, feeds)
    session.bind(feeds)
    session.launch()
    session.wait()


if __name__ == "__main__":
    document = json.loads(sys.argv[1])
    document["shape"] = document["shape"] and tuple(document["shape"])
    sys.exit(main(Order(**document)))
