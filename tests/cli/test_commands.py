import dataclasses
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from authors_checkpoints import their_state
from PIL import Image

from sepc_zoo import cli as commands
from sepc_zoo.checkpoints.folder import save_model
from sepc_zoo.cli import COMMANDS, main
from sepc_zoo.cli import predict as predict_command
from sepc_zoo.cli import train as train_command
from sepc_zoo.factory import create_model, load_model
from sepc_zoo.inference.detections import Detections
from sepc_zoo.inference.tta import Views
from sepc_zoo.metric_names import METRICS
from sepc_zoo.registry import list_models
from sepc_zoo.training.options import TrainOptions, read_options

REPO = Path(__file__).parents[2]
SHAPES = ["disc", "square", "triangle", "star"]

# Of the fixed command line: DESIGN.md, `sepc-zoo train`.
TRAIN_FLAGS = [
    *("--data", "--train-split", "--val-split", "--model", "--output", "--epochs", "--max-steps"),
    *("--batch-size", "--image-size", "--opt", "--lr", "--sched", "--amp", "--pretrained-backbone"),
    *("--backbone-checkpoint", "--backbone-kwargs", "--mean", "--std", "--freeze-stages"),
    *("--freeze-bn", "--no-freeze-bn", "--seed", "--workers", "--log-interval"),
    *("--save-interval", "--resume"),
]

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def call(*arguments):
    return main([str(argument) for argument in arguments])


def train_flags(data, output, *more):
    small = ("--model", "retinanet_mnv4s_pconv", "--model-kwargs", "channels=16", "neck.blocks=1")
    size = ("--image-size", 64, 64, "--workers", 0, "--cpu")
    return ("train", "--data", data, "--output", output, *small, *size, *more)


