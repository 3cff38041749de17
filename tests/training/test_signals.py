import os
import pty
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
from tiny_runs import assert_same_weights, options, resume, state_of
from torch.utils.data import DataLoader

from sepc_zoo.cli.arguments import command_line
from sepc_zoo.data import dataset
from sepc_zoo.data.resilient_loader import ResilientLoader, kill_workers, shield_workers
from sepc_zoo.evaluation import validate
from sepc_zoo.training.resilience import signals as engine
from sepc_zoo.training.resilience.signals import Interrupt, Interrupted, WaitEnded
from sepc_zoo.training.trainer import train

CRASH = """
import torch
from sepc_zoo.data.resilient_loader import shield_workers
from torch.utils.data import DataLoader

loader = shield_workers(DataLoader(range(8), num_workers=1, persistent_workers=True))
batches = iter(loader)
next(batches)
raise RuntimeError("a run that ends without ending its workers")
"""


def test_a_signal_that_is_passed_on_twice_is_one():
    with Interrupt() as interrupt:
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert interrupt.signal == signal.SIGINT


def test_a_second_signal_has_its_usual_effect(monkeypatch):
    monkeypatch.setattr(engine, "ECHO_SECONDS", 0.0)
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.signal == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.slow
def test_shielded_workers_do_not_keep_a_process_from_ending():
    done = subprocess.run([sys.executable, "-c", CRASH], capture_output=True, timeout=40)
    assert done.returncode == 1
    assert b"without ending its workers" in done.stderr


def test_a_hangup_that_is_ignored_stays_so():
    """``nohup`` starts a program so."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupt() as interrupt:
            os.kill(os.getpid(), signal.SIGHUP)
            assert interrupt.signal is None
    finally:
        signal.signal(signal.SIGHUP, before)


def kill_soon(number, seconds=0.5):
    timer = threading.Timer(seconds, os.kill, (os.getpid(), number))
    timer.start()


class NeverReads:
    """Three items; the last one never comes."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        time.sleep(3600 if index == 2 else 0)
        return index


@pytest.mark.parametrize("number", engine.SIGNALS)
def test_a_signal_ends_a_wait_for_a_batch_that_never_comes(number, monkeypatch):
    monkeypatch.setattr(engine, "leave_terminal", lambda: None)
    loader = shield_workers(DataLoader(NeverReads(), batch_size=None, num_workers=1))
    with Interrupt() as interrupt:
        batches = ResilientLoader(loader, pytest.fail, interrupt.ends_wait)
        kill_soon(number, 2)
        seen = []
        with pytest.raises(WaitEnded):
            seen += batches
        kill_workers()
        assert interrupt.signal == number


@pytest.mark.usefixtures("no_pictures")
def test_a_signal_during_validation_ends_a_saved_run_at_the_next_batch(
    shapes, tmp_path, monkeypatch
):
    batches = []

    def detect_files(detector, files):
        batches.append(files)
        if len(batches) == 6:  # the second of the second epoch's four
            os.kill(os.getpid(), signal.SIGTERM)
        return original(detector, files)

    original = validate.detect_files
    run, whole = tmp_path / "run", tmp_path / "whole"
    train(options(shapes, whole, batch_size=1))
    with monkeypatch.context() as patch:
        patch.setattr(validate, "detect_files", detect_files)
        with pytest.raises(Interrupted, match="saved after step 16; go on with --resume") as end:
            train(options(shapes, run, batch_size=1))
    assert end.value.status == 143
    assert len(batches) == 6
    resume(run)
    assert_same_weights(run, whole)
    assert (run / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()


@pytest.mark.usefixtures("no_pictures")
def test_a_signal_ends_a_run_whose_images_never_come(shapes, tmp_path, monkeypatch):
    """As on a network disk that hangs; the steps until then are saved."""
    run, stuck = tmp_path / "run", tmp_path / "stuck"

    def read_image(*arguments):
        while stuck.exists():
            time.sleep(0.1)
        return original(*arguments)

    original = dataset.read_image
    with monkeypatch.context() as patch:
        patch.setattr(dataset, "read_image", read_image)
        patch.setattr(engine, "ECHO_SECONDS", 60)
        stuck.touch()
        kill_soon(signal.SIGTERM, 4)
        with pytest.raises(Interrupted, match="saved after step 0"):
            train(options(shapes, run, workers=1))
    stuck.unlink()
    resume(run)
    assert state_of(run)["progress"]["step"] == 4


@pytest.mark.slow
def test_a_terminal_that_is_closed_leaves_a_saved_run(shapes, tmp_path):
    run = tmp_path / "run"
    flags = command_line(options(shapes, run, epochs=500))
    command = [sys.executable, "-m", "sepc_zoo", "train", *flags]
    process, terminal = pty.fork()
    if not process:
        os.execv(sys.executable, command)
    reader = threading.Thread(target=lambda: read_until_closed(terminal), daemon=True)
    reader.start()
    while not (run / "log.csv").exists():
        time.sleep(0.2)
    os.close(terminal)
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 129
    assert state_of(run)["progress"]["step"] > 0
    shutil.rmtree(run)


def read_until_closed(terminal):
    try:
        while os.read(terminal, 1000):
            pass
    except OSError:
        pass
