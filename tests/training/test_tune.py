"""The search of hyperparameters by Optuna."""

import math
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
from process_pair import ProcessPair
from tiny_runs import interrupt_at, options, read_log

from sepc_zoo.cli import main
from sepc_zoo.cli.arguments import command_line, make_parser, parse
from sepc_zoo.cli.train import Arguments
from sepc_zoo.errors import UserError
from sepc_zoo.options import OptionError
from sepc_zoo.training import tune as tune_module
from sepc_zoo.training.callbacks import Stop
from sepc_zoo.training.checkpoint import STATE_FILE
from sepc_zoo.training.config_file import read_options, write_options
from sepc_zoo.training.options import TrainError, TrainOptions
from sepc_zoo.training.resilience.signals import Interrupted
from sepc_zoo.training.run import Run
from sepc_zoo.training.tune import (
    STUDY_FILE,
    TuneError,
    default_values,
    open_study,
    read_dimension,
    tune,
)

optuna = pytest.importorskip("optuna")
from optuna.distributions import (  # noqa: E402
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

pytestmark = pytest.mark.usefixtures("no_pictures")
SPACE = ("lr", "opt=sgd,adamw", "anchors.base_scale=2.0,4.0")


@pytest.fixture(scope="module")
def defaults(shapes):
    return default_values(options(shapes, "run"), num_processes=1)


def quick_train(options, resume, callbacks):  # noqa: ARG001
    """A run that takes no time; its AP is highest at a rate of 1e-3."""
    best = 0.0
    for epoch in range(options.epochs):
        best = (epoch + 1) / 10 / (1 + abs(math.log10(options.lr) + 3))
        run = SimpleNamespace(progress=SimpleNamespace(epoch=epoch), num_epochs=options.epochs)
        try:
            for callback in callbacks:
                callback.after_validation(run, {"AP": best})
        except Stop:
            break
    return {"best_AP": best}


@pytest.fixture
def runs(monkeypatch, defaults):
    """All runs so far, which take no time."""
    started = []

    def train(options, **kwargs):
        started.append(options)
        write_options(options)
        return quick_train(options, **kwargs)

    monkeypatch.setattr(tune_module, "train", train)
    monkeypatch.setattr(tune_module, "default_values", lambda *_: defaults)  # builds a model
    monkeypatch.setattr(tune_module, "release_memory", lambda: None)  # takes a second
    return started


def search(folder, num_trials=4, space=SPACE, **changes):
    return tune(options("data", folder, epochs=4, **changes), num_trials, space)


def values_of(run):
    """The values that were searched, as the run has them."""
    scale = run.model_kwargs["anchors"]["base_scale"]
    return {"lr": run.lr, "opt": run.opt, "anchors.base_scale": scale}


def test_each_trial_is_a_run_with_its_own_values(runs, tmp_path):
    study = search(tmp_path)
    assert len(runs) == len(study.trials) == 4
    for i, (run, trial) in enumerate(zip(runs, study.trials, strict=True)):
        assert run.output == str(tmp_path / f"trial_{i:03d}") == trial.user_attrs["run"]
        assert trial.params == values_of(run)
        assert run.model_kwargs["channels"] == 16  # what all trials share stays
    assert len({run.lr for run in runs}) == 4


def test_the_first_trial_has_the_values_of_a_run_by_default(runs, tmp_path, shapes):
    search(tmp_path, num_trials=1)
    recipe = Run(options(shapes, tmp_path / "run")).recipe
    assert (runs[0].lr, runs[0].opt) == (recipe.lr, recipe.opt)
    assert runs[0].model_kwargs["anchors"] == {"base_scale": 4.0}


@pytest.mark.usefixtures("runs")
def test_runs_that_fall_behind_are_stopped(tmp_path):
    study = search(tmp_path, num_trials=10, space=("lr",))
    pruned = [t for t in study.trials if t.state == optuna.trial.TrialState.PRUNED]
    assert pruned
    assert all(1 < len(t.intermediate_values) < 4 for t in pruned)  # never after the first epoch
    assert study.best_trial not in pruned


def test_a_search_goes_on_where_it_was_and_draws_other_values(runs, tmp_path):
    search(tmp_path, num_trials=2)
    study = search(tmp_path, num_trials=4)
    assert [run.output[-3:] for run in runs] == [f"{i:03d}" for i in range(4)]
    assert len({t.params["lr"] for t in study.trials}) == 4
    search(tmp_path, num_trials=4)
    assert len(runs) == 4


def test_a_search_with_other_options_is_not_mixed_with_one_in_the_folder(runs, tmp_path):
    search(tmp_path, num_trials=1)
    with pytest.raises(TuneError, match="holds a search with other batch_size, space;"):
        search(tmp_path, space=("lr",), batch_size=2)
    assert len(runs) == 1


def test_a_search_starts_in_no_folder_of_other_content(runs, tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(TrainError, match="is not empty"):
        search(tmp_path)
    assert not runs
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_two_processes_do_not_search_in_one_folder(runs, tmp_path):
    with ExitStack() as stack:
        open_study(options("data", tmp_path, epochs=4), SPACE, stack)
        with pytest.raises(TuneError, match="another process searches in"):
            search(tmp_path)
    assert not runs


def failing(monkeypatch, *numbers):
    """Let the runs of these trials fail."""
    train = tune_module.train

    def fail(options, **kwargs):
        if int(options.output[-3:]) in numbers:
            raise TrainError("the disk is full")
        return train(options, **kwargs)

    monkeypatch.setattr(tune_module, "train", fail)


def test_a_trial_that_fails_is_told_and_the_search_goes_on(runs, tmp_path, monkeypatch, capsys):
    failing(monkeypatch, 1)
    study = search(tmp_path, num_trials=4)
    assert [t.state.name for t in study.trials][:2] == ["COMPLETE", "FAIL"]
    assert study.trials[1].user_attrs["problem"] == "TrainError: the disk is full"
    assert "trial 1 failed: TrainError: the disk is full" in capsys.readouterr().out
    assert len(runs) == 3


def test_a_search_ends_when_all_of_its_first_trials_fail(runs, tmp_path, monkeypatch):
    failing(monkeypatch, *range(9))
    with pytest.raises(TuneError, match=r"the first 3 trials failed, .*the disk is full"):
        search(tmp_path)
    assert not runs


def test_an_interrupted_search_goes_on_with_the_interrupted_run(shapes, tmp_path, monkeypatch):
    asked = options(shapes, tmp_path, log_interval=1)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        with pytest.raises(Interrupted, match="repeat its command to go on") as stopped:
            tune(asked, 2)
    assert stopped.value.status == 143
    assert (tmp_path / "trial_000" / STATE_FILE).is_file()
    study = tune(asked, 2)
    assert [t.state.name for t in study.trials] == ["COMPLETE", "COMPLETE"]
    for i in range(2):
        rows = read_log(tmp_path / f"trial_{i:03d}")
        assert [int(row["step"]) for row in rows if row["loss"]] == [1, 2, 3, 4]
    lr = read_options(tmp_path / "trial_001").lr
    assert lr == study.trials[1].params["lr"] != study.trials[0].params["lr"]


@pytest.mark.parametrize("lines", [*range(1, 8), *range(13, 17)])  # as a trial begins
def test_a_search_that_is_killed_at_any_moment_gives_each_trial_all_of_its_values(
    lines, runs, tmp_path
):
    """The study is a file that grows by lines; one that is cut short is that of a killed search."""
    search(tmp_path / "whole", num_trials=2)
    study_file = tmp_path / "killed" / STUDY_FILE
    study_file.parent.mkdir()
    written = (tmp_path / "whole" / STUDY_FILE).read_text().splitlines(keepends=True)
    study_file.write_text("".join(written[:lines]))
    del runs[:]
    study = search(study_file.parent, num_trials=2)
    for run in runs:
        trial = study.trials[int(run.output[-3:])]
        assert trial.params == values_of(run)
    assert runs
    assert len(study.trials) == 2


def search_together(folder):
    """The rates of the trials, and how many were stopped early, as this process knows them."""
    rates, stopped = [], []

    def train(options, resume, callbacks):
        rates.append(options.lr)
        metrics = quick_train(options, resume, callbacks)
        stopped.append(callbacks[0].pruned)
        return metrics

    tune_module.train = train
    tune_module.default_values = lambda *_: {"lr": 1e-4}
    study = search(Path(folder), num_trials=8, space=("lr",))
    return study is None, rates, stopped


def refusal_of_another_search(folder):
    with pytest.raises(UserError) as refusal:
        search(Path(folder), num_trials=8, space=("lr=1e-5:1",))
    return str(refusal.value)


@pytest.mark.slow
def test_several_processes_search_together(tmp_path):
    pair = ProcessPair()
    (is_other, rates, stopped), (was_other, other_rates, others_stopped) = pair(
        search_together, str(tmp_path)
    )
    refusals = pair(refusal_of_another_search, str(tmp_path))
    pair.close()
    assert all("holds a search with other space;" in refusal for refusal in refusals)
    assert (is_other, was_other) == (False, True)
    assert rates == other_rates
    assert stopped == others_stopped
    assert len(rates) == 8


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lr", FloatDistribution(1e-4, 1e-2, log=True)),
        ("layer_decay", FloatDistribution(0.1, 1.0, log=True)),
        ("warmup_steps", IntDistribution(50, 5000, log=True)),
        ("lr=1e-4:1e-2", FloatDistribution(1e-4, 1e-2, log=True)),
        ("batch_size=1:8", IntDistribution(1, 8)),
        ("opt=sgd,adamw", CategoricalDistribution(("sgd", "adamw"))),
        ("sched", CategoricalDistribution(("multistep", "cosine"))),
        ("model_ema", CategoricalDistribution((False, True))),
        ("anchors.octaves=1:4", IntDistribution(1, 4)),
        ("neck.padding=0,1", CategoricalDistribution((0, 1))),
        ("channels=64,128", CategoricalDistribution((64, 128))),
    ],
)
def test_a_part_of_the_space_is_read(text, expected, defaults):
    name, found = read_dimension(text, defaults)
    assert name == text.partition("=")[0]
    assert type(found) is type(expected)
    for entry, value in vars(expected).items():
        is_number = isinstance(value, float)
        assert vars(found)[entry] == (pytest.approx(value) if is_number else value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("rate", "'rate', which is no option of train and no entry"),
        ("learning_rate", ".*; did you mean lr"),
        ("anchors.size=1:2", "'anchors.size', which is no option"),
        ("output=a,b", "'output', which is no option"),
        ("batch_size", "'batch_size' without values; write batch_size=LOWEST:HIGHEST"),
        ("lr=1:0", "'lr=1:0'; a range is LOWEST:HIGHEST"),
        ("opt=a:b", "'opt=a:b'; a range is LOWEST:HIGHEST"),
    ],
)
def test_what_cannot_be_searched_is_refused(text, problem, defaults):
    with pytest.raises(OptionError, match=f"space has {problem}"):
        read_dimension(text, defaults)


