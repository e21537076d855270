"""Progress lines and bars."""

from __future__ import annotations

import io

import pytest

from pipeline.progress import PlainProgress, RichProgress, Silent, clock_text, open_progress, time_left_s


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_come_at_most_every_five_seconds() -> None:
    clock, stream = Clock(), io.StringIO()
    progress = PlainProgress(stream, clock=clock)
    progress.start("demp", 40)
    for second in range(1, 21):
        clock.now = 100.0 + second
        progress.update(second * 2, f"epoch {second}")
    progress.stop()
    progress.stop()
    assert stream.getvalue().splitlines() == [
        "demp",
        "demp 25 %  epoch 5  0:15 left",
        "demp 50 %  epoch 10  0:10 left",
        "demp 75 %  epoch 15  0:05 left",
        "demp 100 %  epoch 20  0:00 left",
        "demp done  epoch 20  in 0:20",
    ]


def test_a_text_stays_until_the_next_and_an_early_end_is_said() -> None:
    clock, stream = Clock(), io.StringIO()
    progress = PlainProgress(stream, clock=clock)
    progress.start("dense", 4)
    progress.update(1, "accuracy 90 %")
    clock.now += 6
    progress.update(2)
    progress.start("next", 1)
    progress.note("a line")
    assert stream.getvalue().splitlines() == [
        "dense",
        "dense 50 %  accuracy 90 %  0:06 left",
        "dense stopped at 50 %  accuracy 90 %  in 0:06",
        "next",
        "a line",
    ]


def test_what_an_earlier_run_did_is_no_speed_of_this_one() -> None:
    """60 of 100 are there; 10 more take 5 s, so the last 30 take 15."""
    clock, stream = Clock(), io.StringIO()
    progress = PlainProgress(stream, clock=clock)
    progress.start("demp", 100)
    clock.now += 7  # reading data and checkpoint
    progress.resume(60)
    clock.now += 5
    progress.update(70)
    progress.stop()
    assert stream.getvalue().splitlines() == ["demp", "demp 70 %  0:15 left", "demp stopped at 70 %  in 0:05"]


def test_a_bar_that_goes_on_tells_no_speed_yet() -> None:
    progress = open_progress(Terminal())
    assert isinstance(progress, RichProgress)
    progress.resume(3)
    progress.start("demp", 100)
    progress.update(1)
    progress.resume(60)
    assert progress._bars is not None
    (task,) = progress._bars.tasks
    assert (task.completed, task.speed) == (60, None)
    progress.stop()


def test_a_terminal_gets_bars_with_what_was_found() -> None:
    stream = Terminal()
    progress = open_progress(stream)
    assert isinstance(progress, RichProgress)
    progress.note("before [bold]any[/bold] stage")
    progress.update(1, "ignored")
    progress.start("demp", 10)
    progress.update(4, "dead 3/9")
    progress.update(5)
    progress.stop()
    progress.stop()
    shown = stream.getvalue()
    assert "before [bold]any[/bold] stage" in shown
    assert "dead 3/9" in shown
    assert "50%" in shown
    assert "ignored" not in shown


def test_what_was_found_leaves_room_for_the_bar_in_a_narrow_terminal() -> None:
    text = "epoch 12/200  accuracy 71.23 %  dead 1404/4800  lambda 0.013  sigma 2e-05  555.4 M MACs  loss 0.912"
    stream = Terminal()
    progress = RichProgress(stream)
    assert progress._console.width == 80
    progress.start("demp", 10)
    progress.update(4, text)
    progress.stop()
    bar, *beneath = stream.getvalue().rpartition("demp ")[2].splitlines()
    assert "40%" in bar and "left" in bar
    assert " ".join(" ".join(beneath).split()).startswith(" ".join(text.split()))


def test_elsewhere_plain_lines_are_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    progress = open_progress()
    assert isinstance(progress, PlainProgress)
    progress.start("dense", 1)
    progress.stop()
    captured = capsys.readouterr()
    assert captured.err.splitlines()[0] == "dense"
    assert captured.out == ""


def test_silence(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Silent()
    progress.start("dense", 1)
    progress.update(1, "x")
    progress.note("y")
    progress.stop()
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "?:??"), (0.2, "0:00"), (59.6, "1:00"), (65.2, "1:05"), (3725, "1:02:05")]
)
def test_clock_text(seconds: float | None, text: str) -> None:
    assert clock_text(seconds) == text
    assert len(clock_text(seconds)) >= 4


def test_time_left_goes_on_as_before() -> None:
    assert time_left_s(10, 2, 8) == 30
    assert time_left_s(10, 9, 8) == 0
    assert time_left_s(10, 0, 8) is None