def assert_refused(capsys, *named):
    """The last command said on stderr what is wrong, in words rather than a traceback."""
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    for name in named:
        assert str(name) in errors


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a model that finds something everywhere."""
    changes = {"channels": 16, "neck": {"blocks": 1}, "weights": {"image_size": (64, 64)}}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        detector = create_model("retinanet_mnv4s_pconv", label_names=SHAPES, **changes)
        torch.nn.init.normal_(detector.head.cls.bias)
    return save_model(detector, tmp_path_factory.mktemp("models") / "model")


@pytest.fixture
def photos(shapes, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.jpg", "b.jpg"):
        (folder / name).write_bytes((shapes / "val" / "000001.jpg").read_bytes())
    return folder


# The command line itself


def test_no_command_is_wrong_usage(capsys):
    assert main([]) == 2
    assert_refused(capsys, "usage: sepc-zoo COMMAND", *COMMANDS)


def test_an_unknown_command_is_wrong_usage(capsys):
    assert main(["bogus"]) == 2
    assert_refused(capsys, *COMMANDS)


def test_help_is_no_error(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert f"usage: sepc-zoo {command}" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_flag_is_wrong_usage(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--bogus"])
    assert end.value.code == 2
    assert_refused(capsys, f"usage: sepc-zoo {command}")


def test_an_interrupted_command_ends_with_130(monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    import sepc_zoo.cli.list as command

    monkeypatch.setattr(command, "run", interrupt)
    assert commands.main(["list"]) == 130


@pytest.mark.parametrize("script", ["train", "validate", "predict", "convert"])
def test_a_script_is_the_command_of_its_name(script, monkeypatch, capsys):
    path = REPO / "scripts" / f"{script}.py"
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(path), run_name="__main__")
    assert end.value.code == 0
    assert f"usage: sepc-zoo {script}" in capsys.readouterr().out


def test_a_script_runs_from_any_folder(tmp_path):
    command = [sys.executable, REPO / "scripts" / "train.py", "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage: sepc-zoo train" in done.stdout


# train


def test_train_has_the_flags_that_are_fixed(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out
    assert [flag for flag in TRAIN_FLAGS if flag not in text] == []


def test_every_option_of_a_run_has_a_flag(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out
    names = [field.name for field in dataclasses.fields(TrainOptions)]
    assert [name for name in names if f"--{name.replace('_', '-')}" not in text] == []


@pytest.fixture
def options_of(monkeypatch, tmp_path):
    """From flags to the options that ``train`` is called with, in an empty folder."""
    train = Mock(return_value={"best_AP": 0.5})
    monkeypatch.setattr(train_command, "train", train)
    monkeypatch.chdir(tmp_path)

    def options(*flags):
        assert call("train", *flags) == 0
        return train.call_args.args[0]

    return options


def test_flags_reach_the_options(options_of):
    options = options_of(
        *("--data", "d", "--model", "fsaf_r18_sepc", "--train-split", "a", "--val-split", "b"),
        *("--epochs", 3, "--batch-size", 5, "--image-size", 64, 96, "--opt", "lamb", "--lr", 0.1),
        *("--model-kwargs", "channels=16", "anchors.ratios=(1.0,2.0)", "anchors.octaves=1"),
        *("--backbone-kwargs", "drop_path_rate=0.1", "pad_type=same", "--amp", "bf16"),
        *("--mean", 0.1, 0.2, 0.3, "--std", 1, 1, 1, "--no-freeze-bn", "--freeze-stages", 2),
        *("--scale", 0.5, 2, "--hflip", 0, "--color-jitter", "--drop-bad-boxes", "--cpu"),
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
        cpu=True,
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
    assert options == TrainOptions("d", "fsaf_r18_sepc", "runs/fsaf_r18_sepc")


def test_a_run_without_a_folder_of_its_own_gets_a_new_one(options_of):
    flags = ("--data", "d", "--model", "fsaf_r18_sepc")
    for output in ("runs/fsaf_r18_sepc", "runs/fsaf_r18_sepc-2", "runs/fsaf_r18_sepc-3"):
        assert options_of(*flags).output == output
        Path(output).mkdir(parents=True)


@pytest.mark.parametrize(("flag", "value"), [("--freeze-bn", True), ("--no-freeze-bn", False)])
def test_frozen_batch_norm_is_a_choice(flag, value, options_of):
    options = options_of("--data", "d", "--model", "m", flag)
    assert options.freeze_bn is value


def test_a_folder_is_a_model_to_start_from(model, options_of):
    options = options_of("--data", "d", "--model", model)
    assert options.model == f"local-dir:{model}"
    assert options.output == "runs/model"


def test_without_arguments_train_shows_itself_on_shapes(options_of, monkeypatch, capsys):
    written = []
    monkeypatch.setattr(train_command, "write_shapes", written.append)
    options = options_of()
    assert [str(path) for path in written] == list(options.data)
    assert {Path(path).parts[0] for path in (*options.data, options.output)} == {"runs"}
    assert "writing a small data set" in capsys.readouterr().out


def test_data_without_a_model_is_refused(capsys):
    assert call("train", "--data", "d") == 2
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
        (("--batch-size", 0), "batch_size is 0"),
        (("--model-kwargs", "chanels=16"), "chanels"),
        (("--model-kwargs", "neck=1", "neck.blocks=2"), "neck has a value already"),
        (("--hflip", 2), "hflip is 2.0"),
        (("--train-split", "bogus"), "bogus"),
        (("--backbone-checkpoint", "missing.safetensors"), "missing.safetensors"),
        (("--image-size", 64, 32), "image_size"),
        (("--std", 0, 1, 1), "std"),
    ],
)
def test_input_that_does_not_fit_ends_with_2_and_names_it(flags, named, shapes, tmp_path, capsys):
    assert call(*train_flags(shapes, tmp_path / "run"), *flags) == 2
    assert_refused(capsys, "sepc-zoo train: ", named)
    assert not (tmp_path / "run").exists()


def test_data_that_is_not_there_ends_with_2(tmp_path, capsys):
    assert call(*train_flags(tmp_path / "no", tmp_path / "run")) == 2
    assert_refused(capsys, f"{tmp_path / 'no'}: no such folder")


def test_train_runs_and_goes_on(shapes, tmp_path, capsys):
    flags = train_flags(shapes, tmp_path / "run", "--max-steps", 1, "--no-freeze-bn")
    assert call(*flags) == 0
    out = capsys.readouterr().out
    assert "AP50" in out
    assert "star" in out
    assert f"sepc-zoo predict PHOTO --model {tmp_path / 'run' / 'best'}" in out
    assert call(*flags) == 2
    assert_refused(capsys, "holds a run", f"--resume {tmp_path / 'run'}")
    assert call("train", "--resume", tmp_path / "run") == 0
    assert call(*flags, "--resume", tmp_path / "run") == 0
    capsys.readouterr()
    assert call("train", "--resume", tmp_path / "run", "--lr", 0.1, "--no-freeze-bn") == 2
    assert_refused(capsys, "the run's own options, which --lr would change")
    assert read_options(tmp_path / "run").freeze_bn is False


def test_a_folder_that_holds_no_run_cannot_be_resumed(tmp_path, capsys):
    assert call("train", "--resume", tmp_path) == 2
    assert_refused(capsys, f"{tmp_path} is no run folder to resume")


# validate


@pytest.fixture
def validation(model, shapes, tmp_path, capsys):
    """The folder that ``validate`` left."""
    flags = ("--split", "val", "--workers", 0, "--cpu", "--output", tmp_path / "validation")
    assert call("validate", "--model", model, "--data", shapes, *flags) == 0
    assert "4 images" in capsys.readouterr().out
    return tmp_path / "validation"


def test_validate_writes_metrics_and_detections(validation):
    metrics = json.loads((validation / "metrics.json").read_text())
    assert list(metrics) == [*METRICS, "per_class"]
    assert list(metrics["per_class"]) == SHAPES
    results = json.loads((validation / "detections.json").read_text())
    assert set(results[0]) == {"image_id", "category_id", "bbox", "score"}
    assert {row["image_id"] for row in results} == {1, 2, 3, 4}
    assert {row["category_id"] for row in results} <= {1, 2, 3, 4}


def test_validate_writes_a_page_named_after_the_model(validation, model):
    page = (validation / "report.html").read_text()
    assert f"<h1>{model}</h1>" in page
    assert "Worst misses" in page


def test_saved_detections_give_the_same_files(validation, shapes, tmp_path):
    file = validation / "detections.json"
    assert call("validate", "--from-json", file, "--data", shapes, "--output", tmp_path / "b") == 0
    assert {path.name for path in (tmp_path / "b").iterdir()} == {
        path.name for path in validation.iterdir()
    }
    assert (tmp_path / "b" / "detections.json").read_text() == file.read_text()


def test_saved_detections_stay_as_they_are(validation, shapes):
    """Also where the results go to their own folder."""
    file = validation / "detections.json"
    file.write_text(json.dumps({"annotations": json.loads(file.read_text())}))
    before = file.read_text()
    assert call("validate", "--from-json", file, "--data", shapes, "--output", validation) == 0
    assert file.read_text() == before


def test_the_page_can_be_left_out(shapes, tmp_path):
    (tmp_path / "none.json").write_text("[]")
    flags = ("--data", shapes, "--output", tmp_path, "--no-report")
    assert call("validate", "--from-json", tmp_path / "none.json", *flags) == 0
    assert not (tmp_path / "report.html").exists()
    assert (tmp_path / "metrics.json").exists()


def test_without_matplotlib_there_is_all_but_the_page(shapes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sepc_zoo.evaluation.report.charts.find_spec", lambda _: None)
    (tmp_path / "none.json").write_text("[]")
    flags = ("--data", shapes, "--output", tmp_path)
    assert call("validate", "--from-json", tmp_path / "none.json", *flags) == 0
    says = 'no report.html: a report needs matplotlib: pip install "sepc_zoo[plots]"'
    assert says in capsys.readouterr().out
    assert not (tmp_path / "report.html").exists()
    assert (tmp_path / "metrics.json").exists()


def test_what_predict_writes_can_be_validated(model, shapes, tmp_path, capsys):
    """Its photos go by their names, and those of another split do not count."""
    photos, seen = tmp_path / "photos", tmp_path / "seen"
    shutil.copytree(shapes / "val", photos)
    shutil.copy(next((shapes / "train").iterdir()), photos / "0_of_train.jpg")
    flags = ("--score-threshold", 0, "--device", "cpu", "--output", seen)
    assert call("predict", photos, "--model", model, *flags) == 0
    whole = json.loads((seen / "detections.json").read_text())["annotations"]
    flags = ("--data", shapes, "--output", tmp_path)
    assert call("validate", "--from-json", seen / "detections.json", *flags) == 0
    elsewhere = [row for row in whole if row["image_id"] == 1]
    assert f"left out {len(elsewhere)} detections" in capsys.readouterr().out
    rows = json.loads((tmp_path / "detections.json").read_text())
    assert len(rows) == len(whole) - len(elsewhere)
    assert {row["image_id"] for row in rows} == {1, 2, 3, 4}
    assert json.loads((tmp_path / "metrics.json").read_text())["AR100"] > 0


def test_saved_detections_give_the_same_metrics(validation, shapes, tmp_path):
    file = validation / "detections.json"
    assert call("validate", "--from-json", file, "--data", shapes, "--output", tmp_path) == 0
    again = json.loads((tmp_path / "metrics.json").read_text())
    assert again == json.loads((validation / "metrics.json").read_text())
    assert again["AR100"] > 0


@pytest.mark.parametrize("flags", [("--batch-size", 0), ("--workers", -1), ("--amp", "fp8")])
def test_flags_of_validate_that_do_not_fit_are_wrong_usage(flags, model, shapes, capsys):
    with pytest.raises(SystemExit) as end:
        call("validate", "--model", model, "--data", shapes, *flags)
    assert end.value.code == 2
    assert_refused(capsys, flags[0])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_validate_refuses_fp16_on_the_cpu(model, shapes, tmp_path, capsys):
    flags = ("--data", shapes, "--output", tmp_path / "out", "--amp", "fp16")
    assert call("validate", "--model", model, *flags) == 2
    assert_refused(capsys, "--amp fp16 needs a GPU")


GOOD = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}


def test_every_bad_entry_of_saved_detections_is_listed(shapes, tmp_path, capsys):
    bad = {
        1: "x",
        2: {"image_id": 1},
        3: GOOD | {"image_id": 99},
        4: GOOD | {"image_id": [1]},
        5: GOOD | {"category_id": 0},
        6: GOOD | {"category_id": None},
        7: GOOD | {"bbox": [1, 2, 3]},
        8: GOOD | {"bbox": [1, 2, 3, "4"]},
        9: GOOD | {"bbox": [1, 2, 3, float("nan")]},
        10: GOOD | {"score": "high"},
    }
    file = tmp_path / "detections.json"
    file.write_text(json.dumps([GOOD, *bad.values()]))
    assert call("validate", "--from-json", file, "--data", shapes, "--output", tmp_path) == 2
    assert_refused(capsys, *(f"{file}: entry {i}: " for i in bad))
    assert not (tmp_path / "metrics.json").exists()


@pytest.mark.parametrize("content", ["[", "3", "{}", None])
def test_a_file_without_results_is_refused(content, shapes, tmp_path, capsys):
    file = tmp_path / "detections.json"
    if content is not None:
        file.write_text(content)
    assert call("validate", "--from-json", file, "--data", shapes, "--output", tmp_path) == 2
    assert_refused(capsys, file)


def test_no_detections_at_all_have_metrics(shapes, tmp_path):
    (tmp_path / "none.json").write_text("[]")
    flags = ("--data", shapes, "--output", tmp_path)
    assert call("validate", "--from-json", tmp_path / "none.json", *flags) == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["AP"] == 0


@pytest.mark.parametrize("command", ["validate", "predict"])
def test_a_model_that_is_not_to_be_had_is_named(command, shapes, tmp_path, capsys):
    source = ("--data", shapes) if command == "validate" else (shapes / "val",)
    for name in ("retinanet_r18_pconv", "fsaf_bogus_sepc", f"local-dir:{tmp_path}"):
        flags = ("--model", name, "--output", tmp_path / "out")
        assert call(command, *source, *flags) == 2
        assert_refused(capsys, f"sepc-zoo {command}: ", name.removeprefix("local-dir:"))


# predict


def test_predict_draws_a_photo_and_writes_its_boxes(model, photos, tmp_path, capsys):
    flags = ("--output", tmp_path / "out", "--score-threshold", 0.5, "--device", "cpu")
    assert call("predict", photos / "a.jpg", "--model", model, *flags) == 0
    with Image.open(tmp_path / "out" / "a_boxes.jpg") as picture:
        assert picture.size == (64, 64)
    content = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert content["images"] == [{"id": 1, "file_name": "a.jpg"}]
    assert content["categories"] == [{"id": i, "name": n} for i, n in enumerate(SHAPES, start=1)]
    found = load_model(model).predict(photos / "a.jpg", 0.5)
    assert content["annotations"] == found.to_coco(1)
    assert len(found) > 0
    assert f"a.jpg: {len(found)}: " in capsys.readouterr().out


def test_views_and_batches_reach_predict(model, photos, tmp_path, monkeypatch):
    predict = Mock(return_value=[])
    monkeypatch.setattr(predict_command, "predict_files", predict)
    flags = ("--tta-flip", "--tta-scales", 0.8, 1, "--batch-size", 7, "--workers", 3)
    assert call("predict", photos, "--model", model, "--output", tmp_path / "out", *flags) == 0
    expected = {"batch_size": 7, "workers": 3, "views": Views(True, (0.8, 1.0))}
    assert predict.call_args.kwargs.items() >= expected.items()


@pytest.mark.parametrize("command", ["validate", "predict"])
def test_scales_that_make_no_sense_end_with_2(command, model, shapes, tmp_path, capsys):
    source = ("--data", shapes) if command == "validate" else (shapes / "val",)
    flags = ("--model", model, "--output", tmp_path / "out", "--tta-scales", 0)
    assert call(command, *source, *flags) == 2
    assert_refused(capsys, "scales [0.0]")


def test_an_interrupted_prediction_ends_with_the_status_of_the_signal(
    model, photos, tmp_path, monkeypatch, capsys
):
    save = Detections.save

    def save_with_signal(detections, path):
        os.kill(os.getpid(), signal.SIGTERM)
        save(detections, path)

    monkeypatch.setattr(Detections, "save", save_with_signal)
    flags = ("--output", tmp_path / "out", "--batch-size", 1, "--workers", 0)
    assert call("predict", photos, "--model", model, *flags) == 143
    assert_refused(capsys, "stopped after ", "detections.json is not written")
    names = [path.name for path in (tmp_path / "out").iterdir()]
    assert set(names) <= {"a_boxes.jpg", "b_boxes.jpg"}


def test_more_views_change_the_metrics(model, shapes, tmp_path):
    found = []
    for flags in ((), ("--tta-flip",), ("--tta-scales", 1), ("--tta-scales", 1, 1.5)):
        where = ("--data", shapes, "--workers", 0, "--cpu", "--output", tmp_path)
        assert call("validate", "--model", model, *where, *flags) == 0
        found.append((tmp_path / "detections.json").read_text())
    assert found[0] == found[2]
    assert len(set(found)) == 3


def test_an_unreadable_photo_is_reported_and_the_others_are_done(model, photos, tmp_path, capsys):
    (photos / "aa.jpg").write_bytes(b"no image")
    assert call("predict", photos, "--model", model, "--output", tmp_path / "out") == 1
    assert_refused(capsys, f"not done: {photos / 'aa.jpg'}")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["a_boxes.jpg", "b_boxes.jpg", "detections.json"]
    content = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [row["file_name"] for row in content["images"]] == ["a.jpg", "b.jpg"]


def test_a_single_unreadable_photo_ends_with_1(model, photos, tmp_path, capsys):
    (photos / "a.jpg").write_bytes(b"no image")
    flags = ("--model", model, "--output", tmp_path / "out")
    assert call("predict", photos / "a.jpg", *flags) == 1
    assert_refused(capsys, "not done: ", "a.jpg")


@pytest.mark.parametrize("name", ["missing.jpg", "empty"])
def test_a_source_without_photos_ends_with_2(name, model, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    flags = ("--model", model, "--output", tmp_path / "out")
    assert call("predict", tmp_path / name, *flags) == 2
    assert_refused(capsys, tmp_path / name)
    assert not (tmp_path / "out").exists()


def test_a_device_that_is_not_there_is_named(model, photos, tmp_path, capsys):
    flags = ("--model", model, "--output", tmp_path / "out", "--device", "bogus")
    assert call("predict", photos, *flags) == 2
    assert_refused(capsys, "no device 'bogus'")


# convert


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """As the authors published it, but for the values."""
    path = tmp_path_factory.mktemp("authors") / "retinanet_r50_pconv.pth"
    torch.save({"meta": {"epoch": 12}, "state_dict": their_state("retinanet_r50_pconv")}, path)
    return path


def test_convert_makes_a_model_folder_of_a_checkpoint(checkpoint, tmp_path, capsys):
    flags = ("--model", "retinanet_r50_pconv", "--output", tmp_path)
    assert call("convert", checkpoint, *flags) == 0
    model = create_model(f"local-dir:{tmp_path}")
    theirs = their_state("retinanet_r50_pconv")
    assert torch.equal(model.head.cls.weight, theirs["bbox_head.retina_cls.weight"])
    assert len(model.state_dict()) == len(theirs)
    assert f"sepc-zoo predict PHOTO --model {tmp_path}" in capsys.readouterr().out


def test_a_checkpoint_of_another_variant_is_refused_by_its_tensors(checkpoint, tmp_path, capsys):
    flags = ("--model", "retinanet_r50_ibn_pconv", "--output", tmp_path / "out")
    assert call("convert", checkpoint, *flags) == 2
    assert_refused(capsys, "no checkpoint of retinanet_r50_ibn_pconv", "neck.pconvs.0.norm")
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_checkpoint_ends_with_2(tmp_path, capsys):
    (tmp_path / "bad.pth").write_bytes(b"no checkpoint")
    for name in ("bad.pth", "missing.pth"):
        flags = ("--model", "retinanet_r50_pconv", "--output", tmp_path / "out")
        assert call("convert", tmp_path / name, *flags) == 2
        assert_refused(capsys, name)


def test_a_model_that_the_authors_did_not_publish_is_named(checkpoint, tmp_path, capsys):
    flags = ("--model", "retinanet_r18_pconv", "--output", tmp_path / "out")
    assert call("convert", checkpoint, *flags) == 2
    assert_refused(capsys, "retinanet_r18_pconv")


# list and info


def test_list_prints_what_list_models_gives(capsys):
    assert call("list") == 0
    assert capsys.readouterr().out.split() == list_models()
    assert call("list", "*_r50_*", "fsaf_r18_*", "--exclude", "*_fpn", "free*") == 0
    expected = list_models(["*_r50_*", "fsaf_r18_*"], exclude_filters=["*_fpn", "free*"])
    assert capsys.readouterr().out.split() == expected
    assert call("list", "--pretrained") == 0
    assert capsys.readouterr().out.split() == list_models(pretrained=True)


def test_info_tells_parameters_and_the_authors_ap(capsys):
    assert call("info", "fsaf_r50_sepc_lite") == 0
    out = capsys.readouterr().out
    for text in ("resnet50.tv_in1k", "GMACs at 800x1344", "40.5", "not measured yet"):
        assert text in out


def test_info_reads_a_model_folder(model, capsys):
    assert call("info", model) == 0
    assert "64x64" in capsys.readouterr().out


def test_info_of_an_unknown_name_tells_the_nearest(capsys):
    assert call("info", "fsaf_r50_spec") == 2
    assert_refused(capsys, "fsaf_r50_sepc")


def test_a_photo_of_an_uncommon_format_gives_a_png(model, shapes, tmp_path):
    Image.open(shapes / "val" / "000001.jpg").save(tmp_path / "photo.ppm")
    assert (
        call("predict", tmp_path / "photo.ppm", "--model", model, "--output", tmp_path / "o") == 0
    )
    assert (tmp_path / "o" / "photo_boxes.png").exists()


def test_pictures_are_not_written_among_the_photos(model, photos, capsys):
    assert call("predict", photos, "--model", model, "--output", photos) == 2
    assert_refused(capsys, "--output")


def test_info_takes_a_folder_with_its_prefix(model, capsys):
    assert call("info", f"local-dir:{model}") == 0
    assert "mobilenetv4_conv_small" in capsys.readouterr().out


def test_detections_of_a_model_with_other_class_order_read_back_on_voc(tmp_path):
    data = write_voc(tmp_path / "voc", {"a": "cat", "b": "dog"})
    names = ["dog", "zebra", "cat"]
    small = {"channels": 16, "neck": {"blocks": 1}, "weights": {"image_size": (64, 64)}}
    folder = save_model(create_model("retinanet_r18_pconv", label_names=names, **small), tmp_path)
    out, again = tmp_path / "out", tmp_path / "again"
    where = ("--data", data, "--workers", 0)
    assert call("validate", "--model", folder, "--cpu", "--output", out, *where) == 0
    saved = [{"image_id": i, "category_id": i, "bbox": [8, 8, 20, 20], "score": 1} for i in (1, 2)]
    (out / "perfect.json").write_text(json.dumps(saved))
    assert call("validate", "--from-json", out / "perfect.json", "--output", again, *where) == 0
    assert json.loads((again / "metrics.json").read_text())["AP"] == pytest.approx(1)
    ids = {row["category_id"] for row in json.loads((out / "detections.json").read_text())}
    assert ids <= {1, 2}


def write_voc(root, images):
    """A Pascal VOC folder with an object of 20 pixels in each image, the same place in all."""
    for folder in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    for stem, name in images.items():
        Image.new("RGB", (64, 64)).save(root / "JPEGImages" / f"{stem}.jpg")
        box = "<xmin>9</xmin><ymin>9</ymin><xmax>28</xmax><ymax>28</ymax>"
        objects = f"<object><name>{name}</name><bndbox>{box}</bndbox></object>"
        size = "<size><width>64</width><height>64</height></size>"
        text = f"<annotation><filename>{stem}.jpg</filename>{size}{objects}</annotation>"
        (root / "Annotations" / f"{stem}.xml").write_text(text)
    (root / "ImageSets" / "Main" / "val.txt").write_text("\n".join(images))
    return root
