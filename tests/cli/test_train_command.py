"""`sepc-zoo train`: from flags to a run."""

import zlib
from pathlib import Path
from unittest.mock import Mock

import pytest
from commands import assert_refused, call

from sepc_zoo.cli import train
from sepc_zoo.options import as_dict
from sepc_zoo.training.config_file import read_options, write_options
from sepc_zoo.training.options import TrainOptions


def train_flags(data, output, *more):
    small = ("--model", "retinanet_mnv4s_pconv", "--model-kwargs", "channels=16", "neck.blocks=1")
    size = ("--image-size", 64, 64, "--workers", 0, "--device", "cpu")
    return ("train", "--data", data, "--output", output, *small, *size, *more)


@pytest.fixture
def options_of(monkeypatch, tmp_path):
    """From flags to the options that ``train`` is called with, in an empty folder."""
    trained = Mock(return_value={"best_AP": 0.5})
    monkeypatch.setattr("sepc_zoo.training.trainer.train", trained)
    monkeypatch.chdir(tmp_path)
    Path("d").mkdir()

    def options(*flags):
        assert call("train", *flags) == 0
        return trained.call_args.args[0]

    return options


def test_flags_reach_the_options(options_of):
    options = options_of(
        *("--data", "d", "--model", "fsaf_r18_sepc", "--train-split", "a", "--val-split", "b"),
        *("--epochs", 3, "--batch-size", 5, "--image-size", 64, 96, "--opt", "lamb", "--lr", 0.1),
        *("--model-kwargs", "channels=16", "anchors.ratios=(1.0,2.0)", "anchors.octaves=1"),
        *("--backbone-kwargs", "drop_path_rate=0.1", "pad_type=same", "--amp", "bf16"),
        *("--mean", 0.1, 0.2, 0.3, "--std", 1, 1, 1, "--no-freeze-bn", "--freeze-stages", 2),
        *("--scale", 0.5, 2, "--hflip", 0, "--color-jitter", "--drop-bad-boxes", "--device", "cpu"),
        *("--sched", "cosine", "--clip-grad", 1, "--warmup-steps", 7, "--weight-decay", 0),
        *("--log-interval", 1, "--save-interval", 2, "--val-interval", 3, "--pretrained-backbone"),
        *("--seed", 4, "--workers", 6),
    )
    assert options == TrainOptions(
        data="d",
        model="fsaf_r18_sepc",
        output="runs/fsaf_r18_sepc",
        train_split="a",
        val_split="b",
        epochs=3,
        batch_size=5,
        image_size=(64, 96),
        opt="lamb",
        lr=0.1,
        model_kwargs={"channels": 16, "anchors": {"ratios": (1.0, 2.0), "octaves": 1}},
        backbone_kwargs={"drop_path_rate": 0.1, "pad_type": "same"},
        amp="bf16",
        mean=(0.1, 0.2, 0.3),
        std=(1.0, 1.0, 1.0),
        freeze_bn=False,
        freeze_stages=2,
        scale=(0.5, 2.0),
        hflip=0.0,
        color_jitter=True,
        drop_bad_boxes=True,
        device="cpu",
        sched="cosine",
        clip_grad=1.0,
        warmup_steps=7,
        weight_decay=0.0,
        log_interval=1,
        save_interval=2,
        val_interval=3,
        pretrained_backbone=True,
        seed=4,
        workers=6,
    )


def test_flags_that_are_not_given_leave_the_defaults(options_of):
    options = options_of("--data", "d", "--model", "fsaf_r18_sepc")
    assert options == TrainOptions(data="d", model="fsaf_r18_sepc", output="runs/fsaf_r18_sepc")


def test_a_run_without_a_folder_of_its_own_gets_a_new_one(options_of):
    flags = ("--data", "d", "--model", "fsaf_r18_sepc")
    for output in ("runs/fsaf_r18_sepc", "runs/fsaf_r18_sepc-2", "runs/fsaf_r18_sepc-3"):
        assert options_of(*flags).output == output
        Path(output).mkdir(parents=True)


@pytest.mark.parametrize(("flag", "value"), [("--freeze-bn", True), ("--no-freeze-bn", False)])
def test_frozen_batch_norm_is_a_choice(flag, value, options_of):
    options = options_of("--data", "d", "--model", "fsaf_r18_sepc", flag)
    assert options.freeze_bn is value


def test_a_folder_is_a_model_to_start_from(model, options_of):
    options = options_of("--data", "d", "--model", model)
    assert options.model == f"local-dir:{model}"
    assert options.output == "runs/model"


