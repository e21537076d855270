"""Where a text goes that the user names a file for."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipeline.commands.destination import write_through
from runtime.errors import UserError


def test_a_file_is_replaced_and_a_link_stays_one(tmp_path: Path) -> None:
    file, link, dangling = tmp_path / "a.md", tmp_path / "link.md", tmp_path / "new.md"
    file.write_text("a longer text than the new one")
    link.symlink_to("a.md")
    dangling.symlink_to("made.md")
    write_through(link, "new")
    write_through(dangling, "there")
    assert file.read_text() == "new" and link.is_symlink()
    assert (tmp_path / "made.md").read_text() == "there" and dangling.is_symlink()


def test_a_pipe_is_written_to_and_one_that_nobody_reads_is_an_error(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(UserError, match="No such device or address"):
        write_through(pipe, "text")
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    while not read:
        try:
            write_through(pipe, "text\n" * 40_000)
            reader.join(10)
        except UserError:  # the reader has not opened it yet
            continue
    assert read == ["text\n" * 40_000] and stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.skipif(os.geteuid() != 0, reason="making a device takes root")
def test_a_device_stays_one(tmp_path: Path) -> None:
    device = tmp_path / "null"
    os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    write_through(device, "text")
    assert stat.S_ISCHR(device.stat().st_mode) and list(tmp_path.iterdir()) == [device]


@pytest.mark.parametrize("name", ["/dev/stdout", "link"])
def test_standard_output_is_where_it_was(tmp_path: Path, name: str) -> None:
    """Redirected to a file, in which the next line comes after the text."""
    (tmp_path / "link").symlink_to("/proc/self/fd/1")
    program = (
        "from pathlib import Path; from pipeline.commands.destination import write_through\n"
        f"write_through(Path({name!r}), 'text\\n'); print('last line')"
    )
    with (tmp_path / "out").open("w") as out:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
        subprocess.run([sys.executable, "-c", program], stdout=out, check=True, cwd=tmp_path, env=environment)
    assert (tmp_path / "out").read_text() == "text\nlast line\n" and (tmp_path / "link").is_symlink()


def test_the_step_summary_of_github_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = tmp_path / "summary"
    summary.write_text("# Nightly\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    write_through(summary, "one\n")
    write_through(summary, "two\n")
    assert summary.read_text() == "# Nightly\none\ntwo\n"
    write_through(tmp_path / "other", "three\n")
    write_through(tmp_path / "other", "three\n")
    assert (tmp_path / "other").read_text() == "three\n"


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder"):
        write_through(tmp_path, "text")
    assert not list(tmp_path.iterdir())
