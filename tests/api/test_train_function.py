"""`sepc_zoo.train`: the command's run, with callbacks, a transform and trackers."""

import inspect
import os
import signal
from pathlib import Path
from threading import Thread
from unittest.mock import Mock

import keywords
import matplotlib.figure
import pytest
import tiny_runs
import torch
from accelerate.tracking import GeneralTracker
from tiny_runs import SMALL, StopAfter, before_step, interrupt_at, read_log, read_losses, totals

import sepc_zoo
from sepc_zoo.cli import main
from sepc_zoo.cli.arguments import command_line
from sepc_zoo.data.transforms.own import TransformError
from sepc_zoo.errors import ConfigError, HubError
from sepc_zoo.options import as_dict, option_fields
from sepc_zoo.training.checkpoint import ResumeError
from sepc_zoo.training.config_file import read_options
from sepc_zoo.training.options import TrainError, TrainOptions
from sepc_zoo.training.resilience.signals import Interrupted

pytestmark = pytest.mark.usefixtures("no_pictures")

TINY = SMALL | {"log_interval": 1}


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """The options with which ``sepc_zoo.train`` starts a run, in an empty folder."""
    start = Mock(return_value={"best_AP": 0.5})
    monkeypatch.setattr("sepc_zoo.training.trainer.train", start)
    monkeypatch.chdir(tmp_path)

    def call(**options):
        sepc_zoo.train(**options)
        return start.call_args.args[0]

    return call


def test_a_run_in_python_is_that_of_the_command(shapes, tmp_path):
    result = sepc_zoo.train(data=shapes, epochs=1, output=tmp_path / "python", **TINY)
    flags = command_line(tiny_runs.options(shapes, tmp_path / "shell", epochs=1, log_interval=1))
    assert main(["train", *flags]) == 0
    assert read_losses(tmp_path / "python") == read_losses(tmp_path / "shell")
    options = [
        as_dict(read_options(tmp_path / name)) | {"output": ""} for name in ("python", "shell")
    ]
    assert options[0] == options[1]
    assert result.output == tmp_path / "python"


def test_a_result_has_the_models_the_figures_and_the_curves_of_a_run(shapes, tmp_path):
    result = sepc_zoo.train(data=shapes, epochs=1, output=tmp_path, **TINY)
    assert set(result.metrics) > {"AP", "AP50", "best_AP", "per_class"}
    assert result.best is result.best
    assert not result.best.training
    weights = result.last.state_dict()
    assert all(
        torch.equal(weights[name], value) for name, value in result.best.state_dict().items()
    )
    assert [row["step"] for row in result.history] == [1, 2, 2]
    assert {"loss", "lr"} <= {*result.history[0]} - {"AP"}
    assert {"AP", "AP50"} <= {*result.history[-1]} - {"loss"}
    assert str(tmp_path) in repr(result)
    assert isinstance(result.plot(), matplotlib.figure.Figure)
    assert result.plot()._repr_png_().startswith(b"\x89PNG")


def test_the_report_of_a_result_is_a_file_that_is_there(tmp_path):
    result = sepc_zoo.TrainResult(tmp_path, {})
    assert result.report is None
    (tmp_path / "report.html").touch()
    assert result.report == tmp_path / "report.html"


def test_a_run_without_validation_has_no_best_model(tmp_path):
    with pytest.raises(HubError, match="no model folder"):
        _ = sepc_zoo.TrainResult(tmp_path, {}).best


def test_options_are_those_of_the_command_and_none_is_not_given(asked):
    options = asked(data=Path("d"), model=Path("m"), epochs=3, lr=None, log_with="wandb")
    expected = TrainOptions(data="d", model="m", output="runs/m", epochs=3, log_with=("wandb",))
    assert options == expected


