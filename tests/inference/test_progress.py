"""Progress on a terminal and in a log file."""

import io
import sys

import pytest
from tqdm import tqdm

from sepc_zoo.inference import progress
from sepc_zoo.inference.progress import INTERVAL, progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds that the test sets; a bar made before the fixture does not know them."""
    seconds = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: seconds[0])
    return seconds


def test_a_log_has_a_line_each_interval_and_one_at_the_end(capsys, clock):
    with progress_bar(total=100, desc="train", unit="step") as bar:
        for step in range(100):
            clock[0] = step * INTERVAL / 40
            bar.update()
            bar.set_postfix(loss=f"{step}")
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition("/")[0] for line in lines] == [
        "train:  41% 41",
        "train:  81% 81",
        "train: 100% 100",
    ]
    assert all("loss=" in line and "step/s" in line for line in lines)


def test_a_log_has_no_control_characters(capsys, clock):
    with progress_bar(range(9), "train") as outer:
        for i in outer:
            for _ in progress_bar(range(9), "validate", leave=False):
                clock[0] += INTERVAL
            tqdm.write(f"epoch {i}", file=sys.stderr)
    text = capsys.readouterr().err
    assert not set(text) & {"\r", "\x1b"}
    assert text.count("epoch") == 9
    assert text.count("\n\n") == 0


def test_a_short_bar_that_is_not_left_writes_nothing_to_a_log(capsys):
    assert [*progress_bar(range(9), "validate", leave=False)] == [*range(9)]
    assert capsys.readouterr().err == ""


def test_a_disabled_bar_writes_nothing_to_a_log(capsys, clock):
    bar = progress_bar(total=2, disable=True)
    clock[0] = 2 * INTERVAL
    bar.update(2)
    bar.close()
    assert capsys.readouterr().err == ""


def test_a_resumed_run_that_had_ended_writes_no_line(capsys):
    progress_bar(total=9, initial=9).close()
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    list(progress_bar(range(3), "predict"))
    assert "\r" in sys.stderr.getvalue()
    assert "| 0/3" in sys.stderr.getvalue()
