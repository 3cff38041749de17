"""Faults during a run: it survives them, or ends saved and says why."""

import copy
import json
import math
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import (
    assert_same_weights,
    before_step,
    copy_of,
    interrupt_at,
    options,
    read_log,
    read_losses,
    resume,
    state_of,
)

from sepc_zoo.cli import main
from sepc_zoo.cli.arguments import command_line
from sepc_zoo.data import resilient_loader, write_shapes
from sepc_zoo.factory import load_model
from sepc_zoo.inference.drawing import contact_sheet
from sepc_zoo.training import callbacks
from sepc_zoo.training import trainer as engine
from sepc_zoo.training.accelerator import make_accelerator
from sepc_zoo.training.callbacks import DrawSamples, MovingAverage
from sepc_zoo.training.checkpoint import STATE_FILE
from sepc_zoo.training.csv_file import CsvFile
from sepc_zoo.training.logging import Log
from sepc_zoo.training.options import TrainError
from sepc_zoo.training.resilience import faults as faults_module
from sepc_zoo.training.resilience.faults import FaultError
from sepc_zoo.training.resilience.signals import Interrupted
from sepc_zoo.training.trainer import train

pytestmark = pytest.mark.usefixtures("no_pictures")
draw_samples = DrawSamples.after_validation


def spoil_image(_, batches):
    batches[0].images[0, 0, 0, 0] = math.nan


def spoil_gradient(run, _):
    """The next gradient alone is infinite, the loss is not."""
    parameter = next(run.detector.head.parameters())

    def once(gradient):
        handle.remove()
        return gradient * math.inf

    handle = parameter.register_hook(once)


def keep_weights(kept):
    def keep(run, _):
        (average,) = (c for c in run.callbacks if isinstance(c, MovingAverage))
        parts = (run.detector, average, run.optimizer)
        model, ema, optimizer = (copy.deepcopy(part.state_dict()) for part in parts)
        kept.append((model, ema, optimizer["state"]))

    return keep


@pytest.mark.parametrize("spoil", [spoil_image, spoil_gradient])
def test_a_step_that_is_not_finite_changes_no_weights_and_the_run_goes_on(
    spoil, shapes, tmp_path, monkeypatch, capsys
):
    weights = []
    before_step(monkeypatch, 2, spoil)
    for step in (2, 3):
        before_step(monkeypatch, step, keep_weights(weights))
    assert train(options(shapes, tmp_path, model_ema=True))["AP"] >= 0
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=0)
    for name in ("last", "best"):
        assert all(v.isfinite().all() for v in load_model(tmp_path / name).state_dict().values())
    assert all(math.isfinite(float(row["loss"])) for row in read_log(tmp_path) if row["loss"])
    assert re.search(r"survived +skipped step: 1", capsys.readouterr().out)


def test_the_batch_of_a_skipped_step_is_named_and_kept(shapes, tmp_path, monkeypatch):
    before_step(monkeypatch, 2, spoil_image)
    train(options(shapes, tmp_path))
    file = tmp_path / "skipped" / "step_000002" / "process_0_batch_0.safetensors"
    batch, names = load_file(file), json.loads(file.with_suffix(".json").read_text())
    assert batch["images"].shape == (4, 3, 64, 64)
    assert batch["images"].isnan().sum() == 1
    assert {f"{part}.{i}" for part in ("boxes", "labels") for i in range(4)} < batch.keys()
    (row,) = read_log(tmp_path, "faults.csv")
    assert (row["step"], row["kind"]) == ("2", "skipped step")
    assert str(names["image_ids"]) in row["text"]
    assert str(file.parent) in row["text"]
    assert "loss_cls nan" in row["text"]


def test_batches_of_accumulated_steps_are_all_kept(shapes, tmp_path, monkeypatch):
    before_step(monkeypatch, 1, spoil_image)
    train(options(shapes, tmp_path, batch_size=2, grad_accum_steps=2, max_steps=2, epochs=None))
    kept = (tmp_path / "skipped" / "step_000001").iterdir()
    assert sorted(p.name for p in kept if p.suffix == ".json") == [
        "process_0_batch_0.json",
        "process_0_batch_1.json",
    ]