def test_training_goes_on_from_weights_and_from_a_file_of_options(asked, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("model: other\nmax_steps: 7\nlr: 0.1\n")
    options = asked(data="d", finetune="m", config=file, epochs=2)
    assert (options.model, options.pretrained, options.lr) == ("m", True, 0.1)
    assert (options.epochs, options.max_steps) == (2, None)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"model": "m"}, "data is missing"),
        ({"data": "d"}, "model is missing"),
        ({"data": "d", "model": "m", "epoch": 3}, "unknown option 'epoch'; did you mean 'epochs'"),
        ({"data": "d", "model": "m", "epochs": 0}, "epochs is 0; it must be at least 1"),
        ({"data": "d", "model": "m", "finetune": "n"}, "only one of the options model, finetune"),
        ({"data": "d", "model": "m", "epochs": 1, "max_steps": 1}, "options epochs, max_steps"),
        *(
            (
                {"data": "d", "model": "m", "callbacks": wrong},
                "must be a list of objects of classes",
            )
            for wrong in (sepc_zoo.Callback(), [object()], [sepc_zoo.Callback], 7)
        ),
        ({"data": "d", "model": "m", "log_with": [7]}, "log_with is .*it must be list of str"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ConfigError, TrainError), match=named):
        sepc_zoo.train(**options)
    assert not [*tmp_path.iterdir()]


def test_a_run_is_resumed_in_python(shapes, tmp_path):
    whole = sepc_zoo.train(data=shapes, epochs=2, output=tmp_path / "whole", **TINY)
    half = sepc_zoo.train(
        data=shapes, epochs=2, output=tmp_path / "run", callbacks=[StopAfter(3)], **TINY
    )
    assert half.history[-1]["step"] == 3
    again = sepc_zoo.train(resume=half.output)
    assert read_losses(again.output) == read_losses(whole.output)


@pytest.mark.parametrize(
    ("number", "error", "texts"),
    [
        (signal.SIGINT, KeyboardInterrupt, ("saved after step 3", "in Python resume=")),
        (signal.SIGTERM, Interrupted, ("saved after step 3", "go on with --resume")),
    ],
)
def test_an_interrupt_leaves_a_run_to_resume_and_says_so(
    number, error, texts, shapes, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3, number)
        with pytest.raises(error) as interrupted:
            sepc_zoo.train(data=shapes, epochs=2, output=tmp_path, **TINY)
    for text in texts:
        assert text in str(interrupted.value)
    assert sepc_zoo.train(resume=tmp_path).history[-1]["step"] == 4