@pytest.fixture
def drawn(monkeypatch):
    """The folders of shapes that a command draws."""
    folders = []
    monkeypatch.setattr(
        "sepc_zoo.data.synthetic.write_shapes", lambda folder, **_: folders.append(folder)
    )
    return folders


def test_without_arguments_train_runs_a_demonstration_on_shapes(options_of, drawn, capsys):
    options = options_of()
    assert drawn == [Path(*options.data)]
    assert options.model.endswith("_sepc")
    assert {Path(path).parts[0] for path in (*options.data, options.output)} == {"runs"}
    out = capsys.readouterr().out
    for text in ("writing a small data set", f"predict {drawn[0] / 'val'} --model", "next, your"):
        assert text in out


def test_the_demonstration_draws_into_another_folder_when_its_shapes_change():
    assert f"{zlib.crc32(repr(train.DEMO_SHAPES).encode()):08x}" in train.DEMO_DATA.name


@pytest.mark.usefixtures("drawn")
def test_options_that_are_given_win_over_the_demonstrations(options_of):
    options = options_of("--max-steps", 5, "--lr", 0.1)
    assert (options.max_steps, options.epochs, options.lr) == (5, None, 0.1)
    other = options_of("--model", "fsaf_r18_sepc")
    assert (other.model, other.model_kwargs, other.backbone_kwargs) == ("fsaf_r18_sepc", {}, {})
    assert other.batch_size == options.batch_size


@pytest.mark.slow
def test_the_demonstration_ends_with_its_report_and_starts_again(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val"):
        monkeypatch.setitem(train.DEMO_SHAPES, split, 8)
    for run in ("gfl_resnet10t_sepc", "gfl_resnet10t_sepc-2"):
        assert call("train", "--max-steps", 1, "--device", "cpu", "--workers", 0) == 0
        out = capsys.readouterr().out
        assert (
            out.splitlines()[-1] == f"report: {(tmp_path / 'runs' / run / 'report.html').as_uri()}"
        )
        assert ("writing a small data set" in out) == (run == "gfl_resnet10t_sepc")


def test_options_come_from_a_file_and_the_command_line_wins(options_of, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("data: d\nmodel: m\nepochs: 36\nlr: 0.1\nscale: [0.5, 1.0]\nrecipe: strong\n")
    options = options_of("--config", file, "--lr", 0.2, "--max-steps", 9, "--output", "o")
    assert options == TrainOptions(
        data="d", model="m", output="o", lr=0.2, max_steps=9, scale=(0.5, 1.0), recipe="strong"
    )
    assert options_of("--config", file).epochs == 36


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("epoch: 3", "unknown option 'epoch'; did you mean 'epochs'?"),
        ("- 1", "expected a mapping"),
        ("a: [", "cannot be read"),
        ("data: d\nmodel: m\nlr: fast", "--lr is 'fast'; it must be float"),
        ("data: d\nmodel: no", "--model is False; it must be str"),
        ("data: d\nmodel: 5", "--model is 5; it must be str"),
    ],
)
def test_a_file_of_options_that_does_not_fit_is_refused(text, named, tmp_path, capsys):
    (tmp_path / "x.yaml").write_text(text)
    assert call("train", "--config", tmp_path / "x.yaml") == 2
    assert_refused(capsys, named)
    assert call("train", "--config", tmp_path / "missing.yaml") == 2
    assert_refused(capsys, "missing.yaml: no such file")


def test_data_without_a_model_is_refused(capsys):
    assert call("train", "--data", ".") == 2
    assert_refused(capsys, "--model is missing", "sepc-zoo list")


