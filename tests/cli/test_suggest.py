"""`sepc-zoo suggest`: a complete command for a data set."""

import json
import shlex

import pytest
from commands import call
from tiny_runs import copy_of, edit_json

from sepc_zoo.cli.suggest import MODELS, Arguments, suggest
from sepc_zoo.registry import is_model
from sepc_zoo.training.options import TrainOptions

TINY = ("--model", "retinanet_resnet10t_pconv", "--image-size", 64, 64, "--device", "cpu")


@pytest.fixture(scope="module")
def facts(shapes):
    return suggest(
        Arguments(data=shapes, model="retinanet_resnet10t_pconv", image_size=(64, 96), device="cpu")
    )


def test_the_command_trains_what_was_measured(facts, shapes, monkeypatch, tmp_path):
    started = []
    monkeypatch.setattr(
        "sepc_zoo.training.trainer.train", lambda options, **_: started.append(options) or {}
    )
    program, *words = shlex.split(facts["command"])
    assert program == "sepc-zoo"
    assert call(*words, "--output", tmp_path) == 0
    assert started == [
        TrainOptions(
            data=shapes,
            model="retinanet_resnet10t_pconv",
            image_size=(64, 96),
            auto_anchors=True,
            recipe="small",
            pretrained_backbone=True,
            device="cpu",
            output=str(tmp_path),
        )
    ]


def test_all_is_told(facts):
    assert (facts["channels"], facts["image_size"]) == (256, [64, 96])
    assert (facts["recipe"], facts["reason"]) == ("small", "there are 8 images, fewer than 5,000")
    assert facts["anchors"].startswith("anchors.base_scale=")
    assert 0 < facts["memory_gib"] < facts["available_gib"]
    assert facts["seconds"] > 0
    assert any("anchors" in note for note in facts["notes"])


def test_options_of_the_data_are_options_of_the_command(shapes, tmp_path):
    data = copy_of(shapes, tmp_path)
    file = data / "annotations" / "instances_train.json"
    edit_json(file, lambda content: content["annotations"][0].update(bbox=[0, 0, 0, 9]))
    given = {"drop_bad_boxes": True, "repeat_factor": 0.5, "val_fraction": 0.3, "split_seed": 7}
    model = {"model": "retinanet_resnet10t_pconv", "image_size": (64, 96), "device": "cpu"}
    command = suggest(Arguments(data=str(data), **model, **given))["command"]
    for text in ("--drop-bad-boxes", "--repeat-factor 0.5", "--val-fraction 0.3", "--split-seed 7"):
        assert text in command


@pytest.mark.slow
def test_it_is_printed_as_text_or_json(shapes, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call("suggest", shapes, *TINY) == 0
    said = capsys.readouterr().out
    assert "\nsepc-zoo train --data " in said
    assert call("suggest", shapes, *TINY, "--json") == 0
    assert json.loads(capsys.readouterr().out)["model"] == "retinanet_resnet10t_pconv"
    assert not list(tmp_path.iterdir())


def test_the_proposed_models_exist_and_every_device_has_one():
    for rows in MODELS.values():
        assert all(is_model(name) for _, name, _ in rows)
        assert rows[-1][0] == 0
        assert rows == sorted(rows, reverse=True)


EMPTY = [
    (("images", "annotations"), "has no images"),
    (("categories", "annotations"), "has no classes; label some images first, or name"),
    (("annotations",), "has no box to learn; label some images first"),
]


@pytest.mark.filterwarnings("error::RuntimeWarning")  # numpy's of means of nothing
@pytest.mark.parametrize(
    ("command", "emptied", "problem"),
    [*(("suggest", *row) for row in EMPTY), *(("train", *row) for row in EMPTY[:2])],
)
def test_data_without_anything_to_learn_is_refused_at_once(
    command, emptied, problem, shapes, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sepc_zoo.training.inputs.build_model", None)
    data, flags = copy_of(shapes, tmp_path), ["--data"] * (command == "train")
    file = data / "annotations" / "instances_train.json"
    edit_json(file, lambda content: content.update({name: [] for name in emptied}))
    assert call(command, *flags, data, *TINY) == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"sepc-zoo {command}: split 'train' of {data} {problem}")
