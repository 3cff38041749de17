"""Runs that take about a second, what they leave, and ways to stop them."""

import csv
import json
import os
import shutil
import signal
import sys
from multiprocessing import get_context, set_start_method
from pathlib import Path

import torch
from accelerate.state import AcceleratorState

from sepc_zoo.training import checkpoint
from sepc_zoo.training import trainer as engine
from sepc_zoo.training.checkpoint import RUN_FILE, STATE
from sepc_zoo.training.options import TrainOptions, read_options
from sepc_zoo.training.resilience.signals import Interrupted
from sepc_zoo.training.trainer import train

NOT_REPEATED = {"images_per_second", "memory_gib"}  # columns of log.csv

# A fresh process that has imported the library, and forks at each request.
SERVER = get_context("forkserver")
SERVER.set_forkserver_preload(["sepc_zoo.training.trainer"])


def options(data, output, **changes):
    """A run of two epochs, two steps each, unless ``changes`` say otherwise."""
    small = {
        "model": "retinanet_mnv4s_pconv",
        "model_kwargs": {"channels": 16, "neck": {"blocks": 1}},
        "image_size": (64, 64),
        "epochs": 2,
        "workers": 0,
        "cpu": True,
        "log_with": (),
    }
    return TrainOptions(**small | {"data": str(data), "output": str(output)} | changes)


def resume(run):
    return train(read_options(run), resume=True)


def read_log(run, name="log.csv"):
    with (Path(run) / name).open(newline="") as file:
        return list(csv.DictReader(file))


def read_losses(run):
    """The rows of the log, but for what another run of the same steps does not repeat."""
    return [{k: v for k, v in row.items() if k not in NOT_REPEATED} for row in read_log(run)]


def state_of(run):
    return torch.load(Path(run) / STATE / RUN_FILE, weights_only=True)


def copy_of(data, folder):
    return Path(shutil.copytree(data, folder / "data"))


def edit_json(path, edit):
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def before_step(monkeypatch, step, act):
    """Let ``act(run, batches)`` happen as a step begins."""
    train_step = engine.train_step

    def acting(run, batches):
        if run.progress.step + 1 == step:
            act(run, batches)
        return train_step(run, batches)

    monkeypatch.setattr(engine, "train_step", acting)


def interrupt_at(monkeypatch, step, number=signal.SIGTERM):
    """Send the signal while a step is being computed."""
    before_step(monkeypatch, step, lambda *_: os.kill(os.getpid(), number))


def crash_at(monkeypatch, step):
    def crash(*_):
        raise MemoryError

    before_step(monkeypatch, step, crash)


def start_process(options, moment=None, resumed=False):
    """A process of its own that trains; one that is interrupted has the exit status of shells."""
    process = SERVER.Process(target=_train, args=(options, moment, resumed))
    process.start()
    return process


def _train(options, moment, resumed):
    set_start_method("fork", force=True)  # for its workers, as where a run is started by hand
    AcceleratorState._reset_state(reset_partial_state=True)
    draw_nothing(lambda name: setattr(engine, name, lambda *_: None))
    if moment:
        kill_at(*moment)
    try:
        train(options, resume=resumed)
    except Interrupted as interrupted:
        sys.exit(interrupted.status)


def draw_nothing(replace):
    """Pictures take most of a tiny run's time."""
    for name in ("draw_samples", "plot_curves"):
        replace(name)


def kill_at(function, call, when):
    """SIGKILL this process at the n-th call of a function that ``engine`` or ``checkpoint`` calls.

    Args:
        when: "before" the call, "after" it, or "half": after the first half of a file.
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