@pytest.mark.parametrize(
    "flags",
    [
        ("--epochs", 1, "--max-steps", 1),
        ("--pretrained-backbone", "--backbone-checkpoint", "f"),
        ("--sched", "bogus"),
        ("--amp", "fp8"),
        ("--image-size", 64),
        ("--model-kwargs", "channels"),
        ("--model-kwargs", "neck=1", "neck.blocks=2"),
    ],
)
def test_flags_that_do_not_fit_are_wrong_usage(flags, capsys):
    with pytest.raises(SystemExit) as end:
        call("train", "--data", "d", "--model", "m", *flags)
    assert end.value.code == 2
    assert_refused(capsys, flags[0])


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--model", "retinanet_r05_sepc"), "did you mean"),
        (("--opt", "bogus"), "no optimizer 'bogus'"),
        (("--opt", "adamww"), "did you mean 'adamw'?"),
        (("--batch-size", 0), "--batch-size is 0; it must be at least 1"),
        (("--batch-size", "many"), "--batch-size is 'many'; it must be int or auto"),
        (("--model-kwargs", "chanels=16"), "chanels"),
        (("--hflip", 2), "--hflip is 2.0; it must be at least 0, at most 1"),
        (("--train-split", "bogus"), "bogus"),
        (("--backbone-checkpoint", "missing.safetensors"), "missing.safetensors"),
        (("--image-size", 64, 32), "--image-size is"),
        (("--std", 0, 1, 1), "std"),
    ],
)
def test_input_that_does_not_fit_ends_with_2_and_names_it(flags, named, shapes, tmp_path, capsys):
    assert call(*train_flags(shapes, tmp_path / "run"), *flags) == 2
    assert_refused(capsys, "sepc-zoo train: ", named)
    assert not (tmp_path / "run").exists()


def test_missing_data_ends_with_2(tmp_path, capsys):
    assert call(*train_flags(tmp_path / "no", tmp_path / "run")) == 2
    assert_refused(capsys, f"{tmp_path / 'no'}: no such folder")


def test_train_runs_and_resumes(shapes, tmp_path, capsys):
    flags = train_flags(shapes, tmp_path / "run", "--max-steps", 1, "--no-freeze-bn")
    assert call(*flags) == 0
    out = capsys.readouterr().out
    assert "AP50" in out
    assert "star" in out
    assert f"sepc-zoo predict IMAGE --model {tmp_path / 'run' / 'best'}" in out
    assert out.splitlines()[-1] == f"report: {(tmp_path / 'run' / 'report.html').as_uri()}"
    assert call(*flags) == 2
    assert_refused(capsys, "holds a run", f"--resume {tmp_path / 'run'}")
    assert call("train", "--resume", tmp_path / "run") == 0
    said = "the run is complete, with all of its 1 steps; to train on, give more --epochs or"
    assert said in capsys.readouterr().out
    assert call(*flags, "--resume", tmp_path / "run", "--max-steps", 2) == 0
    assert "is complete" not in capsys.readouterr().out
    assert call("train", "--resume", tmp_path / "run", "--lr", 0.1, "--no-freeze-bn") == 2
    assert_refused(capsys, "its numbers depend on them, but --lr would change")
    assert read_options(tmp_path / "run").freeze_bn is False


@pytest.mark.parametrize("number", ["1e-3", "1E-3", "0.001"])
def test_a_file_of_options_may_have_numbers_without_a_point(number, options_of, tmp_path):
    (tmp_path / "x.yaml").write_text(f"data: d\nmodel: fsaf_r18_sepc\nlr: {number}")
    assert options_of("--config", tmp_path / "x.yaml", "--output", "o").lr == 1e-3


def test_options_beside_resume_may_repeat_those_of_the_run(options_of, tmp_path):
    flags = ("--data", "d", "--model", "fsaf_r18_sepc", "--model-kwargs", "anchors.octaves=2")
    options = options_of(*flags, "--output", tmp_path)
    write_options(options)
    assert as_dict(options_of(*flags, "--resume", tmp_path)) == as_dict(options)


def test_a_resumed_run_is_not_written_elsewhere(options_of, tmp_path, capsys):
    flags = ("--data", "d", "--model", "fsaf_r18_sepc")
    write_options(options_of(*flags, "--output", tmp_path))
    options_of("--resume", tmp_path, "--output", tmp_path / "." / "")
    assert call("train", "--resume", tmp_path, "--output", tmp_path / "b") == 2
    assert_refused(capsys, f"--resume writes to {tmp_path}, not to {tmp_path / 'b'}")
    (tmp_path / "x.yaml").write_text("output: 5")
    assert call("train", "--resume", tmp_path, "--config", tmp_path / "x.yaml") == 2
    assert_refused(capsys, "--output is 5; it must be str")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nope", "there is no such folder"),
        ("empty", "it has no config.yaml"),
        ("run/last", "it has no config.yaml; did you mean {}/run?"),
    ],
)
def test_a_folder_without_a_run_cannot_be_resumed(name, reason, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "run" / "last").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").touch()
    assert call("train", "--resume", tmp_path / name) == 2
    assert_refused(
        capsys, f"{tmp_path / name} is no run folder to resume: {reason.format(tmp_path)}\n"
    )
