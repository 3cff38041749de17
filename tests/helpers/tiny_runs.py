"""Training runs of about a second, their outputs, and ways to stop them."""

import csv
import json
import os
import shutil
import signal
import sys
from multiprocessing import get_context, set_start_method
from pathlib import Path

import pytest
import torch

from sepc_zoo.training import checkpoint
from sepc_zoo.training import trainer as engine
from sepc_zoo.training.callbacks import Callback, DrawSamples, Stop, WriteReport
from sepc_zoo.training.checkpoint import STATE_FILE
from sepc_zoo.training.config_file import read_options
from sepc_zoo.training.options import TrainOptions
from sepc_zoo.training.resilience.signals import Interrupted
from sepc_zoo.training.trainer import train

NOT_REPEATED = {"images_per_second", "memory_gib"}  # columns of log.csv that differ between runs

# Processes are forked from one that has imported the library.
SERVER = get_context("forkserver")
SERVER.set_forkserver_preload(["sepc_zoo.training.trainer"])


SMALL = {
    "model": "retinanet_mnv4s_pconv",
    "model_kwargs": {"channels": 16, "neck": {"blocks": 1}},
    "image_size": (64, 64),
    "workers": 0,
    "device": "cpu",
    "log_with": (),
}


def options(data, output, **changes):
    """Options of a run of two epochs with two steps each, with changes."""
    known = {"data": str(data), "output": str(output), "epochs": 2}
    return TrainOptions(**SMALL | known | changes)


def resume(run):
    return train(read_options(run), resume=True)


def read_log(run, name="log.csv"):
    with (Path(run) / name).open(newline="") as file:
        return list(csv.DictReader(file))


def read_losses(run):
    """The rows of the log, without the columns that differ between equal runs."""
    return [{k: v for k, v in row.items() if k not in NOT_REPEATED} for row in read_log(run)]


def totals(run):
    """The loss of each step that was logged."""
    return [float(row["loss"]) for row in read_log(run) if row["loss"]]


def state_of(run):
    return torch.load(Path(run) / STATE_FILE, weights_only=True)


def assert_same_weights(run, other, *parts):
    """Check that the models of two runs, and other parts of their states, are equal bit for bit."""
    ours, theirs = state_of(run), state_of(other)
    for part in ("model", *parts):
        torch.testing.assert_close(ours[part], theirs[part], rtol=0, atol=0)


def copy_of(data, folder):
    return Path(shutil.copytree(data, folder / "data"))


def edit_json(path, edit):
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def before_step(monkeypatch, step, act):
    """Call ``act(run, batches)`` at the start of a step."""
    train_step = engine.train_step

    def acting(run, batches):
        if run.progress.step + 1 == step:
            act(run, batches)
        return train_step(run, batches)

    monkeypatch.setattr(engine, "train_step", acting)


def interrupt_at(monkeypatch, step, number=signal.SIGTERM):
    """Send a signal to this process at the start of a step."""
    before_step(monkeypatch, step, lambda *_: os.kill(os.getpid(), number))


def crash_at(monkeypatch, step):
    def crash(*_):
        raise MemoryError

    before_step(monkeypatch, step, crash)


def draw_nothing(monkeypatch):
    """Leave out pictures and report, which take most of a tiny run's time."""
    monkeypatch.setattr(DrawSamples, "after_validation", Callback.after_validation)
    monkeypatch.setattr(WriteReport, "after_training", Callback.after_training)


def train_until(step, options, **how):
    """Train until SIGTERM arrives at the start of a step, which is made and saved."""
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, step)
        with pytest.raises(Interrupted, match=f"saved after step {step};"):
            train(options, **how)


def train_until_crash(step, options):
    with pytest.MonkeyPatch.context() as patch:
        crash_at(patch, step)
        with pytest.raises(MemoryError):
            train(options)


class StopAfter(Callback):
    def __init__(self, step):
        self.step = step

    def after_step(self, run, _):
        if run.progress.step == self.step:
            raise Stop("a callback has seen enough")


def start_process(options, moment=None, resumed=False):
    """Train in a process of its own; its exit status is that of the command."""
    process = SERVER.Process(target=_train, args=(options, moment, resumed))
    process.start()
    return process


def _train(options, moment, resumed):
    set_start_method("fork", force=True)  # for the workers, the default of a new process
    draw_nothing(pytest.MonkeyPatch())
    if moment:
        kill_at(*moment)
    try:
        train(options, resume=resumed)
    except Interrupted as interrupted:
        sys.exit(interrupted.status)


def kill_at(function, call, when):
    """Kill this process at the n-th call of a function of the trainer or of ``checkpoint``.

    Args:
        when: "before" the call, "after" it, or "half": half of the file is written.
    """
    module = engine if hasattr(engine, function) else checkpoint
    original = getattr(module, function)
    calls = []

    def killing(*args, **kwargs):
        calls.append(function)
        if len(calls) != call:
            return original(*args, **kwargs)
        if when == "half":
            args[1].write_bytes(b"PK half of it")
        elif when == "after":
            original(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(module, function, killing)