def test_the_command_prints_a_table_and_the_command_of_the_best(
    runs, tmp_path, capsys, monkeypatch
):
    failing(monkeypatch, 2)
    flags = ["--data", str(tmp_path), "--model", "retinanet_r18_fpn"]
    flags += ["--output", str(tmp_path / "s")]
    flags += ["--epochs", "4", "--device", "cpu", "--trials", "4", "--space", "lr"]
    assert main(["tune", *flags]) == 1  # a trial has failed
    out = capsys.readouterr().out
    assert "TrainError" in out
    command = out.splitlines()[-1].split()
    best = min(runs, key=lambda run: abs(math.log10(run.lr) + 3))
    assert command[:2] == ["sepc-zoo", "train"]
    assert command[command.index("--lr") + 1] == str(best.lr)
    assert command[command.index("--output") + 1] == f"{tmp_path / 's'}-best"


@pytest.mark.parametrize("ap", [0.0, -1.0])
@pytest.mark.usefixtures("runs")
def test_a_search_that_finds_nothing_proposes_no_run(ap, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tune_module, "train", lambda *_, **__: {"best_AP": ap})
    flags = ["--data", str(tmp_path), "--model", "retinanet_r18_fpn"]
    flags += ["--output", str(tmp_path / "s"), "--epochs", "1"]
    assert main(["tune", *flags, "--device", "cpu", "--trials", "2", "--space", "lr"]) == 0
    said = capsys.readouterr().out
    assert "no trial has an AP above 0" in said
    assert "best run" not in said


@pytest.mark.parametrize("name", ["data", "model", "output"])
def test_a_missing_option_is_named(name, tmp_path, capsys):
    flags = {"data": str(tmp_path), "model": "retinanet_r18_fpn", "output": str(tmp_path)}
    words = [word for key in flags if key != name for word in (f"--{key}", flags[key])]
    assert main(["tune", *words]) == 2
    assert f"--{name} is missing" in capsys.readouterr().err


def test_a_command_line_gives_the_options_back():
    asked = TrainOptions(
        data=("a", "b c"),
        model="m",
        output="o",
        model_kwargs={"anchors": {"ratios": (0.5, 1.0)}, "neck": {"norm": True, "type": "1"}},
        backbone_kwargs={"act": {"type": "swish"}},
        freeze_bn=False,
        compile=True,
        lr=1e-5,
        scale=(0.5, 2.0),
        log_with=(),
        class_weights=("big cat=2",),
    )
    parser = make_parser("train", "", Arguments)
    words = command_line(asked)
    assert "act.type=swish" in words
    given = parse(parser, Arguments, words).given
    assert TrainOptions(**given) == asked
