"""Faults of the machine in one line: too little memory and failing disks, and nothing else."""

from __future__ import annotations

import errno

import pytest
import torch

from pipeline import cli
from runtime.errors import one_line, plain
from runtime.faults import machine_fault


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (MemoryError(), "the memory is too small; memory for the network"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "CUDA out of memory. Tried"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), "smaller batches"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "the memory is too small"),
        (OSError(errno.EIO, "Input/output error", "a.png"), "a.png: Input/output error; a disk"),
        (PermissionError(errno.EACCES, "Permission denied", "runs"), "runs: Permission denied"),
    ],
)
def test_faults_of_the_machine(error: Exception, shown: str) -> None:
    fault = machine_fault(error)
    assert fault is not None and shown in str(fault)
    assert str(fault).count("; ") >= 2 and "\n" not in str(fault)


def test_other_errors_are_faults_of_the_program() -> None:
    for error in (ValueError("x"), RuntimeError("shape mismatch"), FileNotFoundError(errno.ENOENT, "gone", "x")):
        assert machine_fault(error) is None
    with pytest.raises(RuntimeError) as real:
        torch.empty(1 << 50)
    assert machine_fault(real.value) is not None


def test_a_command_ends_in_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for error, code in (
        (MemoryError(), 2),
        (OSError(errno.EIO, "Input/output error", "x\x1b[2J"), 2),
        (KeyError(), 70),
    ):

        def fail(*_: object, failure: Exception = error) -> None:
            raise failure

        monkeypatch.setattr("pipeline.commands.doctor.diagnose", fail)
        assert cli.command_line(["doctor"]) == code
        shown = capsys.readouterr().err
        assert (shown.count("\n") == 1) == (code == 2) and "\x1b" not in shown


def test_control_characters_are_written_out() -> None:
    assert plain("a\x1b[2J\nb") == "a\\x1b[2J\\nb"
    assert one_line("a \n\t b\u202e") == "a b\\u202e"