def test_skipped_batches_do_not_fill_the_disk(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(faults_module, "MAX_KEPT_STEPS", 1)
    for step in (1, 3):
        before_step(monkeypatch, step, spoil_image)
    train(options(shapes, tmp_path))
    assert [p.name for p in (tmp_path / "skipped").iterdir()] == ["step_000001"]
    assert [row["step"] for row in read_log(tmp_path, "faults.csv")] == ["1", "3"]


def test_ten_skipped_steps_in_a_row_end_the_run_which_can_resume(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(faults_module, "MAX_KEPT_STEPS", 1)
    asked = options(shapes, tmp_path, max_steps=12, epochs=None, val_interval=20)
    with monkeypatch.context() as patch:
        for step in range(2, 12):
            before_step(patch, step, spoil_image)
        with pytest.raises(TrainError) as error:
            train(asked)
    message = str(error.value)
    assert "10 steps in a row were skipped" in message
    assert "lower --lr or --clip-grad" in message
    assert f"saved after step 11; go on with --resume {tmp_path}" in message
    assert resume(tmp_path)["AP"] >= 0
    assert state_of(tmp_path)["progress"]["skipped_in_a_row"] == 0


def test_nine_skipped_steps_in_a_row_are_survived(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(faults_module, "MAX_KEPT_STEPS", 0)
    for step in (*range(1, 10), *range(11, 20)):
        before_step(monkeypatch, step, spoil_image)
    train(options(shapes, tmp_path, max_steps=20, epochs=None, val_interval=20))
    assert len(read_log(tmp_path, "faults.csv")) == 18


def delete(path):
    path.unlink()


def truncate(path):
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    ("split", "damage"),
    [
        ("train", truncate),
        ("val", delete),
        pytest.param("train", delete, marks=pytest.mark.slow),
        pytest.param("val", truncate, marks=pytest.mark.slow),
    ],
)
def test_an_image_that_vanishes_is_counted_once_and_survived(
    split, damage, shapes, tmp_path, monkeypatch, capsys
):
    data = copy_of(shapes, tmp_path)
    path = sorted((data / split).iterdir())[0]
    before_step(monkeypatch, 1, lambda *_: damage(path))
    train(options(data, tmp_path / "run", epochs=3))
    (row,) = read_log(tmp_path / "run", "faults.csv")
    assert row["kind"] == "unreadable image"
    assert path.name in row["text"]
    assert re.search(r"survived +unreadable image: 1", capsys.readouterr().out)


def test_samples_are_drawn_without_unreadable_images(shapes, tmp_path, monkeypatch):
    data = copy_of(shapes, tmp_path)
    first, second, *_ = sorted((data / "val").iterdir())
    counts = []

    def count(images, **how):
        counts.append(len(images))
        return contact_sheet(images, **how)

    monkeypatch.setattr(DrawSamples, "after_validation", draw_samples)
    monkeypatch.setattr(callbacks, "contact_sheet", count)
    before_step(monkeypatch, 1, lambda *_: (first.unlink(), truncate(second)))
    train(options(data, tmp_path / "run"))
    assert counts == [2 * 2, 2 * 2]  # with their ground truth


def test_a_data_set_that_vanishes_ends_the_run_saved_and_with_status_2(
    shapes, tmp_path, monkeypatch, capsys
):
    data, run = copy_of(shapes, tmp_path), tmp_path / "run"
    away = tmp_path / "away"
    with monkeypatch.context() as patch:
        before_step(patch, 3, lambda *_: data.rename(away))
        asked = options(data, run, epochs=4, batch_size=1, max_faults=3)
        patch.setattr("sepc_zoo.api.given.options_of_run", lambda *_: asked)
        assert main(["train", "--data", str(data)]) == 2
    message = capsys.readouterr().err
    assert "images that can no longer be read: 4" in message
    assert "Is the data set still there?" in message
    assert f"go on with --resume {run}" in message
    assert "Traceback" not in message
    away.rename(data)
    assert resume(run)["AP"] >= 0


def test_metrics_of_a_validation_without_its_images_are_not_kept(shapes, tmp_path, monkeypatch):
    data, run = copy_of(shapes, tmp_path), tmp_path / "run"
    away = tmp_path / "away"
    with monkeypatch.context() as patch:
        before_step(patch, 4, lambda *_: (data / "val").rename(away))
        with pytest.raises(TrainError, match="saved after step 4; go on"):
            train(options(data, run, max_faults=3))
    assert [row["epoch"] for row in read_log(run, "metrics.csv")] == ["1"]
    away.rename(data / "val")
    resume(run)
    assert [row["epoch"] for row in read_log(run, "metrics.csv")] == ["1", "2"]


def kill_a_worker(*_):
    """Kill the newest worker; those of other loaders may still be ending."""
    newest = max(child.pid for child in multiprocessing.active_children())
    os.kill(newest, signal.SIGKILL)


@pytest.mark.slow
def test_a_run_in_which_workers_die_equals_an_undisturbed_one(
    shapes, tmp_path, monkeypatch, capsys
):
    changes = {"workers": 2, "log_interval": 1, "batch_size": 1, "epochs": 3, "val_interval": 3}
    train(options(shapes, tmp_path / "whole", **changes))
    capsys.readouterr()
    for step in (2, 9):
        before_step(monkeypatch, step, kill_a_worker)
    train(options(shapes, tmp_path / "run", **changes))
    assert read_losses(tmp_path / "run") == read_losses(tmp_path / "whole")
    assert_same_weights(tmp_path / "run", tmp_path / "whole")
    rows = read_log(tmp_path / "run", "faults.csv")
    assert [row["kind"] for row in rows] == ["dead worker"] * 2
    assert re.search(r"survived +dead worker: 2", capsys.readouterr().out)


@pytest.mark.slow
def test_too_many_dead_workers_end_the_run_saved_and_with_advice(shapes, tmp_path, monkeypatch):
    changes = {"workers": 1, "batch_size": 1, "max_faults": 0}
    before_step(monkeypatch, 2, kill_a_worker)
    with pytest.raises(TrainError, match=r"workers that died: 1(.|\n)*Fewer --workers") as error:
        train(options(shapes, tmp_path, **changes))
    saved = state_of(tmp_path)["progress"]["step"]
    assert saved >= 2
    assert f"saved after step {saved}; go on with --resume {tmp_path}" in str(error.value)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("DataLoader worker (pid 1) is killed"), ConnectionResetError(), EOFError()],
)
def test_a_worker_that_dies_while_it_hands_a_batch_over_is_replaced(monkeypatch, error):
    class Loader:
        def __iter__(self):
            yield []
            raise error

    monkeypatch.setattr(resilient_loader, "skip_first_batches", lambda _, start: [[]] * (3 - start))
    deaths = []
    assert len(list(resilient_loader.ResilientLoader(Loader(), deaths.append))) == 3
    assert len(deaths) == 1


