"""Splits and faults of the data, as a run tells and remembers them."""

import json
import shutil
from dataclasses import replace

import pytest
from tiny_runs import copy_of, edit_json, options, read_log, read_losses, resume, train_until

from sepc_zoo.cli import main
from sepc_zoo.data import DataError
from sepc_zoo.data.splitting import SPLIT_FILE, read_assignment
from sepc_zoo.training.config_file import read_options
from sepc_zoo.training.inputs import read_inputs
from sepc_zoo.training.trainer import train

pytestmark = pytest.mark.usefixtures("no_pictures")


def tables_of(data, split):
    return data / "annotations" / f"instances_{split}.json"


@pytest.fixture
def data(shapes, tmp_path):
    return copy_of(shapes, tmp_path)


@pytest.fixture
def undivided(data):
    """Data with a training split only."""
    tables_of(data, "val").unlink()
    shutil.rmtree(data / "val")
    return data


def split_of(run):
    """The images to train and to validate on."""
    pairs = read_assignment(run / SPLIT_FILE)
    return {name: {path for path, own in pairs if own == name} for name in ("train", "val")}


def test_a_run_without_validation_split_holds_images_out_says_so_and_remembers(
    undivided, tmp_path, capsys
):
    train(options(undivided, tmp_path / "run", epochs=1))
    assert "the data has no validation split: 2 of the 8 images" in capsys.readouterr().out
    split = split_of(tmp_path / "run")
    assert (len(split["train"]), len(split["val"])) == (6, 2)
    assert not split["train"] & split["val"]
    results = json.loads((tmp_path / "run" / "last" / "detections.json").read_text())
    assert len({row["image_id"] for row in results}) <= 2


def test_a_run_with_its_own_splits_writes_no_list(data, tmp_path):
    train(options(data, tmp_path / "run", epochs=1))
    assert not (tmp_path / "run" / SPLIT_FILE).exists()


def test_a_resumed_run_keeps_its_images_although_the_data_grew(undivided, tmp_path):
    chosen = options(undivided, tmp_path / "run", val_fraction=0.25, split_seed=3)
    train(replace(chosen, max_steps=2, epochs=None))
    before = read_inputs(chosen, resume=False)
    shutil.copyfile(next((undivided / "train").iterdir()), undivided / "train" / "another.png")
    more = {"id": 99, "file_name": "another.png", "width": 64, "height": 64}
    edit_json(tables_of(undivided, "train"), lambda tables: tables["images"].insert(0, more))
    again = read_inputs(read_options(tmp_path / "run"), resume=True)
    for old, new in ((before.train, again.train), (before.val, again.val)):
        assert [(r.image_id, r.path) for r in old.records] == [
            (r.image_id, r.path) for r in new.records
        ]
    assert "1 images are not in it and left out" in again.notes[0]


def test_an_interrupted_run_goes_on_with_the_same_images(undivided, tmp_path):
    train(options(undivided, tmp_path / "whole"))
    train_until(2, options(undivided, tmp_path / "run"))
    resume(tmp_path / "run")
    assert read_losses(tmp_path / "whole")[-1] == read_losses(tmp_path / "run")[-1]
    assert split_of(tmp_path / "whole") == split_of(tmp_path / "run")


def test_a_run_and_its_validation_take_the_users_lists(data, tmp_path, capsys):
    files = sorted((data / "train").iterdir()) + sorted((data / "val").iterdir())
    names = [f"{file.parent.name}/{file.name}" for file in files]
    lines = [f"{name},{'val' if i < 3 else 'train'}" for i, name in enumerate(names)]
    (tmp_path / "own.csv").write_text("\n".join(lines))
    train(options(data, tmp_path / "run", epochs=1, split_by=str(tmp_path / "own.csv")))
    assert {name: len(own) for name, own in split_of(tmp_path / "run").items()} == {
        "train": 9,
        "val": 3,
    }
    arguments = ["--split-by", str(tmp_path / "run" / SPLIT_FILE), "--no-report", "--device", "cpu"]
    model = ["--model", str(tmp_path / "run" / "last"), "--data", str(data)]
    assert main(["validate", *model, *arguments, "--output", str(tmp_path / "out")]) == 0
    assert "3 images; metrics.json" in capsys.readouterr().out
    metrics = [
        json.loads((folder / "metrics.json").read_text())
        for folder in (tmp_path / "out", tmp_path / "run" / "last")
    ]
    assert metrics[0]["AP"] == pytest.approx(metrics[1]["AP"], abs=1e-9)


@pytest.mark.parametrize("edit", ["none", "crowds"])
def test_without_a_countable_box_the_last_model_is_the_best_and_nothing_stops(
    edit, data, tmp_path, capsys
):
    def change(tables):
        for box in tables["annotations"]:
            box["iscrowd"] = 1
        if edit == "none":
            tables["annotations"] = []

    edit_json(tables_of(data, "val"), change)
    metrics = train(options(data, tmp_path / "run", epochs=3, patience=1))
    said = capsys.readouterr().out
    assert "warning: no box of 'val' can be counted: AP is unknown (-1), the last model" in said
    assert "stopped early" not in said
    assert metrics["AP"] == -1
    assert max(int(row["epoch"]) for row in read_log(tmp_path / "run")) == 3
    files = [tmp_path / "run" / name / "model.safetensors" for name in ("best", "last")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_training_images_without_boxes_are_told(data, tmp_path):
    edit_json(tables_of(data, "train"), lambda tables: tables["annotations"].clear())
    notes = read_inputs(options(data, tmp_path / "run"), resume=False).notes
    assert notes == ["warning: no box of 'train' can be learned"]


@pytest.fixture
def truncated(data):
    first = sorted((data / "train").iterdir())[0]
    first.write_bytes(first.read_bytes()[:100])
    return data


def test_a_truncated_image_is_refused_with_the_ways_out(truncated, tmp_path):
    with pytest.raises(DataError) as caught:
        train(options(truncated, tmp_path / "run"))
    assert "--skip-bad-images" in str(caught.value)
    assert "sepc-zoo check-data DIR --fix COPY" in str(caught.value)


def test_a_truncated_image_is_left_out_where_asked_counted_and_told(truncated, tmp_path, capsys):
    train(options(truncated, tmp_path / "run", epochs=1, skip_bad_images=True))
    said = capsys.readouterr().out
    assert "left out 1 boxes and images:" in said
    assert str(sorted((truncated / "train").iterdir())[0]) in said


def test_what_was_corrected_is_told(data, tmp_path, capsys):
    edit_json(tables_of(data, "train"), lambda tables: tables["annotations"][1].update(id=1))
    train(options(data, tmp_path / "run", epochs=1))
    assert "corrected 1 entries:" in capsys.readouterr().out
