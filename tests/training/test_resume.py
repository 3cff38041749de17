import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_runs import (
    assert_same_weights,
    copy_of,
    draw_nothing,
    edit_json,
    interrupt_at,
    options,
    read_log,
    read_losses,
    resume,
    start_process,
    state_of,
    train_until,
    train_until_crash,
)

from sepc_zoo.cli.arguments import command_line
from sepc_zoo.factory import load_model
from sepc_zoo.training.checkpoint import PREVIOUS_FILE, STATE_FILE, ResumeError
from sepc_zoo.training.config_file import read_options
from sepc_zoo.training.options import TrainError
from sepc_zoo.training.resilience.signals import Interrupt, Interrupted
from sepc_zoo.training.trainer import train

# All options that draw random numbers or carry state from step to step.
WHOLE = {
    "batch_size": 1,
    "grad_accum_steps": 2,  # four steps an epoch
    "epochs": 3,
    "model_ema": True,
    "model_ema_decay": 0.9,
    "backbone_kwargs": {"drop_path_rate": 0.3},
    "color_jitter": True,
    "scale": (0.7, 1.3),
    "degrees": 10,
    "hue": 0.1,
    "blur": 0.5,
    "jpeg": 0.5,
    "warmup_steps": 2,
    "log_interval": 1,
    "save_interval": 3,
}
STEPS = range(1, 13)
STOPS = sorted(random.Random(0).sample(STEPS, 10))
quick_first = [
    pytest.param(step, marks=[] if step in STOPS[::6] else pytest.mark.slow) for step in STOPS
]

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def whole(shapes, tmp_path_factory):
    """A run without interruption."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train(options(shapes, folder, **WHOLE))
    return folder


@pytest.fixture(scope="module")
def stopped_once(shapes, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        train_until(3, options(shapes, run))
    return run


@pytest.fixture
def stopped(stopped_once, tmp_path):
    """A run that was stopped inside of its second epoch."""
    return shutil.copytree(stopped_once, tmp_path / "run")


def assert_same_run(run, other):
    """Check that the outputs of two runs are equal to the last bit."""
    ours, theirs = state_of(run), state_of(other)
    assert ours.keys() == theirs.keys()
    assert ours["progress"] == theirs["progress"]
    assert_same_weights(run, other, "MovingAverage", "optimizer")
    assert read_losses(run) == read_losses(other)
    assert read_log(run, "metrics.csv") == read_log(other, "metrics.csv")
    for name in ("last", "best"):
        last, other_last = (load_model(folder / name).state_dict() for folder in (run, other))
        torch.testing.assert_close(last, other_last, rtol=0, atol=0)
        for file in ("metrics.json", "detections.json"):
            assert (run / name / file).read_text() == (other / name / file).read_text()


def resumed(run):
    """Resume the run from other random numbers, up to its end."""
    torch.manual_seed(99)
    random.seed(99)
    resume(run)
    return run


@pytest.mark.parametrize("step", quick_first)
def test_a_run_resumes_after_sigterm_bit_for_bit(step, whole, shapes, tmp_path):
    asked = options(shapes, tmp_path, **WHOLE | {"workers": 2 * (step % 2)})
    train_until(step, asked)
    assert_same_run(resumed(tmp_path), whole)


@pytest.mark.parametrize(
    "changes",
    [
        {"repeat_factor": 1.0, "epochs": 1},
        {"class_weights": ("balanced",)},
        {"channels_last": True, "model_ema": True},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_run_with_other_options_resumes_bit_for_bit(changes, shapes, tmp_path):
    asked = {"batch_size": 2, "log_interval": 1} | changes
    train(options(shapes, tmp_path / "whole", **asked))
    assert state_of(tmp_path / "whole")["progress"]["step"] > 4
    train_until(3, options(shapes, tmp_path / "run", **asked))
    parts = ["MovingAverage"] * ("model_ema" in changes)
    assert_same_weights(resumed(tmp_path / "run"), tmp_path / "whole", "optimizer", *parts)
    assert read_losses(tmp_path / "run") == read_losses(tmp_path / "whole")


@pytest.mark.parametrize("step", quick_first)
def test_a_run_resumes_after_an_exception_bit_for_bit(step, whole, shapes, tmp_path):
    asked = options(shapes, tmp_path, **WHOLE | {"workers": 2 * (step % 2), "save_interval": 2})
    train_until_crash(step, asked)
    if step < 3:  # nothing was saved
        with pytest.raises(ResumeError, match="no state"):
            resume(tmp_path)
    else:
        assert_same_run(resumed(tmp_path), whole)


@pytest.mark.slow
@pytest.mark.parametrize("step", STOPS)
def test_a_run_resumes_after_sigkill_at_any_moment_bit_for_bit(step, whole, shapes, tmp_path):
    rng = random.Random(step)
    asked = options(shapes, tmp_path, **WHOLE | {"workers": 2 * (step % 2), "save_interval": 1})
    process = start_process(asked)
    deadline = time.monotonic() + 60
    while logged(tmp_path) < step and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.1))
    process.kill()
    process.join()
    at_least = logged(tmp_path) - 1  # the last row is written before its step is saved
    if at_least > 0:
        assert state_of(tmp_path)["progress"]["step"] >= at_least
        assert_same_run(resumed(tmp_path), whole)


def logged(run):
    file = run / "log.csv"
    rows = read_log(run) if file.exists() and file.stat().st_size else []
    return max((int(row["step"]) for row in rows if row["step"]), default=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "call", "when", "step"),
    [
        ("write_state", 3, "before", 2),
        ("write_state", 3, "half", 2),
        ("write_state", 3, "after", 2),  # not yet renamed
        ("save_model", 2, "after", 4),  # last, but not best
        ("save_state", 5, "before", 4),  # after validation
    ],
)
def test_a_run_resumes_after_sigkill_during_a_save_bit_for_bit(
    function, call, when, step, whole, shapes, tmp_path
):
    process = start_process(
        options(shapes, tmp_path, **WHOLE | {"save_interval": 1}), (function, call, when)
    )
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert state_of(tmp_path)["progress"]["step"] == step
    assert_same_run(resumed(tmp_path), whole)
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.slow
def test_the_number_of_workers_changes_nothing(whole, shapes, tmp_path):
    train(options(shapes, tmp_path, **WHOLE | {"workers": 2}))
    assert_same_run(tmp_path, whole)


def test_resuming_a_finished_run_changes_nothing(whole, tmp_path):
    run = shutil.copytree(whole, tmp_path / "run")
    before = (run / "log.csv").read_text()
    assert resume(run)["best_AP"] >= 0
    assert (run / "log.csv").read_text() == before


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_interrupted_run_is_saved_and_says_how_to_go_on(
    number, status, shapes, tmp_path, monkeypatch
):
    interrupt_at(monkeypatch, 1, number)
    how = re.escape(f"saved after step 1; go on with --resume {tmp_path}")
    with pytest.raises(Interrupted, match=how) as interrupted:
        train(options(shapes, tmp_path))
    assert interrupted.value.status == status
    assert (tmp_path / STATE_FILE).is_file()


def test_an_interrupt_before_the_first_row_keeps_the_columns_of_the_log(
    shapes, tmp_path, monkeypatch
):
    interrupt_at(monkeypatch, 2)
    with pytest.raises(Interrupted):
        train(options(shapes, tmp_path))
    resume(tmp_path)
    rows = read_log(tmp_path)
    assert [row["step"] for row in rows] == ["2", "2", "4", "4"]
    assert rows[2]["loss_cls"]


def test_signals_have_their_usual_effect_after_a_run():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.signal == signal.SIGTERM
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_resuming_drops_the_log_rows_after_the_last_save(shapes, tmp_path):
    changes = {"log_interval": 1, "epochs": 3}
    train_until_crash(4, options(shapes, tmp_path, **changes))
    resume(tmp_path)
    assert [row["step"] for row in read_log(tmp_path) if row["loss"]] == list("123456")


def test_a_run_resumes_in_a_folder_that_was_moved(stopped, tmp_path):
    stopped.rename(tmp_path / "new")
    resume(tmp_path / "new")
    assert state_of(tmp_path / "new")["progress"]["step"] == 4
    assert not stopped.exists()


def test_a_folder_without_a_run_cannot_be_resumed(shapes, tmp_path):
    with pytest.raises(TrainError, match="no run folder to resume"):
        read_options(tmp_path)
    (tmp_path / "config.yaml").write_text("data: [")
    with pytest.raises(TrainError, match="no run folder to resume"):
        read_options(tmp_path)
    with pytest.raises(ResumeError, match="no state to resume from"):
        train(options(shapes, tmp_path), resume=True)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_the_process_group_ends_in_a_saved_run(number, status, shapes, tmp_path):
    """A terminal, ``timeout`` and Slurm send it so: the workers get it too."""
    flags = command_line(options(shapes, tmp_path / "run", epochs=500, workers=2))
    command = [sys.executable, "-m", "sepc_zoo", "train", *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "log.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status
    assert f"go on with --resume {tmp_path / 'run'}" in errors
    assert "Traceback" not in errors


def test_temporary_files_of_a_killed_writer_are_removed(stopped):
    (stopped / "last" / ".0123abcd.model.safetensors").write_bytes(b"half")
    resume(stopped)
    assert not list(stopped.rglob(".*"))


def test_log_rows_that_were_cut_off_are_dropped(stopped):
    with (stopped / "log.csv").open("a") as file:
        file.write("4,2,0.00")
    (stopped / "metrics.csv").write_text("step,epo")
    resume(stopped)
    assert [row["step"] for row in read_log(stopped)] == ["2", "2", "3", "4", "4"]
    assert [row["step"] for row in read_log(stopped, "metrics.csv")] == ["4"]


def test_zero_bytes_at_the_end_of_a_log_are_dropped(stopped):
    """A power cut leaves them in place of the last rows."""
    for name in ("log.csv", "metrics.csv"):
        with (stopped / name).open("ab") as file:
            file.write(bytes(3000))
    resume(stopped)
    assert [row["step"] for row in read_log(stopped)] == ["2", "2", "3", "4", "4"]
    assert [row["step"] for row in read_log(stopped, "metrics.csv")] == ["2", "4"]


def test_a_state_with_code_is_refused_and_its_code_is_not_run(stopped, tmp_path):
    class Code:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "was run"),)

    torch.save({"model": Code()}, stopped / STATE_FILE)
    with pytest.raises(
        ResumeError, match=r"state\.pt cannot be resumed from: it holds code.*--model"
    ):
        resume(stopped)
    assert not (tmp_path / "was run").exists()


def cut(size):
    return lambda file: file.write_bytes(file.read_bytes()[:size])


def blank(file):
    """What a power cut may leave of a file: its size alone."""
    file.write_bytes(bytes(file.stat().st_size))


DAMAGES = [Path.unlink, cut(0), cut(100), cut(5000), blank]


@pytest.mark.parametrize("damage", DAMAGES, ids=["gone", "empty", "start", "half", "blank"])
def test_a_damaged_state_is_replaced_by_the_one_before(damage, stopped_once, stopped, capsys):
    damage(stopped / STATE_FILE)
    resume(stopped)
    said = capsys.readouterr().out
    assert f"{STATE_FILE} cannot be resumed from" in said
    assert f"took {stopped / PREVIOUS_FILE} instead" in said
    other = shutil.copytree(stopped_once, stopped.with_name("other"))
    resume(other)
    assert_same_weights(stopped, other)


@pytest.mark.parametrize("damage", DAMAGES[1:], ids=["empty", "start", "half", "blank"])
def test_two_damaged_states_are_refused_by_name(damage, stopped):
    for name in (STATE_FILE, PREVIOUS_FILE):
        damage(stopped / name)
    with pytest.raises(ResumeError, match=r"previous\.pt cannot be resumed from.*--model"):
        resume(stopped)


def test_a_state_of_another_model_is_refused(stopped):
    edit_json(stopped / "model.json", lambda content: content["model_args"].update(channels=24))
    with pytest.raises(ResumeError, match="does not fit the run"):
        resume(stopped)


@pytest.mark.parametrize("content", [None, "{", "{}"], ids=["missing", "no JSON", "empty"])
def test_a_run_without_its_models_config_is_refused(content, stopped):
    file = stopped / "model.json"
    file.unlink()
    if content:
        file.write_text(content)
    with pytest.raises(ResumeError, match=r"model\.json is needed to resume.*--model"):
        resume(stopped)


def test_other_data_is_refused(shapes, tmp_path):
    """The number of batches is the same, as the last image of nine is dropped."""
    data = copy_of(shapes, tmp_path)
    train_until(1, options(data, tmp_path / "run"))

    def add_image(content):
        content["images"].append(content["images"][0] | {"id": 99})

    edit_json(data / "annotations" / "instances_train.json", add_image)
    with pytest.raises(ResumeError, match="had 8 images when the run was saved, now it has 9"):
        resume(tmp_path / "run")


def swap_classes(content):
    first, second, *_ = content["categories"]
    first["name"], second["name"] = second["name"], first["name"]


def swap_labels(content):
    for box in content["annotations"]:
        box["category_id"] = {1: 2, 2: 1}.get(box["category_id"], box["category_id"])


def reverse_images(content):
    content["images"].reverse()


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("edit", [swap_classes, swap_labels, reverse_images])
def test_other_data_of_the_same_length_are_refused(edit, split, stopped, shapes, tmp_path):
    data = copy_of(shapes, tmp_path)
    edit_json(data / "annotations" / f"instances_{split}.json", edit)
    with pytest.raises(ResumeError, match=f"the {split} split is not the one that the run was"):
        train(replace(read_options(stopped), data=str(data)), resume=True)


FREE = {"workers": 1, "log_interval": 2, "save_interval": 1, "max_faults": 3, "patience": 9}


def test_a_resumed_run_may_change_what_its_numbers_do_not_depend_on(stopped_once, stopped, shapes):
    other = shutil.copytree(stopped_once, stopped.with_name("other"))
    data = copy_of(shapes, stopped.parent)  # the data set was moved
    train(replace(read_options(stopped), data=str(data), **FREE), resume=True)
    resume(other)
    assert_same_weights(stopped, other)
    again = read_options(stopped)
    assert again.data == (str(data),)
    assert {name: getattr(again, name) for name in FREE} == FREE


@pytest.mark.parametrize(
    ("change", "flag"),
    [({"lr": 0.1}, "--lr"), ({"batch_size": 2}, "--batch-size"), ({"amp": "bf16"}, "--amp")],
)
def test_a_resumed_run_may_not_change_what_its_numbers_depend_on(change, flag, stopped):
    with pytest.raises(TrainError, match=f"numbers depend on them, but {flag} would change"):
        train(replace(read_options(stopped), **change), resume=True)


def rates(run):
    """The learning rate by step, of rows with losses."""
    return {int(row["step"]): float(row["lr"]) for row in read_log(run) if row["lr"]}


@pytest.mark.parametrize("length", [{"epochs": 4}, {"epochs": None, "max_steps": 7}])
def test_a_finished_run_that_gets_longer_follows_the_schedule_of_the_longer_run(
    length, shapes, tmp_path
):
    """Seven steps end inside of an epoch."""
    asked = {"log_interval": 1, "warmup_steps": 0}
    run, longer = tmp_path / "run", tmp_path / "longer"
    train(options(shapes, run, **asked, epochs=None, max_steps=3))
    train(replace(read_options(run), **{"max_steps": None} | length), resume=True)
    train(options(shapes, longer, **asked, **length))
    assert rates(run).keys() == rates(longer).keys()
    assert {s: lr for s, lr in rates(run).items() if s > 4} == pytest.approx(
        {s: lr for s, lr in rates(longer).items() if s > 4}
    )
    assert [row["epoch"] for row in read_log(run, "metrics.csv")] == ["1", "2", "3", "4"]


def test_a_run_cannot_become_shorter_than_it_is(stopped):
    with pytest.raises(ResumeError, match="has made 3 steps, and is to make 2: give more --epochs"):
        train(replace(read_options(stopped), epochs=1), resume=True)


def test_a_run_resumes_from_another_working_folder(shapes, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(shapes.parent)
    train_until(1, options(shapes.name, tmp_path / "run"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    resume("../run")
    assert state_of(tmp_path / "run")["progress"]["step"] == 4


def test_another_number_of_processes_is_refused(stopped):
    state = state_of(stopped)
    torch.save(state | {"random": 2 * state["random"]}, stopped / STATE_FILE)
    with pytest.raises(ResumeError, match=r"saved by 2 processes.*there are 1"):
        resume(stopped)


def test_a_refused_state_stays_as_it_is(stopped):
    before = {p: p.read_bytes() for p in stopped.rglob("*") if p.is_file()}
    edit_json(stopped / "model.json", lambda content: content["model_args"].update(channels=24))
    with pytest.raises(ResumeError):
        resume(stopped)
    after = {p: p.read_bytes() for p in stopped.rglob("*") if p.is_file()}
    before.pop(stopped / "model.json")
    assert {p: content for p, content in after.items() if p in before} == before
