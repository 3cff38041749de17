"""Callbacks of a user, and what a run leaves as it was in the process that calls it."""

import signal
from threading import Thread

import pytest
import torch
from accelerate import Accelerator
from tiny_runs import StopAfter, options, read_losses, resume, state_of, totals, train_until

from sepc_zoo.training.callback import Callback, Stop
from sepc_zoo.training.checkpoint import ResumeError, load_state, save_state
from sepc_zoo.training.options import TrainError
from sepc_zoo.training.resilience.signals import SIGNALS, Interrupt
from sepc_zoo.training.trainer import train

pytestmark = pytest.mark.usefixtures("no_pictures")

MOMENTS = {name for name in vars(Callback) if not name.startswith("_")}


class Notes(Callback):
    """Notes each moment with the step that was made last."""

    def __init__(self):
        self.notes = []

    def __getattribute__(self, name):
        if name not in MOMENTS:
            return super().__getattribute__(name)
        return lambda run, *_: self.notes.append((name, run.progress.step))


def test_callbacks_are_called_at_each_moment_in_order(shapes, tmp_path):
    notes = Notes()
    train(options(shapes, tmp_path, epochs=1), callbacks=[notes])
    assert notes.notes == [
        *(("before_epoch", 0), ("before_step", 0), ("after_step", 1)),
        *(("before_step", 1), ("after_step", 2), ("after_save", 2)),
        *(("after_validation", 2), ("after_save", 2), ("after_epoch", 2)),
        ("after_training", 2),
    ]


def test_a_callback_stops_a_run_which_is_saved_and_can_go_on(shapes, tmp_path, capsys):
    train(options(shapes, tmp_path / "whole", log_interval=1))
    train(options(shapes, tmp_path / "run", log_interval=1), callbacks=[StopAfter(3)])
    said = capsys.readouterr().out
    assert "a callback has seen enough" in said
    assert f"saved after step 3; go on with --resume {tmp_path / 'run'}" in said
    assert state_of(tmp_path / "run")["progress"]["step"] == 3
    resume(tmp_path / "run")
    assert read_losses(tmp_path / "run") == read_losses(tmp_path / "whole")


class StopAtEpoch(Callback):
    def after_epoch(self, run):
        if run.progress.epoch == 1:
            raise Stop("one epoch is enough")


def test_a_callback_stops_a_run_after_an_epoch_which_is_not_repeated(shapes, tmp_path):
    metrics = train(options(shapes, tmp_path), callbacks=[StopAtEpoch()])
    assert metrics["AP"] >= 0
    assert state_of(tmp_path)["progress"]["epoch"] == 1


class StopAtAP(Callback):
    def after_validation(self, run, metrics):
        raise Stop(f"epoch {run.progress.epoch + 1} has AP {metrics['AP']}")


def test_a_run_that_stops_at_a_validation_keeps_its_figures(shapes, tmp_path):
    metrics = train(options(shapes, tmp_path), callbacks=[StopAtAP()])
    assert metrics["AP"] >= 0
    assert metrics["best_AP"] == state_of(tmp_path)["progress"]["best_ap"] == metrics["AP"]


def test_a_run_that_stops_before_its_first_validation_has_no_ap(shapes, tmp_path):
    metrics = train(options(shapes, tmp_path, max_steps=1), callbacks=[StopAfter(1)])
    assert metrics == {"best_AP": -1.0}


def test_two_callbacks_of_one_class_with_a_state_are_refused(shapes, tmp_path):
    with pytest.raises(TrainError, match="make a class for each"):
        train(options(shapes, tmp_path), callbacks=[CountSteps(), CountSteps()])


class CountSteps(Callback):
    def __init__(self):
        self.count = 0

    def after_step(self, *_):
        self.count += 1

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def test_the_state_of_a_callback_is_saved_with_the_run(shapes, tmp_path):
    asked, count = options(shapes, tmp_path), CountSteps()
    train_until(3, asked, callbacks=[CountSteps()])
    train(asked, resume=True, callbacks=[count])
    assert count.count == 4


@pytest.mark.parametrize(
    ("saved", "given", "problem"),
    [
        (["model", "CountSteps"], ["model"], "has the state of callback CountSteps: give it again"),
        (["model"], ["model", "A", "CountSteps"], "has no state of callback A, CountSteps: leave"),
    ],
)
def test_a_run_is_resumed_with_the_callbacks_that_have_a_state(saved, given, problem, tmp_path):
    save_state({name: CountSteps() for name in saved}, tmp_path)
    with pytest.raises(ResumeError, match=problem):
        load_state({name: CountSteps() for name in given}, tmp_path)


def in_thread(function):
    """What a function returns in a thread of its own."""
    results = []
    thread = Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    (result,) = results
    return result


def test_a_run_in_a_thread_is_that_of_the_main_thread(shapes, tmp_path):
    train(options(shapes, tmp_path / "main", log_interval=1))
    asked = options(shapes, tmp_path / "thread", log_interval=1, workers=1)
    assert in_thread(lambda: train(asked))["AP"] >= 0
    assert read_losses(tmp_path / "thread") == read_losses(tmp_path / "main")


def test_signals_are_left_alone_in_a_thread():
    def handlers():
        with Interrupt():
            return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    assert in_thread(handlers) == [signal.default_int_handler, signal.SIG_DFL]


def test_signal_handlers_are_set_once_a_run_and_not_once_a_batch(shapes, tmp_path, monkeypatch):
    numbers, set_handler = [], signal.signal

    def note(number, handler):
        numbers.append(number)
        return set_handler(number, handler)

    monkeypatch.setattr(signal, "signal", note)
    train(options(shapes, tmp_path, batch_size=1, val_interval=9))
    assert numbers == [*SIGNALS] * 2


def test_a_run_takes_no_notice_of_the_precision_of_another_accelerator(shapes, tmp_path):
    train(options(shapes, tmp_path / "alone", log_interval=1))
    assert Accelerator().mixed_precision == "no"
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
    try:
        theirs = Accelerator(mixed_precision="bf16")
        train(options(shapes, tmp_path / "beside", log_interval=1))
        assert theirs.mixed_precision == "bf16"
    finally:
        AcceleratorState._reset_state()
    assert read_losses(tmp_path / "beside") == read_losses(tmp_path / "alone")


def test_gradient_checkpointing_changes_no_loss(shapes, tmp_path):
    changes = {"log_interval": 1, "backbone_kwargs": {"drop_path_rate": 0.3}, "lr": 1e-3}
    for name, on in (("plain", False), ("checkpointed", True)):
        train(options(shapes, tmp_path / name, grad_checkpointing=on, freeze_bn=True, **changes))
    assert totals(tmp_path / "checkpointed") == pytest.approx(totals(tmp_path / "plain"), rel=1e-4)
    assert not torch.are_deterministic_algorithms_enabled()