def test_a_connection_that_breaks_in_a_living_worker_is_no_death():
    class Loader:
        def __iter__(self):
            yield []
            raise ConnectionResetError(
                "Caught ConnectionResetError in DataLoader worker process 0."
            )

    with pytest.raises(ConnectionResetError):
        list(resilient_loader.ResilientLoader(Loader(), pytest.fail))


def test_workers_that_die_before_any_step_end_the_run(tmp_path):
    faults = faults_module.Faults(tmp_path, 1000, Log(make_accelerator(None, "cpu"), tmp_path))
    for _ in range(faults_module.MAX_DEAD_AT_ONCE):
        faults.add_dead_worker("DataLoader worker (pid 1) is killed")
    with pytest.raises(FaultError, match="new workers die as soon as they start"):
        faults.add_dead_worker("DataLoader worker (pid 1) is killed")


def test_faults_before_a_run_was_resumed_count_too(shapes, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        before_step(patch, 1, spoil_image)
        interrupt_at(patch, 2)
        with pytest.raises(Interrupted):
            train(options(shapes, tmp_path))
    before_step(monkeypatch, 3, spoil_image)
    resume(tmp_path)
    assert re.search(r"survived +skipped step: 2", capsys.readouterr().out)


@pytest.fixture
def disk(tmp_path):
    """An empty disk of 64 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this user cannot mount a disk to fill")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk):
    """Fill the disk to the last byte."""
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(2**16)):
                pass
        except OSError:
            pass


def at_call(monkeypatch, name, call, act):
    """Let ``act()`` happen before the n-th call of a function of the engine."""
    original, calls = getattr(engine, name), []

    def acting(*args, **kwargs):
        calls.append(name)
        if len(calls) == call:
            act()
        return original(*args, **kwargs)

    monkeypatch.setattr(engine, name, acting)


SAVES_OFTEN = {"log_interval": 1, "save_interval": 1, "log_with": ("tensorboard",)}


@pytest.fixture(scope="module")
def whole(shapes, tmp_path_factory):
    """A run without faults."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train(options(shapes, folder, **SAVES_OFTEN))
    return folder


def test_a_run_without_faults_has_no_table_of_them(whole):
    assert not (whole / "faults.csv").exists()


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("save_state", 1),
        ("save_model", 2),
        *(
            pytest.param(*when, marks=pytest.mark.slow)
            for when in (("save_state", 4), ("save_model", 1), ("write_json", 5))
        ),
    ],
)
def test_a_full_disk_ends_a_run_that_can_resume_when_there_is_space(
    name, call, disk, whole, shapes, monkeypatch
):
    run = disk / "run"
    with monkeypatch.context() as patch:
        at_call(patch, name, call, lambda: fill(disk))
        with pytest.raises(TrainError, match=r"the run cannot go on: .*No space left") as error:
            train(options(shapes, run, **SAVES_OFTEN))
    message = str(error.value)
    assert len(message.splitlines()) == 2
    (disk / "filler").unlink()
    if "nothing was saved yet" in message:
        train(options(shapes, run, **SAVES_OFTEN))
    else:
        assert f"go on with --resume {run}" in message
        resume(run)
    assert read_losses(run) == read_losses(whole)
    assert_same_weights(run, whole)
    assert not list(run.rglob(".*"))


