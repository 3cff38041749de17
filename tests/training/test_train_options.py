"""Single options of a run."""

import math
import os
import re
import time
from itertools import pairwise

import pytest
import torch
from accelerate.tracking import GeneralTracker
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import (
    before_step,
    crash_at,
    interrupt_at,
    options,
    read_log,
    read_losses,
    resume,
    state_of,
    totals,
    train_until,
    train_until_crash,
)
from torch import nn

from sepc_zoo.checkpoints.folder import save_model
from sepc_zoo.checkpoints.hub import HubError
from sepc_zoo.cli import main
from sepc_zoo.config import ConfigError
from sepc_zoo.data import write_shapes
from sepc_zoo.data.sampling import epoch_length, repeat_factors
from sepc_zoo.factory import create_model, load_model
from sepc_zoo.training import accelerator as accelerator_module
from sepc_zoo.training import dry_run
from sepc_zoo.training import run as run_module
from sepc_zoo.training.config_file import read_options
from sepc_zoo.training.dry_run import forecast, settle_batch_size
from sepc_zoo.training.inputs import class_changes
from sepc_zoo.training.options import TrainError
from sepc_zoo.training.recipes import freeze_stages
from sepc_zoo.training.resilience.signals import Interrupted
from sepc_zoo.training.run import Run
from sepc_zoo.training.summary import describe
from sepc_zoo.training.trainer import train

pytestmark = pytest.mark.usefixtures("no_pictures")

FLAGS = ["--model", "retinanet_mnv4s_pconv", "--model-kwargs", "channels=16", "neck.blocks=1"]
FLAGS += ["--image-size", "64", "64", "--device", "cpu", "--workers", "0"]


# A model that finds nothing: no validation has a better AP than the first.
POOR = {"model_kwargs": {"channels": 16, "postprocess": {"score_threshold": 1.0}}, "epochs": 9}


def epochs_of(run):
    return [int(row["epoch"]) for row in read_log(run, "metrics.csv")]


def test_patience_ends_a_run_that_gets_no_better(shapes, tmp_path, monkeypatch, capsys):
    def see_a_better_ap(run, _):
        run.progress.best_epoch = 2

    before_step(monkeypatch, 5, see_a_better_ap)  # as the third epoch begins
    train(options(shapes, tmp_path, patience=2, **POOR))
    assert epochs_of(tmp_path) == [1, 2, 3, 4]
    assert "no better AP since epoch 2: stopped early" in capsys.readouterr().out


def test_patience_counts_validations_rather_than_epochs(shapes, tmp_path):
    train(options(shapes, tmp_path, val_interval=2, patience=2, **POOR))
    assert epochs_of(tmp_path) == [2, 4, 6]


def test_a_run_that_stopped_early_stays_stopped(shapes, tmp_path):
    train(options(shapes, tmp_path, patience=1, **POOR))
    resume(tmp_path)
    assert epochs_of(tmp_path) == [1, 2]