def test_a_run_in_a_thread_leaves_the_signals_to_the_main_thread(shapes, tmp_path, monkeypatch):
    arrived = []
    before = signal.signal(signal.SIGTERM, lambda *_: arrived.append(1))
    before_step(monkeypatch, 2, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    results = []

    def run():
        results.append(sepc_zoo.train(data=shapes, epochs=1, output=tmp_path, **TINY))

    thread = Thread(target=run)
    try:
        thread.start()
        thread.join()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert arrived == [1]
    assert results[0].metrics["AP"] >= 0


class Memory(GeneralTracker):
    """A user's own logger."""

    name, requires_logging_directory = "memory", False

    def __init__(self):
        super().__init__()
        self.rows = []

    @property
    def tracker(self):
        return self.rows

    def store_init_configuration(self, values):
        pass

    def log(self, values, step=None, **_):
        self.rows.append((step, values))


def test_a_tracker_object_gets_what_the_log_gets(shapes, tmp_path):
    memory = Memory()
    options = TINY | {"log_with": ["tensorboard", memory]}
    sepc_zoo.train(data=shapes, epochs=1, output=tmp_path, **options)
    assert [step for step, _ in memory.rows] == [1, 2, 2]
    loss = float(read_log(tmp_path)[0]["loss"])
    assert memory.rows[0][1]["train/loss"] == loss
    assert "val/AP" in memory.rows[-1][1]
    assert read_options(tmp_path).log_with == ("tensorboard",)
    assert [*(tmp_path / "tracking").iterdir()]


class Losses(sepc_zoo.Callback):
    def __init__(self):
        self.totals = []

    def after_step(self, run, failed):  # noqa: ARG002
        self.totals.append(sum(loss.item() for loss in run.losses.values()))


def test_a_callback_reads_the_losses_of_its_step(shapes, tmp_path):
    losses = Losses()
    sepc_zoo.train(data=shapes, epochs=1, output=tmp_path, callbacks=[losses], **TINY)
    assert losses.totals == pytest.approx(totals(tmp_path))


# A user's transform


def mirror(image, target):
    """Flip by hand, so that the boxes are those of a flipped image."""
    width = image.shape[-1]
    x1, y1, x2, y2 = target["boxes"].unbind(1)
    return image.flip(-1), target | {"boxes": torch.stack([width - x2, y1, width - x1, y2], 1)}


def test_a_transform_is_applied_before_the_augmentation_of_the_run(shapes, tmp_path):
    flipped = TINY | {"hflip": 1.0}
    sepc_zoo.train(data=shapes, epochs=1, output=tmp_path / "hflip", **flipped)
    sepc_zoo.train(data=shapes, epochs=1, output=tmp_path / "plain", **TINY | {"hflip": 0.0})
    twice = sepc_zoo.train(
        data=shapes, epochs=1, output=tmp_path / "twice", transform=mirror, **flipped
    )
    assert read_losses(twice.output) == read_losses(tmp_path / "plain")
    assert read_losses(twice.output) != read_losses(tmp_path / "hflip")


def darken(image, target):
    """Random in the ways of torch, NumPy and Python."""
    import random

    import numpy as np

    factor = 0.4 + 0.2 * (torch.rand(()) + np.random.rand() + random.random())
    return (image * min(1.0, float(factor))).to(torch.uint8), target


def test_a_run_with_a_random_transform_resumes_bit_for_bit_with_any_workers(shapes, tmp_path):
    options = {"data": shapes, "epochs": 2, "transform": darken}
    whole = sepc_zoo.train(output=tmp_path / "whole", **options, **TINY | {"workers": 1})
    half = sepc_zoo.train(output=tmp_path / "run", **options, callbacks=[StopAfter(3)], **TINY)
    with pytest.raises(ResumeError, match="started with transform darken, not with none"):
        sepc_zoo.train(resume=half.output)
    sepc_zoo.train(resume=half.output, transform=darken)
    assert read_losses(half.output) == read_losses(whole.output)


def lose_labels(image, target):
    return image, {"boxes": target["boxes"]}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_transform_that_does_not_fit_ends_the_run_and_names_the_image(workers, shapes, tmp_path):
    options = TINY | {"workers": workers}
    with pytest.raises(TransformError, match=r"train/0000\d\d.jpg: transform lose_labels .*labels"):
        sepc_zoo.train(data=shapes, epochs=1, output=tmp_path, transform=lose_labels, **options)


# Types and help


def test_the_keywords_are_those_of_the_options():
    assert keywords.FILE.read_text(encoding="utf-8") == keywords.content(), (
        "python tests/helpers/keywords.py"
    )


@pytest.mark.parametrize("function", [sepc_zoo.train, sepc_zoo.validate])
def test_a_notebook_completes_the_options_and_shows_their_help(function):
    names = {entry.name for entry in option_fields(keywords.CLASSES_OF[function.__name__])}
    assert names <= {*inspect.signature(function).parameters}
    text = inspect.getdoc(function)
    assert all(f"    {name}: " in text for name in names)
    assert "batch_size: images per process" in text
    assert "(default 4)" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ('data="d", model="m", epochs=3, image_size=[64, 96], lr=1', ""),
        ('data=["d"], finetune=Path("m"), log_with=[], amp="bf16"', ""),
        ('data="d", model="m", epochs="3"', 'Argument "epochs"'),
        ('data="d", model="m", epoch=3', 'Unexpected keyword argument "epoch"'),
        ('data="d", model="m", amp="fp8"', 'Argument "amp"'),
    ],
)
def test_a_type_checker_knows_the_options(arguments, problem, tmp_path):
    from mypy import api

    file = tmp_path / "program.py"
    head = "from pathlib import Path\nimport sepc_zoo\nresult = "
    file.write_text(f"{head}sepc_zoo.train({arguments})\nresult.best.predict(Path('x'))\n")
    output, _, status = api.run(["--ignore-missing-imports", "--follow-imports=silent", str(file)])
    assert (status == 0) == (not problem), output
    assert problem in output