def test_a_disk_that_is_full_at_the_start_is_reported(disk, shapes):
    fill(disk)
    with pytest.raises(TrainError, match=r"No space left(.|\n)*nothing was saved yet"):
        train(options(shapes, disk / "run"))


@pytest.fixture
def long_epoch(tmp_path):
    """Options of a run that writes only its log for 64 steps."""
    data = write_shapes(tmp_path / "data", train=64, val=1, size=(64, 64))
    return {"data": str(data), "batch_size": 1, "epochs": 1, "log_interval": 1}


def test_a_log_that_cannot_grow_ends_the_run(disk, long_epoch, monkeypatch):
    before_step(monkeypatch, 2, lambda *_: fill(disk))
    with pytest.raises(TrainError, match=r"cannot go on: .*No space left.*\nnothing was saved yet"):
        train(options(output=disk / "run", **long_epoch))
    assert 2 < len(read_log(disk / "run")) < 64


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_tracker_that_cannot_write_ends_the_run_without_a_traceback(
    disk, long_epoch, monkeypatch
):
    before_step(monkeypatch, 2, lambda *_: fill(disk))
    monkeypatch.setattr(CsvFile, "append", lambda *_: None)  # so that the log is not the first
    with pytest.raises(TrainError, match=r"cannot go on: .*No space left.*\nnothing was saved yet"):
        train(options(output=disk / "run", log_with=("tensorboard",), **long_epoch))


def test_a_state_that_cannot_be_written_whole_leaves_the_one_before(shapes, tmp_path, monkeypatch):
    """Files may not grow beyond a size, as on a disk with a quota."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    at_call(
        monkeypatch,
        "save_state",
        3,
        lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, most)),
    )
    try:
        with pytest.raises(TrainError, match="state of the run cannot be written") as error:
            train(options(shapes, tmp_path, save_interval=1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    step = state_of(tmp_path)["progress"]["step"]
    assert f"saved after step {step}; go on" in str(error.value)
    assert [p.name for p in tmp_path.iterdir() if "state" in p.name] == [STATE_FILE]


def test_an_output_that_cannot_be_written_is_reported_without_a_traceback(shapes, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    output = tmp_path / "file" / "run"
    assert main(["train", *command_line(options(shapes, output))]) == 2
    message = capsys.readouterr().err
    assert str(output) in message
    assert "no folder to write to" in message
    assert "Traceback" not in message