def test_a_dry_run_writes_nothing(shapes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["--data", str(shapes), *FLAGS, "--scale", "1", "1", "--dry-run"]
    assert main(["train", *flags]) == 0
    assert main(["train", *flags, "--output", "somewhere/else"]) == 0
    assert not list(tmp_path.iterdir())
    said = capsys.readouterr().out
    assert re.search(r"memory: \d+\.\d GiB of \d+", said)
    assert "with 4 images of 64x64" in said
    assert re.search(r"the whole run: about \d+:\d\d:\d\d", said)


def test_repeated_classes_are_described_before_a_run(shapes, tmp_path, capsys):
    assert describe(Run(options(shapes, tmp_path)))["repeated"] == ""
    run = Run(options(shapes, tmp_path, repeat_factor=1.0))
    of_class, of_image = repeat_factors(run.train_data, 1.0)
    factor, name = max(zip(of_class.tolist(), run.detector.config.label_names, strict=True))
    text = describe(run)["repeated"]
    assert f"({name} x{factor:.2f}" in text
    assert text.endswith(f"; {epoch_length(of_image)} images in an epoch")
    assert run.steps_per_epoch == epoch_length(of_image) // 4  # the last batch is dropped
    main(["train", "--data", str(shapes), *FLAGS, "--dry-run", "--repeat-factor", "1"])
    assert f"repeated: {text}" in capsys.readouterr().out


def test_a_dry_run_measures_the_largest_batch(tmp_path):
    data = write_shapes(tmp_path / "data", train=8, val=2, size=(64, 96))
    plain = {"batch_size": 2, "image_size": (64, 128), "scale": (1, 1)}
    will = forecast(options(data, tmp_path / "run", **plain))
    assert will.images == (2, 64, 96)
    assert 0 < will.memory < will.available_memory
    assert min(will.step_seconds, will.read_seconds, will.validation_seconds) > 0


def test_fitted_anchors_are_those_of_the_run_and_of_the_resumed_one(shapes, tmp_path, capsys):
    train(options(shapes, tmp_path, max_steps=1, auto_anchors=True))
    fitted = load_model(tmp_path / "last").config.anchors
    assert fitted.base_scale < 4
    assert f"anchors.base_scale={fitted.base_scale:g}" in capsys.readouterr().out
    resumed = Run(read_options(tmp_path), resume=True)
    assert resumed.detector.config.anchors == fitted


def test_an_automatic_batch_size_is_a_number_in_the_run(shapes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dry_run, "MIN_STEPS", 2)
    train(options(shapes, tmp_path, max_steps=1, batch_size="auto"))
    assert "batch size: 4" in capsys.readouterr().out  # 8 images
    assert read_options(tmp_path).batch_size == 4
    assert read_options(tmp_path).lr == Run(options(shapes, tmp_path / "x")).recipe.lr


@pytest.fixture
def settled(shapes, tmp_path, monkeypatch):
    """From a function ``step(size)`` in place of a step to the settled batch size."""

    def settle(step, min_steps=1 / 4):
        monkeypatch.setattr(dry_run, "MIN_STEPS", min_steps)
        monkeypatch.setattr(dry_run, "largest_batch", lambda _run, size: size)
        monkeypatch.setattr(dry_run, "make_step", lambda _run, size: step(size))
        return settle_batch_size(options(shapes, tmp_path, batch_size="auto")).batch_size

    return settle


@pytest.mark.parametrize(
    ("fitting", "min_steps", "number", "reason"),
    [
        (1, 1 / 4, 1, "not fit into the memory"),
        (3, 1 / 4, 2, "not fit into the memory"),
        (100, 1 / 4, 16, "make a CPU no faster"),
        (100, 1, 8, "leave fewer than 1 steps in an epoch"),
        (100, 20, 1, "leave fewer than 20 steps in an epoch"),
    ],
)
def test_the_largest_batch_that_fits_is_found_and_its_reason_told(
    fitting, min_steps, number, reason, settled, capsys
):
    def step(size):
        if size > fitting:
            raise torch.OutOfMemoryError("no memory")

    assert settled(step, min_steps) == number
    assert f"batch size: {number}; more would {reason}" in capsys.readouterr().out


def test_a_batch_is_not_tried_where_its_memory_is_not_there(settled, monkeypatch):
    used = [1.0]  # GiB

    def step(size):
        assert size <= 2
        used[0] = 1.0 + size

    monkeypatch.setattr(dry_run, "peak_memory", lambda _device: used[0])
    monkeypatch.setattr(dry_run, "free_memory", lambda _device: 5.0)  # four images need all of it
    assert settled(step) == 2


def test_an_image_that_does_not_fit_is_told(settled):
    def step(_):
        raise torch.OutOfMemoryError("no memory")

    with pytest.raises(TrainError, match="not even one image fits"):
        settled(step)


@pytest.mark.slow
def test_a_dry_run_forecasts_the_time_of_the_run(shapes, tmp_path):
    asked = options(shapes, tmp_path, epochs=12, val_interval=4)
    will = forecast(asked).run_seconds
    train(asked)
    rows = [row for row in read_log(tmp_path) if row["loss"]]
    took = sum(8 / float(row["images_per_second"]) for row in rows)
    assert took / 4 < will < took * 4  # other work on the machine comes and goes


def scalars(run):
    events = EventAccumulator(str(run / "tracking")).Reload()
    return {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}


def await_next_second():
    """TensorBoard reads the files of a process in their order only if each has its own second."""
    time.sleep(1.05 - time.time() % 1)


def test_tensorboard_has_the_log(shapes, tmp_path):
    train(options(shapes, tmp_path, log_interval=1, log_with=("tensorboard",)))
    events = scalars(tmp_path)
    losses = [(int(r["step"]), float(r["loss"])) for r in read_log(tmp_path) if r["loss"]]
    assert [event.step for event in events["train/loss"]] == [1, 2, 3, 4]
    assert [(e.step, e.value) for e in events["train/loss"]] == [
        (step, pytest.approx(loss)) for step, loss in losses
    ]
    assert [event.step for event in events["val/AP"]] == [2, 4]
    assert "val/AP star" in events


def test_tensorboard_has_no_step_twice_after_a_run_was_resumed(shapes, tmp_path, monkeypatch):
    changes = {"log_interval": 1, "log_with": ("tensorboard",), "epochs": 4}
    with monkeypatch.context() as patch:
        crash_at(patch, 8)  # steps 7 and 8 are made again
        with pytest.raises(MemoryError):
            train(options(shapes, tmp_path, **changes))
    await_next_second()
    with monkeypatch.context() as patch:
        interrupt_at(patch, 7)
        with pytest.raises(Interrupted):
            resume(tmp_path)
    await_next_second()
    resume(tmp_path)
    events = scalars(tmp_path)
    assert [event.step for event in events["train/loss"]] == [*range(1, 9)]
    assert [event.step for event in events["val/AP"]] == [2, 4, 6, 8]


def test_tensorboard_forgets_a_run_that_never_saved(shapes, tmp_path):
    changes = {"log_interval": 1, "log_with": ("tensorboard",)}
    train_until_crash(2, options(shapes, tmp_path, **changes))
    await_next_second()
    train(options(shapes, tmp_path, **changes))
    assert [event.step for event in scalars(tmp_path)["train/loss"]] == [1, 2, 3, 4]


@pytest.mark.filterwarnings("ignore:`log_with:UserWarning")
@pytest.mark.parametrize("name", ["aim", "bogus"])
def test_a_tracker_that_is_not_there_is_named_and_nothing_written(name, shapes, tmp_path):
    with pytest.raises(ConfigError, match=f"--log-with {name}"):
        train(options(shapes, tmp_path / "run", log_with=(name,)))
    assert not list(tmp_path.iterdir())


def test_a_tracker_that_cannot_start_is_named_with_its_reason(shapes, tmp_path):
    class LoggedOut(GeneralTracker):
        name, requires_logging_directory, tracker = "club", False, None

        def start(self):
            raise RuntimeError("not logged in")

        def finish(self):
            raise AssertionError("it has not started")

    with pytest.raises(ConfigError, match="--log-with club: cannot start: not logged in"):
        train(options(shapes, tmp_path / "run"), trackers=[LoggedOut()])


def test_deterministic_runs_repeat_each_other(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "environ", os.environ.copy())
    try:
        for name in ("a", "b"):
            train(options(shapes, tmp_path / name, deterministic=True, log_interval=1))
            assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert read_losses(tmp_path / "a") == read_losses(tmp_path / "b")


def test_channels_last_learns_the_same(shapes, tmp_path, monkeypatch):
    formats = []

    def note_format(run, _):
        weight = next(p for p in run.detector.parameters() if p.ndim == 4 and min(p.shape) > 1)
        formats.append(weight.is_contiguous(memory_format=torch.channels_last))

    before_step(monkeypatch, 1, note_format)
    for name, is_last in (("plain", False), ("last", True)):
        asked = {"channels_last": is_last, "log_interval": 1, "lr": 1e-5}
        train(options(shapes, tmp_path / name, **asked))
    assert formats == [False, True]
    assert totals(tmp_path / "last") == pytest.approx(totals(tmp_path / "plain"), rel=1e-2)


@pytest.mark.slow
def test_a_compiled_model_learns_the_same_and_is_saved_as_it_is(shapes, tmp_path, monkeypatch):
    """Without the code generator, which takes minutes."""
    compile_module, compiled = nn.Module.compile, []

    def compile_quickly(module):
        compiled.append(module)
        compile_module(module, backend="eager")

    monkeypatch.setattr(nn.Module, "compile", compile_quickly)
    changes = {"log_interval": 1, "model_ema": True}
    train(options(shapes, tmp_path / "plain", **changes))
    assert not compiled
    train_until(3, options(shapes, tmp_path / "run", compile=True, **changes))
    resume(tmp_path / "run")
    assert len(compiled) == 2
    assert totals(tmp_path / "run") == pytest.approx(totals(tmp_path / "plain"), rel=1e-4)
    load_model(tmp_path / "run" / "last")


def test_fine_tuning_a_name_without_published_weights_says_what_there_is(shapes, tmp_path, capsys):
    flags = ["--finetune", "retinanet_mnv4s_pconv", "--data", str(shapes), "--device", "cpu"]
    assert main(["train", *flags, "--output", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert "no weights of retinanet_mnv4s_pconv are published" in message
    assert "list_models(pretrained=True)" in message
    assert not list(tmp_path.iterdir())


def test_fine_tuning_a_folder_without_a_model_names_what_is_missing(shapes, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(HubError, match=r"empty is no model folder: it has no config\.json"):
        train(options(shapes, tmp_path / "run", model=f"local-dir:{tmp_path / 'empty'}"))


def test_fine_tuning_a_folder_starts_from_its_weights(shapes, tmp_path):
    train(options(shapes, tmp_path / "first", max_steps=1))
    weights = load_model(tmp_path / "first" / "last").state_dict()
    model = f"local-dir:{tmp_path / 'first' / 'last'}"
    run = Run(options(shapes, tmp_path / "run", model=model, model_kwargs={}))
    torch.testing.assert_close(run.detector.state_dict(), weights, rtol=0, atol=0)


def test_fine_tuning_says_which_classes_are_kept_and_which_are_new(shapes, tmp_path, capsys):
    names = ["star", "moon", "disc", *(f"class {i}" for i in range(9))]
    first = create_model("retinanet_mnv4s_pconv", label_names=names, channels=16)
    folder = save_model(first, tmp_path / "first")
    flags = ["--data", str(shapes), "--output", str(tmp_path / "run"), "--workers", "0"]
    flags += ["--device", "cpu", "--image-size", "64", "64", "--max-steps", "1", "--log-with"]
    assert main(["train", "--finetune", str(folder), *flags]) == 0
    out = capsys.readouterr().out
    assert f"classes that keep what {folder} has learned: 2 (disc, star)" in out
    assert "classes that are new to it: 2 (square, triangle)" in out


def test_a_run_without_trained_classes_names_none(shapes, tmp_path):
    run = options(shapes, tmp_path, model="retinanet_r50_sepc")
    assert class_changes(run, ["disc"]) == []


@pytest.mark.parametrize("warmup", [0, 1], ids=["at once", "after a warm-up"])
def test_layer_decay_lets_each_stage_learn_slower_than_the_next(warmup, shapes, tmp_path):
    changes = {"layer_decay": 0.5, "lr": 0.01, "warmup_steps": warmup, "epochs": 10}
    run = Run(options(shapes, tmp_path, **changes))
    rates = {id(p): g["lr"] for g in run.optimizer.param_groups for p in g["params"]}
    stages = [{rates[id(p)] for p in stage} for stage in run.detector.backbone.stages() if stage]
    head = {rates[id(p)] for p in run.detector.head.parameters()}
    assert all(len(stage) == 1 for stage in [*stages, head])
    by_stage = [rate for stage in [*stages, head] for rate in stage]
    assert by_stage[-1] == pytest.approx(0.01 / 3 if warmup else 0.01)
    assert all(lower == pytest.approx(upper / 2) for lower, upper in pairwise(by_stage))


def test_stages_that_a_backbone_does_not_tell_apart_cannot_be_frozen():
    model = create_model("retinanet_hrnet_w18_small_fpn", channels=16)
    with pytest.raises(ConfigError, match=r"--freeze-stages 1: this backbone has .* \[2, 3, 4\]"):
        freeze_stages(model.backbone, 1)


def test_a_run_after_one_in_bf16_equals_one_that_came_first(shapes, tmp_path):
    changes = {"image_size": (128, 128), "max_steps": 2, "log_interval": 1}
    for name, amp in (("a", None), ("b", "bf16"), ("c", None)):
        train(options(shapes, tmp_path / name, amp=amp, **changes))
    assert read_losses(tmp_path / "a") == read_losses(tmp_path / "c")
    assert read_losses(tmp_path / "a") != read_losses(tmp_path / "b")


def test_a_loss_that_is_not_finite_does_not_confuse_the_scaler_of_fp16(
    shapes, tmp_path, monkeypatch
):
    make_accelerator = run_module.make_accelerator

    def make_with_fp16_on_the_cpu(amp, *more):
        accelerator = make_accelerator(None, *more)
        accelerator.amp = amp
        return accelerator

    monkeypatch.setattr(run_module, "make_accelerator", make_with_fp16_on_the_cpu)
    monkeypatch.setattr(accelerator_module, "FP16_SCALE", 128.0)

    def spoil(_, batches):
        batches[0].images[0, 0, 0, 0] = math.nan

    before_step(monkeypatch, 2, spoil)
    train(options(shapes, tmp_path, log_interval=1, amp="fp16"))
    assert [row["step"] for row in read_log(tmp_path, "faults.csv")] == ["2"]
    assert [row["step"] for row in read_log(tmp_path) if row["loss"]] == ["1", "3", "4"]
    assert state_of(tmp_path)["scaler"]["scale"] == 64
